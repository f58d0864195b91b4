"""Forms of operators that ONNX's node tests lack, against ONNX Runtime: options are constant, and computed."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from one_node import check, ints, make, random

from dipo.graph.torch_ops import supported

Form = tuple[str, dict[str, np.ndarray], dict[str, Any]]


def combined(**choices: list[Any]) -> Iterator[dict[str, Any]]:
    return (dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values()))


def reductions() -> Iterator[Form]:
    names = ("Mean", "Sum", "Max", "Min", "Prod", "L1", "L2", "SumSquare", "LogSum", "LogSumExp")
    for name, options in itertools.product(names, combined(keepdims=[0, 1], noop_with_empty_axes=[0, 1])):
        x = random(2, 3, 4) if name in {"L1", "L2", "Max"} else np.abs(random(2, 3, 4)) + np.float32(0.1)
        for axes in (ints(1), ints(-1, 0), ints()):
            yield f"Reduce{name}", {"x": x, "axes": axes}, options
        yield f"Reduce{name}", {"x": x}, options
        yield f"Reduce{name}", {"x": (3 * np.abs(x) + 1).astype(np.int32), "axes": ints(1)}, options


def places() -> Iterator[Form]:
    x = np.round(random(3, 4, 5))
    for options in combined(axis=[0, -1], keepdims=[0, 1], select_last_index=[0, 1]):
        yield "ArgMax", {"x": x}, options
    for options in combined(largest=[0, 1], axis=[0, -1]):
        yield "TopK", {"x": x, "k": ints(2)}, {"num_outputs": 2, **options}
    for options in combined(exclusive=[0, 1], reverse=[0, 1]):
        yield "CumSum", {"x": x.astype(np.int32), "axis": np.array(-2)}, options
    for options in combined(sorted=[0, 1]):
        yield "Unique", {"x": x}, {"num_outputs": 4, **options}
        yield "Unique", {"x": ints(3, 1, 3, 2)}, {"num_outputs": 4, "axis": -1, **options}
    yield "NonZero", {"x": np.array(2, np.float32)}, {}
    for axis in (0, 1, -1):
        inputs = {"i": np.array([[0, -1], [3, 9]]), "d": ints(4), "v": np.array([0.5, 2], np.float32)}
        yield "OneHot", inputs, {"axis": axis}
    for upper, k in itertools.product((0, 1), (-2, 0, 7)):
        yield "Trilu", {"x": x > 0, "k": np.array(k)}, {"upper": upper}


def scatters() -> Iterator[Form]:
    for reduction in ("none", "add", "mul", "max", "min"):
        again = np.array([[0, 2, 0], [1, -1, 0]])
        x, updates = random(4, 5), random(2, 3, seed=1)
        yield "ScatterElements", {"x": x, "i": again, "u": updates}, {"axis": 0, "reduction": reduction}
        rows = np.array([[0], [0]])
        yield "ScatterND", {"x": x, "i": rows, "u": random(2, 5, seed=1)}, {"reduction": reduction}
        yield "ScatterND", {"x": x, "i": np.array([[0, 2], [3, -1]]), "u": random(2)}, {"reduction": reduction}
    indices = np.array([[[0], [1]], [[2], [-1]], [[1], [1]]])
    yield "GatherND", {"x": random(3, 4, 5), "i": indices}, {"batch_dims": 1}
    yield "GatherElements", {"x": random(3, 3), "i": np.array([[0, 2, 1], [-1, 0, 1]])}, {"axis": 0}


def sizes() -> Iterator[Form]:
    for mode in ("constant", "reflect", "edge", "wrap"):
        for pads in ((1, 0, 2, 1, 0, 1, 1, 0), (0, 0, -1, 2, 0, 0, 2, -1), (0, -1, -1, 0, 0, 0, 2, 0)):
            yield "Pad", {"x": random(2, 3, 4, 5), "p": ints(*pads)}, {"mode": mode, "opset": 19}
        yield "Pad", {"x": random(2, 3, 4), "p": ints(1, 2), "_v": ints(), "a": ints(-1)}, {"mode": mode, "opset": 19}
    for shape in (ints(2, 3, 4), ints(1), ints(5, 1, 3, 1), ints()):
        yield "Expand", {"x": random(3, 1), "s": shape}, {}
    for starts, ends, axes, steps in (
        (ints(0, 1), ints(2, 9), ints(0, -1), ints(1, 2)),
        (ints(5), ints(0), ints(1), ints(-2)),
    ):
        yield "Slice", {"x": random(4, 5), "s": starts, "e": ends, "a": axes, "t": steps}, {}
    for begin, end, step in ((0, 10, 3), (10, 0, -3), (5, 0, 1), (0.5, 9, 0.7)):
        yield "Range", {"a": np.float32(begin), "b": np.float32(end), "c": np.float32(step)}, {}
    for low, high in ((-0.5, 0.5), (0.5, -0.5)):
        yield "Clip", {"x": random(3, 4), "lo": np.float32(low), "hi": np.float32(high)}, {}
    yield "CenterCropPad", {"x": random(4, 6), "s": ints(7, 3)}, {}
    yield "Tile", {"x": random(2, 3), "r": ints(0, 2)}, {}
    yield "Reshape", {"x": random(2, 3, 4), "s": ints(0, -1)}, {}
    yield "Split", {"x": random(2, 6), "s": ints(0, 6, 0)}, {"axis": 1, "num_outputs": 3}


def pools() -> Iterator[Form]:
    windows = {"kernel_shape": [[2, 2], [3, 3]], "strides": [[2, 2], [3, 2]], "dilations": [[1, 1], [2, 1]]}
    for options in combined(**windows, pads=[[0, 0, 0, 0], [1, 1, 0, 1]], ceil_mode=[0, 1]):
        yield "LpPool", {"x": random(2, 3, 7, 8)}, {"opset": 22, **options}
        for order in (0, 1):
            yield "MaxPool", {"x": random(2, 3, 7, 8)}, {"num_outputs": 2, "storage_order": order, **options}
    yield "GlobalLpPool", {"x": random(2, 3, 4, 5)}, {"p": 3}


def images() -> Iterator[Form]:
    grid = 1.3 * random(2, 4, 5, 2)
    for options in combined(
        mode=["linear", "nearest", "cubic"], padding_mode=["zeros", "border", "reflection"], align_corners=[0, 1]
    ):
        yield "GridSample", {"x": random(2, 3, 6, 7), "g": grid}, {"opset": 20, **options}
    rois = np.array([[0, 0, 4, 4], [2.5, 0.5, 6.1, 5.2], [-1, -2, 3, 3], [3, 3, 3, 3]], np.float32)
    for ratio, opset in itertools.product((0, 2), (10, 16)):
        inputs = {"x": random(2, 3, 6, 7), "r": rois, "b": ints(0, 1, 0, 1)}
        yield "RoiAlign", inputs, {"opset": opset, "output_height": 2, "output_width": 3, "sampling_ratio": ratio}
    yield "Col2Im", {"x": random(2, 4, 9), "i": ints(5, 5), "b": ints(2, 2)}, {"strides": [2, 2], "pads": [0, 0, 1, 1]}
    for options in combined(mode=["linear", "cubic"], antialias=[0, 1], keep_aspect_ratio_policy=["not_larger"]):
        inputs = {"x": random(1, 2, 5, 7), "_r": ints(), "_s": ints(), "sizes": ints(3, 9)}
        yield "Resize", inputs, {"opset": 19, "axes": [2, 3], **options}
    crop = {"opset": 19, "axes": [2, 3], "coordinate_transformation_mode": "tf_crop_and_resize"}
    roi = np.array([0.1, 0.2, 0.8, 1.1], np.float32)
    for mode, size in itertools.product(("nearest", "linear", "cubic"), ((8, 11), (5, 14))):
        inputs = {"x": random(1, 2, 5, 7), "roi": roi, "_s": ints(), "sizes": ints(*size)}
        yield "Resize", inputs, {"mode": mode, "extrapolation_value": 3.0, **crop}
    keeps_a_size = {"x": random(1, 2, 5, 7), "_r": ints(), "scales": np.array([1, 1, 2.01, 1.01], np.float32)}
    for mode in ("nearest", "linear", "cubic"):
        yield "Resize", keeps_a_size, {"mode": mode}


def normalizations() -> Iterator[Form]:
    for groups in (1, 2, 4):
        of_channels = {"x": random(2, 4, 3, 5), "s": random(4), "b": random(4, seed=1)}
        yield "GroupNormalization", of_channels, {"opset": 21, "num_groups": groups}
        of_groups = {"x": random(2, 4, 3, 5), "s": random(groups), "b": random(groups, seed=1)}
        yield "GroupNormalization", of_groups, {"num_groups": groups}
    yield "InstanceNormalization", {"x": random(2, 4, 1), "s": random(4), "b": random(4, seed=1)}, {}
    yield "LayerNormalization", {"x": random(2, 3, 4), "s": random(1, 4)}, {}
    yield "LRN", {"x": random(2, 6, 3, 4)}, {"size": 3, "alpha": 0.1, "beta": 0.6, "bias": 1.5}
    yield "LpNormalization", {"x": np.zeros((3, 4), np.float32)}, {"p": 1}


def sequences() -> Iterator[Form]:
    q, k, v = random(2, 4, 3, 8), random(2, 2, 5, 8, seed=1), random(2, 2, 5, 6, seed=2)
    for options in combined(is_causal=[0, 1], softcap=[0.0, 2.0], opset=[23]):
        yield "Attention", {"q": q, "k": k, "v": v, "m": random(2, 1, 3, 5) > -0.5}, options
        past = {"m": random(3, 9), "pk": random(2, 2, 4, 8), "pv": random(2, 2, 4, 6)}
        yield "Attention", {"q": q, "k": k, "v": v, **past}, {"num_outputs": 3, **options}
    for options in combined(inverse=[0, 1], axis=[1, -2], opset=[17]):
        yield "DFT", {"x": random(2, 6, 8, 1)}, options
        yield "DFT", {"x": random(2, 6, 8, 2), "l": np.array(9)}, options
    for onesided in (0, 1):
        yield "STFT", {"x": random(2, 20, 1), "s": np.array(3), "w": random(6)}, {"onesided": onesided}
    for size in (ints(4, 4), ints(2, 3, 4)):
        yield "Det", {"x": random(3, *size[-1:], *size[-1:])}, {}


@pytest.mark.parametrize(
    "family", [reductions, places, scatters, sizes, pools, images, normalizations, sequences], ids=lambda f: f.__name__
)
@pytest.mark.parametrize("constant", [True, False], ids=["constant", "computed"])
def test_forms_equal_onnxruntime(family: Callable[[], Iterator[Form]], constant: bool) -> None:
    for op, arrays, options in family():
        inputs = {name: np.asarray(array) for name, array in arrays.items()}
        names = [name for name in list(inputs)[1:] if not name.startswith("_")] if constant else []
        check(op, inputs, constants=names, **options)


@pytest.mark.parametrize(
    ("op", "inputs", "options"),
    [
        ("TopK", {"x": random(5), "k": ints(2)}, {"sorted": 0, "num_outputs": 2}),
        ("RoiAlign", {"x": random(1, 1, 4, 4), "r": random(1, 4), "b": ints(0)}, {"mode": "max"}),
        ("GridSample", {"x": random(1, 1, 4, 4, 4), "g": random(1, 2, 2, 2, 3)}, {"mode": "cubic", "opset": 20}),
        ("Attention", {name: random(1, 1, 2, 4).astype(np.float16) for name in "qkv"}, {"opset": 23}),
    ],
)
def test_forms_on_which_torch_differs_are_left_to_onnxruntime(
    op: str, inputs: dict[str, np.ndarray], options: dict[str, Any]
) -> None:
    (node,) = ir.serde.deserialize_model(make(op, inputs, **options)).graph
    assert not supported(node)
