"""The operators against ONNX Runtime, and for what training and speed need; `test_node_tests` has ONNX's own tests."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from one_node import check, ints, make, random, read, run, to_tensor

from dipo.errors import UserError
from dipo.graph import operators
from dipo.graph.torch_ops import bind, supported


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """These tensors are too small to share out."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@st.composite
def windows(draw: st.DrawFn, max_dims: int = 3) -> dict[str, Any]:
    """Attributes of a sliding window, and `sizes` of an input it fits into."""
    n = draw(st.integers(1, max_dims))
    per_dim = functools.partial(st.lists, min_size=n, max_size=n)
    kernel = draw(per_dim(st.integers(1, 3)))
    dilations = draw(per_dim(st.integers(1, 2)))
    window = {
        "kernel_shape": kernel,
        "strides": draw(per_dim(st.integers(1, 3))),
        "dilations": dilations,
        "sizes": [(k - 1) * d + draw(st.integers(1, 4)) for k, d in zip(kernel, dilations, strict=True)],
    }
    auto_pad = draw(st.sampled_from(["NOTSET", "NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"]))
    if auto_pad == "NOTSET":
        window["pads"] = [draw(st.integers(0, k - 1)) for k in (*kernel, *kernel)]
    else:
        window["auto_pad"] = auto_pad
        if auto_pad != "VALID":  # the form that ONNX Runtime computes
            window["dilations"] = [1] * n
            window["strides"] = [min(k, s) for k, s in zip(kernel, window["strides"], strict=True)]
    return window


