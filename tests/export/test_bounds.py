import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dipo.export.bounds import Bounds
from dipo.quant.spec import QParams


def qparams(scale: float = 0.5, zero_point: int = 0, qmin: int = 0, qmax: int = 15) -> QParams:
    return QParams(np.float32(scale), np.int32(zero_point), qmin, qmax)


def constant(number: float) -> ir.Value:
    return ir.Value(name="constant", const_value=ir.tensor(np.float32(number)))


@pytest.mark.parametrize(
    ("dtype", "limits", "expected"),
    [
        ("UINT8", (0, 15), Bounds(None, 15)),
        ("UINT8", (0, 255), Bounds()),
        ("INT8", (-8, 7), Bounds(-8, 7)),
        ("INT8", (-127, 127), Bounds(-127, None)),
    ],
)
def test_only_limits_narrower_than_the_type_need_a_clip(dtype, limits, expected):
    assert Bounds.of_codes(qparams(qmin=limits[0], qmax=limits[1]), ir.DataType[dtype]) == expected


def test_bounds_of_relu_clip_and_others():
    x = ir.Value(name="x")
    assert Bounds.of_clip(ir.node("Relu", [x])) == Bounds(0.0, None)
    assert Bounds.of_clip(ir.node("Clip", [x, constant(-1), constant(6)])) == Bounds(-1.0, 6.0)
    assert Bounds.of_clip(ir.node("Clip", [x, None, constant(6)])) == Bounds(None, 6.0)
    assert Bounds.of_clip(ir.node("Clip", [x, ir.Value(name="computed")])) is None
    assert Bounds.of_clip(ir.node("Clip", [x], {"max": 6.0})) == Bounds(None, 6.0), "before opset 11"
    assert Bounds.of_clip(ir.node("Max", [x, constant(-1)])) is None
    assert Bounds.of_clip(ir.node("Sigmoid", [x])) is None
    assert Bounds.of_clip(ir.node("Relu", [x], domain="custom")) is None


@given(
    numbers=st.lists(st.floats(-20, 20, width=32), min_size=1, max_size=20),
    ends=st.tuples(st.floats(-20, 20, width=32), st.floats(-20, 20, width=32)),
    scale=st.floats(0.015625, 2, width=32),
    zero_point=st.integers(0, 15),
)
def test_limited_codes_are_the_codes_of_clipped_numbers(numbers, ends, scale, zero_point):
    x, (low, high) = np.array(numbers, np.float32), sorted(ends)
    params = qparams(scale, zero_point)

    def quantize(array: np.ndarray, limits: QParams) -> np.ndarray:
        return np.clip(np.rint(array / limits.scale) + limits.zero_point, limits.qmin, limits.qmax)

    limited = Bounds(low, high).limit(params)
    np.testing.assert_array_equal(quantize(x, limited), quantize(np.clip(x, low, high), params))


def test_dequantized_bounds_are_numbers():
    assert Bounds(None, 15).dequantized(qparams(0.5, 3)) == Bounds(None, 6.0)
