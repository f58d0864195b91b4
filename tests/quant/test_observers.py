from dataclasses import replace
from functools import reduce

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dipo.errors import UserError
from dipo.quant import observers
from dipo.quant.observers import MIN_EXPONENT, NUM_BINS, Observer, Statistics, count_bins, count_bins_on_device

FLOAT32 = st.floats(width=32, allow_nan=False, allow_infinity=False)
SMALL = st.floats(-8, 8, width=32)
PARTS = st.lists(st.lists(FLOAT32 | SMALL, max_size=12), max_size=6)


def observe(*batches):
    observer = Observer("x")
    for batch in batches:
        observer.update(torch.as_tensor(batch, dtype=torch.float32))
    return observer.result()


def reference(values):
    """The definition, in float64, where every quotient by a power of two is exact."""
    values = np.asarray(values, np.float64)
    exponent = MIN_EXPONENT
    while values.min() < -2048 * 2.0**exponent or values.max() >= 2048 * 2.0**exponent:
        exponent += 1
    index = np.floor(values / 2.0**exponent).astype(int) + NUM_BINS // 2
    return Statistics(
        count=len(values),
        min=values.min() + 0.0,
        max=values.max() + 0.0,
        exponent=exponent,
        bins=np.bincount(index, minlength=NUM_BINS),
    )


def assert_same(a, b):
    assert (a.count, a.min, a.max, a.exponent) == (b.count, b.min, b.max, b.exponent)
    np.testing.assert_array_equal(a.bins, b.bins)
    assert a.same_as(b)


@settings(max_examples=200, deadline=None)
@given(values=st.lists(FLOAT32 | SMALL, min_size=1, max_size=30))
def test_counts_follow_the_definition(values):
    assert_same(observe(values), reference(values))


@settings(max_examples=200, deadline=None)
@given(parts=PARTS, data=st.data())
def test_any_partition_in_any_order_gives_the_same_bits(parts, data):
    whole = observe([value for part in parts for value in part])
    assert_same(observe(*data.draw(st.permutations(parts))), whole)
    merged = reduce(Statistics.merge, [observe(part) for part in data.draw(st.permutations(parts))], Statistics.empty())
    assert_same(merged, whole)


@settings(max_examples=100, deadline=None)
@given(a=st.lists(FLOAT32, max_size=5), b=st.lists(FLOAT32, max_size=5), c=st.lists(FLOAT32, max_size=5))
def test_merge_is_associative_and_commutative(a, b, c):
    a, b, c = observe(a), observe(b), observe(c)
    assert_same(a.merge(b).merge(c), a.merge(b.merge(c)))
    assert_same(a.merge(b), b.merge(a))


def test_large_tensors_are_cut_without_loss(monkeypatch):
    x = torch.randn(3, 5, 41, 37, generator=torch.Generator().manual_seed(0)) * 3
    whole = observe(x)
    assert_same(whole, reference(x.flatten()))
    monkeypatch.setattr(observers, "_CPU_CHUNK", 1000)
    assert_same(observe(x), whole)


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x.contiguous(memory_format=torch.channels_last),
        lambda x: x.transpose(1, 3)[:, ::2],
        lambda x: x[:, :1].expand(-1, 4, -1, -1),
        lambda x: x[0, 0, 0, 0],
        lambda x: x.requires_grad_(),
    ],
)
def test_strides_do_not_matter(view):
    x = view(torch.randn(4, 4, 6, 5, generator=torch.Generator().manual_seed(0)))
    assert_same(observe(x), observe(x.detach().numpy().copy().ravel()))


def test_the_kernel_for_devices_counts_like_the_one_for_cpus():
    # The GPU's kernel has a CPU twin with the same arithmetic; both ends and zero are among the indices.
    index = torch.cat([torch.arange(-2048.0, 2048.0), torch.zeros(100), torch.randint(-2048, 2048, (50_000,)).float()])
    assert torch.equal(count_bins_on_device(index.clone()), count_bins(index.clone()))