@settings(max_examples=60, deadline=None, derandomize=True)
@given(windows(), st.sampled_from([1, 2]), st.booleans())
def test_conv_equals_onnxruntime(window: dict[str, Any], groups: int, with_bias: bool) -> None:
    sizes = window.pop("sizes")
    inputs = {"x": random(2, 4, *sizes), "w": random(6, 4 // groups, *window["kernel_shape"], seed=1)}
    if with_bias:
        inputs["b"] = random(6, seed=2)
    check("Conv", inputs, group=groups, **window)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(windows(), st.sampled_from([1, 2]), st.booleans(), st.integers(0, 1))
def test_conv_transpose_equals_onnxruntime(
    window: dict[str, Any], groups: int, with_bias: bool, output_padding: int
) -> None:
    sizes = window.pop("sizes")
    if all(s > output_padding for s in window["strides"]) and "pads" in window:
        window["output_padding"] = [output_padding] * len(sizes)
    extents = [(k - 1) * d + 1 for k, d in zip(window["kernel_shape"], window["dilations"], strict=True)]
    # ONNX Runtime never adds rows to the full output; ONNX leaves the case open
    assume("pads" in window or all(e >= s for e, s in zip(extents, window["strides"], strict=True)))
    full = [(size - 1) * s + e for size, s, e in zip(sizes, window["strides"], extents, strict=True)]
    pads = window.get("pads", [0] * 2 * len(sizes))
    assume(all(f > b + e for f, b, e in zip(full, pads[: len(sizes)], pads[len(sizes) :], strict=True)))
    inputs = {"x": random(2, 4, *sizes), "w": random(4, 6 // groups, *window["kernel_shape"], seed=1)}
    if with_bias:
        inputs["b"] = random(6, seed=2)
    check("ConvTranspose", inputs, group=groups, **window)


@pytest.mark.parametrize("auto_pad", ["NOTSET", "SAME_UPPER", "SAME_LOWER"])
def test_conv_transpose_output_shape(auto_pad: str) -> None:
    """An odd number of rows to cut goes behind with SAME_UPPER and before otherwise."""
    inputs = {"x": random(1, 2, 4, 5), "w": random(2, 3, 3, 3, seed=1)}
    check("ConvTranspose", inputs, strides=[2, 3], output_shape=[8, 12], auto_pad=auto_pad)


def test_conv_transpose_grown_rows_hold_the_bias() -> None:
    """A negative pad lengthens the output by rows that no input reaches."""
    inputs = {"x": random(1, 2, 3), "w": random(2, 3, 2, seed=1), "b": random(3, seed=2)}
    node, opset = read(make("ConvTranspose", inputs, pads=[-1, 0]), {})
    (y,) = run(node, opset, inputs)
    torch.testing.assert_close(y[0, :, 0], to_tensor(inputs["b"]))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(windows(), st.booleans())
def test_max_pool_equals_onnxruntime(window: dict[str, Any], ceil_mode: bool) -> None:
    sizes = window.pop("sizes")
    check("MaxPool", {"x": random(2, 3, *sizes)}, ceil_mode=int(ceil_mode and "pads" in window), **window)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(windows(), st.booleans(), st.booleans())
def test_average_pool_equals_onnxruntime(window: dict[str, Any], ceil_mode: bool, count_include_pad: bool) -> None:
    sizes = window.pop("sizes")
    check(
        "AveragePool",
        {"x": random(2, 3, *sizes)},
        opset=19,
        ceil_mode=int(ceil_mode and "pads" in window),
        count_include_pad=int(count_include_pad),
        **window,
    )


def test_max_pool_takes_integers_with_asymmetric_pads() -> None:
    x = np.arange(-60, -44, dtype=np.int8).reshape(1, 1, 4, 4)
    check("MaxPool", {"x": x}, kernel_shape=[2, 2], pads=[0, 0, 1, 1], strides=[2, 2])


@pytest.mark.parametrize(
    ("c_shape", "transposes"), list(itertools.product([None, (), (1,), (4,), (3, 1), (3, 4)], [(0, 0), (1, 1)]))
)
def test_gemm_equals_onnxruntime(c_shape: tuple[int, ...] | None, transposes: tuple[int, int]) -> None:
    trans_a, trans_b = transposes
    inputs = {"a": random(*((5, 3) if trans_a else (3, 5))), "b": random(*((4, 5) if trans_b else (5, 4)), seed=1)}
    if c_shape is not None:
        inputs["c"] = random(*c_shape, seed=2)
    check("Gemm", inputs, transA=trans_a, transB=trans_b, alpha=0.5, beta=2.0)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data())
def test_slice_equals_onnxruntime(data: st.DataObject) -> None:
    axes = data.draw(st.lists(st.sampled_from([0, 1, -1]), min_size=1, max_size=3, unique=True))
    steps = [data.draw(st.sampled_from([1, 2, 3, -1, -2, -7])) for _ in axes]
    far = [2**31 - 1, 2**63 - 1]
    start = st.one_of(st.integers(-7, 7), st.sampled_from([-(2**63), *far]))
    # ONNX Runtime takes the largest integers for "before the first element" where steps are negative; ONNX does not
    end = {sign: st.one_of(st.integers(-7, 7), st.sampled_from(far if sign else [-(2**63)])) for sign in (True, False)}
    inputs = {
        "x": random(4, 5, 6),
        "starts": ints(*(data.draw(start) for _ in axes)),
        "ends": ints(*(data.draw(end[step > 0]) for step in steps)),
        "axes": ints(*axes),
        "steps": ints(*steps),
    }
    check("Slice", inputs, constants=["starts", "ends", "axes", "steps"])


def test_slice_before_opset_10_has_attributes() -> None:
    check("Slice", {"x": random(4, 5)}, opset=9, starts=[1, -3], ends=[3, 100], axes=[0, 1])


@pytest.mark.parametrize(
    ("mode", "shape", "pads"),
    [
        ("constant", (2, 3, 4, 5), (0, 2, 0, 0, 0, 3, 0, 0)),
        ("constant", (2, 3, 4, 5), (0, 0, 1, -2, 0, 0, 0, 3)),
        ("constant", (4,), (1, 2)),
        ("reflect", (2, 3, 4, 5), (0, 0, 1, 2, 0, 0, 3, 0)),
        ("reflect", (2, 3, 4, 5), (0, 0, 1, 0, 0, 0, 2, 0)),
        ("reflect", (2, 3, 4), (0, 0, 1, 0, 0, 2)),
        ("edge", (2, 3, 4, 5), (0, 0, 1, 2, 0, 0, 3, 0)),
        ("edge", (2, 3, 4, 5, 6), (0, 0, 1, 2, 0, 0, 0, 3, 0, 1)),
        ("wrap", (2, 3, 4, 5), (0, 0, 1, 2, 0, 0, 3, 0)),
    ],
)
def test_pad_equals_onnxruntime(mode: str, shape: tuple[int, ...], pads: tuple[int, ...]) -> None:
    inputs = {"x": random(*shape), "pads": ints(*pads)}
    constants = ["pads"]
    if mode == "constant":
        inputs["value"] = np.array(-1.5, np.float32)
        constants.append("value")
    check("Pad", inputs, constants=constants, mode=mode, opset=19)


def test_pad_of_some_axes() -> None:
    inputs = {"x": random(2, 3, 4, 5), "pads": ints(1, 2, 3, 4), "_": ints(), "axes": ints(-1, 2)}
    check("Pad", inputs, constants=["pads", "axes"])


def test_pad_before_opset_11_has_attributes() -> None:
    check("Pad", {"x": random(2, 3)}, opset=10, pads=[0, 1, 2, 0], value=2.5)


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax"])
def test_softmax_before_opset_13_spans_all_axes_from_axis_on(op: str, axis: int) -> None:
    check(op, {"x": random(2, 3, 4)}, opset=11, axis=axis)


@pytest.mark.parametrize("limits", [{"min": -0.5, "max": 0.25}, {"max": 0.25}, {}])
def test_clip_before_opset_11_has_attributes(limits: dict[str, float]) -> None:
    check("Clip", {"x": random(3, 4)}, opset=10, **limits)


@pytest.mark.parametrize("op", ["ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin"])
@pytest.mark.parametrize("keepdims", [0, 1])
def test_reductions_before_opset_13_have_attributes(op: str, keepdims: int) -> None:
    check(op, {"x": random(2, 3, 4)}, opset=12, axes=[-1, 1], keepdims=keepdims)
    check(op, {"x": random(2, 3, 4)}, opset=12, keepdims=keepdims)


@pytest.mark.parametrize("op", ["ReduceMean", "ReduceSum", "ReduceMax"])
@pytest.mark.parametrize("noop", [0, 1])
def test_reduction_over_an_empty_list_of_axes(op: str, noop: int) -> None:
    check(op, {"x": random(2, 3, 4), "axes": ints()}, constants=["axes"], noop_with_empty_axes=noop)


@pytest.mark.parametrize("op", ["Squeeze", "Unsqueeze"])
def test_squeeze_and_unsqueeze_before_opset_13_have_attributes(op: str) -> None:
    check(op, {"x": random(2, 1, 3, 1)}, opset=11, axes=[1, 3])


def test_split_before_opset_13_has_attributes() -> None:
    check("Split", {"x": random(2, 6)}, opset=11, axis=1, split=[1, 2, 3], num_outputs=3)


def test_reshape_follows_zero_and_minus_one() -> None:
    x = random(2, 3, 4)
    check("Reshape", {"x": x, "shape": ints(0, -1)}, constants=["shape"])
    check("Reshape", {"x": x[:0], "shape": ints(0, 6, 2)}, constants=["shape"], allowzero=1)


@pytest.mark.parametrize("indices", [np.int64(-2), ints(0, 2, -1), np.array([[0], [-3]], np.int32)])
@pytest.mark.parametrize("axis", [0, -1])
def test_gather_equals_onnxruntime(indices: np.ndarray, axis: int) -> None:
    check("Gather", {"x": random(3, 4, 5), "i": np.asarray(indices)}, constants=["i"], axis=axis)


@pytest.mark.parametrize("exponent", [np.float32(2), np.array([[[0.5]]], np.float32), np.array([2, 3], np.int64)])
def test_pow_keeps_type_and_shape(exponent: np.ndarray) -> None:
    check("Pow", {"x": np.abs(random(3, 2)), "e": np.asarray(exponent)}, constants=["e"])
    check("Pow", {"x": np.arange(6, dtype=np.int32).reshape(3, 2), "e": np.asarray(exponent)}, constants=["e"])


@pytest.mark.parametrize("coordinates", ["half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric"])
@pytest.mark.parametrize(
    "how",
    [
        {"mode": "linear"},
        {"mode": "cubic"},
        {"mode": "cubic", "cubic_coeff_a": -0.5},
        {"mode": "nearest"},
        *({"mode": "nearest", "nearest_mode": mode} for mode in ("floor", "ceil", "round_prefer_ceil")),
    ],
    ids=lambda how: "-".join(str(value) for value in how.values()),
)
@pytest.mark.parametrize("scale", [2.0, 3.0, 1.5, 0.6, 0.2])
@pytest.mark.parametrize("by_sizes", [True, False])
def test_resize_equals_onnxruntime_or_is_refused(
    coordinates: str, how: dict[str, object], scale: float, by_sizes: bool
) -> None:
    x = random(2, 3, 5, 7)
    inputs = {"x": x, "_roi": ints()}
    sizes = {"_scales": ints(), "sizes": ints(2, 3, int(5 * scale), int(7 * scale))}
    inputs |= sizes if by_sizes else {"scales": np.array([1, 1, scale, scale], np.float32)}
    options = {"constants": list(inputs)[2 + by_sizes :], "coordinate_transformation_mode": coordinates, **how}
    ties = coordinates == "asymmetric" and how.get("nearest_mode") == "round_prefer_ceil"
    if ties or (coordinates == "align_corners" and not by_sizes and not scale.is_integer()):
        (node,) = ir.serde.deserialize_model(make("Resize", inputs, **options)).graph
        assert not supported(node)
    else:
        check("Resize", inputs, **options)


def test_resize_of_other_axes_than_the_spatial_ones() -> None:
    inputs = {"x": random(2, 3, 5), "_roi": ints(), "scales": np.array([1, 2, 1.5], np.float32)}
    check("Resize", inputs, constants=["scales"], mode="nearest", nearest_mode="floor")


def test_resize_ignores_a_batch_written_into_its_sizes() -> None:
    """An exporter's fixed batch of 1 must not stop a larger batch."""
    inputs = {"x": random(1, 3, 5, 7), "_roi": ints(), "_scales": ints(), "sizes": ints(1, 3, 10, 14)}
    (node,) = ir.serde.deserialize_model(make("Resize", inputs, constants=["sizes"], mode="linear")).graph
    assert bind(node, 18)(torch.zeros(4, 3, 5, 7), None, None, None).shape == (4, 3, 10, 14)


@pytest.mark.parametrize(
    ("op", "inputs", "options", "message"),
    [
        ("Reshape", {"x": random(2, 3)}, {}, r"node 'the_node' \(Reshape\): it has no shape"),
        ("Add", {"x": np.ones(2, np.uint16), "y": np.ones(2, np.uint16)}, {}, "'x' is of type UINT16"),
        ("Relu", {"x": random(2)}, {"leak": 0.1}, "attribute 'leak' is not known at opset 18"),
        ("Multinomial", {"x": random(2, 2)}, {}, "this operator is not computed in torch"),
        ("Conv", {"x": random(1, 1, 5), "w": random(1, 1, 3)}, {"strides": [1, 1]}, "do not fit a kernel of 1 dim"),
        (
            "MaxPool",
            {"x": random(1, 1, 9)},
            {"kernel_shape": [2], "dilations": [2], "auto_pad": "SAME_UPPER"},
            "explicit",
        ),
        ("Gelu", {"x": random(2)}, {"opset": 20, "approximate": "sigmoid"}, "only none, tanh"),
    ],
)
def test_refusals_name_the_node_and_the_reason(
    op: str, inputs: dict[str, np.ndarray], options: dict[str, Any], message: str
) -> None:
    proto = make(op, {name: np.asarray(array) for name, array in inputs.items()}, **options)
    model = ir.serde.deserialize_model(proto)
    (node,) = model.graph
    assert not supported(node)
    with pytest.raises(UserError, match=message):
        bind(node, model.opset_imports[""])


def test_operators_of_other_domains_are_refused() -> None:
    node = ir.Node("com.example", "Relu", [ir.Value(name="x")])
    assert not supported(node, 18)


def bound(op: str, inputs: Mapping[str, np.ndarray], **options: Any) -> Any:
    (node,) = ir.serde.deserialize_model(make(op, inputs, **options)).graph
    return bind(node, options.get("opset", 18))


@pytest.mark.parametrize("window", [{"pads": [1, 0, 0, 2]}, {"auto_pad": "SAME_LOWER", "strides": [2, 2]}])
def test_conv_with_asymmetric_pads_has_right_gradients(window: dict[str, Any]) -> None:
    arrays = {"x": random(2, 2, 4, 5), "w": random(3, 2, 2, 3, seed=1), "b": random(3, seed=2)}
    inputs = [to_tensor(array).double().requires_grad_() for array in arrays.values()]
    assert torch.autograd.gradcheck(bound("Conv", arrays, **window), inputs)


@pytest.mark.parametrize("op", [*sorted(operators.with_kind(operators.Kind.ACTIVATION)), "BatchNormalization", "Gemm"])
def test_gradients_reach_every_input_that_trains(op: str) -> None:
    arrays, options = {
        "Clip": ({"x": random(3, 4), "lo": np.array(0, np.float32), "hi": np.array(6, np.float32)}, ["lo", "hi"]),
        "PRelu": ({"x": random(3, 4), "slope": random(4, seed=1)}, []),
        "BatchNormalization": (
            {
                name: np.abs(random(*shape))
                for name, shape in zip("xsbmv", [(3, 4), (4,), (4,), (4,), (4,)], strict=True)
            },
            ["m", "v"],
        ),
        "Gemm": ({"a": random(3, 4), "b": random(4, 5, seed=1), "c": random(5, seed=2)}, []),
    }.get(op, ({"x": random(3, 4)}, []))
    inputs = [to_tensor(array).double().requires_grad_(name not in options) for name, array in arrays.items()]
    assert torch.autograd.gradcheck(bound(op, arrays, constants=options, opset=24), inputs)


CHANNELS_LAST = {
    "conv": ("Conv", {"w": random(6, 4, 3, 3)}, {"pads": [1, 1, 1, 1]}),
    "conv, asymmetric": ("Conv", {"w": random(6, 4, 3, 3)}, {"pads": [0, 0, 1, 1], "strides": [2, 2]}),
    "conv, same": ("Conv", {"w": random(6, 4, 3, 3)}, {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    "depthwise": ("Conv", {"w": random(4, 1, 3, 3)}, {"pads": [1, 1, 1, 1], "group": 4}),
    "relu": ("Relu", {}, {}),
    "clip": ("Clip", {"lo": np.array(0, np.float32), "hi": np.array(6, np.float32)}, {"constants": ["lo", "hi"]}),
    "add": ("Add", {"y": random(2, 4, 6, 6)}, {}),
    "mul by channel": ("Mul", {"y": random(1, 4, 1, 1)}, {}),
    "pad": ("Pad", {"p": ints(0, 0, 1, 1, 0, 0, 1, 1)}, {"constants": ["p"]}),
    "pad channels": ("Pad", {"p": ints(0, 2, 0, 0, 0, 2, 0, 0)}, {"constants": ["p"]}),
    "prelu": ("PRelu", {"s": random(4, 1, 1)}, {}),
    "hard swish": ("HardSwish", {}, {}),
    "batch norm": ("BatchNormalization", {n: np.ones(4, np.float32) for n in "sbmv"}, {}),
    "max pool": ("MaxPool", {}, {"kernel_shape": [2, 2], "pads": [0, 0, 1, 1]}),
    "average pool": ("AveragePool", {}, {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
    "concat": ("Concat", {"y": random(2, 3, 6, 6)}, {"axis": 1}),
}


@pytest.mark.parametrize("case", CHANNELS_LAST)
def test_channels_last_stays(case: str) -> None:
    op, others, options = CHANNELS_LAST[case]
    arrays = {"x": random(2, 4, 6, 6), **others}
    inputs = [to_tensor(array) for array in arrays.values()]
    inputs = [x.to(memory_format=torch.channels_last) if x.dim() == 4 else x for x in inputs]
    y = bound(op, arrays, **options)(*inputs)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert not y.is_contiguous()


def test_symmetric_pads_go_into_the_convolution(monkeypatch: pytest.MonkeyPatch) -> None:
    """Padding beforehand would copy the input."""
    arrays = {"x": random(1, 2, 4, 4), "w": random(2, 2, 3, 3)}
    ops = [bound("Conv", arrays, pads=[1, 1, 1, 1]), bound("Conv", arrays, auto_pad="SAME_UPPER")]
    monkeypatch.setattr(F, "pad", lambda *_, **__: pytest.fail("the input was padded in a step of its own"))
    for op in ops:
        assert op(*map(to_tensor, arrays.values())).shape == (1, 2, 4, 4)
