"""Where samples lie in values, found by running a network on two of them."""

import numpy as np
import pytest
import torch
from networks import network, saved

from dipo.graph.find_samples import find_sample_axes
from dipo.graph.load import load
from dipo.graph.sample_axis import FIRST, SampleAxes, SampleAxis
from dipo.graph.units import find_units


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


TEXT = """(float[N,4,6] x) => (float[4,N,6] y, float[M,2,6] windows, float[L,3,4] heads, float[1,4,6] mean) {
  [windows] windows = Reshape(x, to_windows)
  [turn] turned = Transpose<perm=[0,2,1]>(x)
  [heads] heads = Reshape(turned, to_heads)
  [time] time = Transpose<perm=[1,0,2]>(x)
  [rows] rows = Reshape(time, to_rows)
  [fc] g = Gemm(rows, weight, bias)
  [again] again = Reshape(g, to_time)
  [mean] mean = ReduceMean<axes=[0]>(x)
  [nothing] zeros = Mul(x, zero)
  [none] none = ReduceMean<axes=[0]>(zeros)
  [spread] spread = Transpose<perm=[1,0,2]>(none)
  [sum] y = Add(again, spread)
}"""
"""Windows, heads that join the batch, time first, time and batch in one axis, and values without samples."""
CONSTANTS = {
    "to_windows": np.array([-1, 2, 6]), "to_heads": np.array([-1, 3, 4]), "to_rows": np.array([-1, 6]),
    "to_time": np.array([4, -1, 6]), "weight": (6, 6), "bias": (6,), "zero": np.float32(0),
}  # fmt: skip


@pytest.mark.parametrize("num", [1, 2, 3])
def test_each_value_has_its_axis(tmp_path, num):
    model = load(saved(network(TEXT, **CONSTANTS), tmp_path))
    axes = find_sample_axes(model, {"x": draw(num, 4, 6)})
    assert axes.odd == {
        "windows": SampleAxis(0, 1, 2),
        "heads": SampleAxis(0, 1, 2),
        "time": SampleAxis(1),
        "rows": SampleAxis(0, 4, 1),
        "g": SampleAxis(0, 4, 1),
        "again": SampleAxis(1),
        "y": SampleAxis(1),
    }
    assert axes.mixed == {"mean"}
    assert axes.same == {"none", "spread"}
    assert axes.of("turned") == axes.of("zeros") == FIRST


@pytest.mark.parametrize(
    ("axis", "shape", "places"),
    [
        (FIRST, (3, 8, 4), {1: 1, 2: 2, 0: None}),
        (SampleAxis(0, 1, 4), (12, 5), {1: 2}),
        (SampleAxis(0, 2, 2), (12, 5, 7), {1: 3, 2: 4}),
        (SampleAxis(1), (4, 3, 6), {0: 1, 1: None, 2: 2}),
    ],
)
def test_other_axes_are_found_again_by_sample(axis, shape, places):
    by_sample = axis.by_sample(draw(*shape))
    for before, behind in places.items():
        assert axis.moved(before) == behind
        assert behind is None or by_sample.shape[behind] == shape[before]
    assert SampleAxes(same=frozenset({"x"})).moved("x", 0) == 1
    assert SampleAxes({"y": axis}).moved("y", 1) == axis.moved(1)


@pytest.mark.parametrize(
    ("axis", "shape"),
    [
        (FIRST, (3, 8, 4, 5)),
        (FIRST, (3, 7)),
        (SampleAxis(0, 1, 4), (12, 5)),
        (SampleAxis(0, 1, 2), (6, 8, 4, 5)),
        (SampleAxis(0, 4, 1), (12, 5)),
        (SampleAxis(0, 2, 2), (12, 5, 2)),
        (SampleAxis(1), (4, 3, 6)),
        (SampleAxis(2, 2, 3), (4, 5, 18, 2)),
    ],
)
def test_values_are_taken_apart_by_sample_and_put_together(axis, shape):
    value = torch.from_numpy(draw(*shape))
    rows = axis.to_rows(value)
    rest = (*shape[: axis.axis], *shape[axis.axis + 1 :])
    assert len(rows) == axis.count(value) == 3
    assert torch.equal(axis.from_rows(rows, rest), value)
    apart = axis.by_sample(value.numpy())
    assert len(apart) == 3
    assert np.array_equal(axis.from_samples(apart, shape), value.numpy())
    picked = axis.from_rows(rows[[2]], rest)
    assert np.array_equal(axis.by_sample(picked.numpy())[0], apart[2])
    assert np.array_equal(axis.by_sample(axis.take(value, [0, 2]).numpy()), apart[[0, 2]])


def test_a_value_that_is_the_same_for_all_is_made_again_where_it_is_read(tmp_path):
    model = load(
        saved(
            network(
                """(float[N,6] x) => (float[N,6] y) {
                  [nothing] zeros = Mul(x, zero)
                  [none] none = ReduceMean<axes=[0]>(zeros)
                  [spread] spread = Sigmoid(none)
                  [first] a = Gemm(x, w1, b1)
                  [add1] b = Add(a, spread)
                  [second] c = Gemm(b, w2, b2)
                  [add2] y = Add(c, spread)
                }""",
                w1=(6, 6), b1=(6,), w2=(6, 6), b2=(6,), zero=np.float32(0),
            ),
            tmp_path,
        )
    )  # fmt: skip
    samples = find_sample_axes(model, {"x": draw(2, 6)})
    assert samples.same == {"none", "spread"}
    units = find_units(model, granularity="block", samples=samples)
    assert [(unit.layers, unit.remade) for unit in units] == [(("first",), ()), (("second",), ("none", "spread"))]
    assert units[1].inputs == ("zeros", "a")
    assert units[0].outputs == ("zeros", "a")


def test_samples_that_cannot_be_told_apart_are_not_handed_on(tmp_path):
    text = """(float[N,6] x) => (float[N,6] y) {
      [first] a = Gemm(x, w1, b1)
      [relu] r = Relu(a)
      [second] b = Gemm(r, w2, b2)
      [third] c = Gemm(b, w3, b3)
      [last] y = Gemm(c, w4, b4)
    }"""
    layers = {f"{kind}{i}": (6, 6) if kind == "w" else (6,) for kind in "wb" for i in range(1, 5)}
    model = load(saved(network(text, **layers), tmp_path))
    axes = SampleAxes(mixed=frozenset({"r", "b"}))
    apart = [["first"], ["second"], ["third"], ["last"]]
    joined = [["first", "second", "third"], ["last"]]
    for granularity in ("layer", "block"):
        assert [list(unit.layers) for unit in find_units(model, granularity=granularity)] == apart
        assert [list(unit.layers) for unit in find_units(model, granularity=granularity, samples=axes)] == joined


def test_what_one_sample_alone_always_gives_is_no_constant(tmp_path):
    """A mean over the batch is the sample itself where there is but one: the difference from it is zero then."""
    text = """(float[N,6] x) => (float[N,6] y) {
      [mean] m = ReduceMean<axes=[0]>(x)
      [less] y = Sub(x, m)
    }"""
    model = load(saved(network(text), tmp_path))
    assert find_sample_axes(model, {"x": draw(2, 6)}) == SampleAxes(mixed=frozenset({"m", "y"}))