@pytest.mark.parametrize("sign", [1, -1])
def test_a_power_of_two_opens_a_new_exponent_only_from_above(sign):
    # -2048 bins reach -8 with width 2^-8, 2048 bins reach up to but not including 8.
    assert observe([sign * 8.0]).exponent == (-7 if sign > 0 else -8)


def test_growing_range_keeps_tiny_negatives_below_zero():
    tiny = float(np.float32(2.0**-149))
    grown = observe([-tiny, tiny], [3e38])
    assert grown.bins[NUM_BINS // 2 - 1] == 1
    assert grown.bins[NUM_BINS // 2] == 1
    assert_same(grown, observe([3e38, -tiny, tiny]))


@pytest.mark.parametrize("zeros", [[0.0, -0.0], [-0.0, 0.0], [-0.0]])
def test_zeros_have_the_smallest_exponent_and_no_sign(zeros):
    seen = observe(zeros)
    assert seen.exponent == MIN_EXPONENT
    assert seen.bins[NUM_BINS // 2] == len(zeros)
    assert not np.signbit([seen.min, seen.max]).any()


def test_nothing_seen_is_the_neutral_element():
    assert_same(observe(), Statistics.empty())
    assert_same(observe([]), Statistics.empty())
    some = observe([1.0, -2.0])
    assert_same(Statistics.empty().merge(some), some)
    assert_same(some.merge(Statistics.empty()), some)


@pytest.mark.parametrize("beside", [1.0, float("inf"), -float("inf")])
def test_nan_is_refused_by_name(beside):
    observer = Observer("conv1_out")
    with pytest.raises(UserError, match="'conv1_out' has NaN values"):
        observer.update(torch.tensor([1.0, beside, float("nan"), 2.0]))


@settings(max_examples=100, deadline=None)
@given(parts=PARTS, order=st.permutations(range(3)))
def test_infinite_values_are_counted_and_left_out(parts, order):
    infinities = [[-np.inf], [np.inf, -np.inf], []]
    seen = observe(*(part + infinities[order[index % 3]] for index, part in enumerate(parts)))
    number = sum(len(infinities[order[index % 3]]) for index in range(len(parts)))
    assert_same(replace(seen, infinite=0), observe(*parts))
    assert seen.infinite == number
    assert_same(Statistics.from_arrays(seen.to_arrays()), seen)
    assert seen.merge(seen).infinite == 2 * number


def test_result_is_a_snapshot():
    observer = Observer("x")
    observer.update(torch.tensor([1.0]))
    before = observer.result()
    observer.update(torch.tensor([1.0, 1.0]))
    assert before.bins.sum() == before.count == 1
    assert observer.result().bins.sum() == 3


def test_arrays_round_trip_through_safetensors(tmp_path):
    from safetensors.numpy import load_file, save_file

    for i, seen in enumerate((observe([-1.5, 3e-3, 77.0]), Statistics.empty())):
        path = tmp_path / f"{i}.safetensors"
        save_file(seen.to_arrays(), path)
        assert_same(Statistics.from_arrays(load_file(path)), seen)


def test_damaged_arrays_are_refused():
    arrays = observe([1.0]).to_arrays()
    with pytest.raises(UserError, match="damaged"):
        Statistics.from_arrays({**arrays, "bins": arrays["bins"][:100]})
    with pytest.raises(UserError, match="damaged"):
        Statistics.from_arrays({key: value for key, value in arrays.items() if key != "count"})


def test_same_as_sees_every_field():
    seen = observe([-1.0, 2.0])
    fields = vars(seen)
    for change in ({"count": 3}, {"min": -1.5}, {"max": 3.0}, {"exponent": 0}, {"bins": np.roll(seen.bins, 1)}):
        assert not seen.same_as(Statistics(**{**fields, **change}))
