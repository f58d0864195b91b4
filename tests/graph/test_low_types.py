"""Conversions to types of few bits, against ml_dtypes', and where torch leaves them to ONNX Runtime."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch

from dipo.graph.ops.types import HELD
from dipo.graph.torch_ops import bind, supported

OPSET = 25
FLOAT8 = ("FLOAT8E4M3FN", "FLOAT8E4M3FNUZ", "FLOAT8E5M2", "FLOAT8E5M2FNUZ")
FLOATS = np.concatenate([
    np.arange(-520, 520, 0.125),
    np.random.default_rng(0).standard_normal(1000) * 3,
    [np.nan, np.inf, -np.inf, -0.0, 1e6]
]).astype(np.float32)  # fmt: skip
INTEGERS = np.arange(-40, 40, 0.25).astype(np.float32)


def _cast(value: ir.Value, kind: str, **attributes: int) -> ir.Node:
    node = ir.node("Cast", [value], {"to": ir.DataType[kind].value, **attributes}, version=OPSET)
    node.outputs[0].name, node.outputs[0].dtype = f"{value.name}_{kind}", ir.DataType[kind]
    return node


def _input(kind: str = "FLOAT") -> ir.Value:
    return ir.Value(name="x", type=ir.TensorType(ir.DataType[kind]), shape=ir.Shape([4]))


def _in_graph(value: ir.Value, nodes: list[ir.Node]) -> list[ir.Node]:
    ir.Graph([value], nodes[-1].outputs, nodes=nodes, opset_imports={"": OPSET})
    return nodes


@pytest.mark.parametrize("kind", [*HELD, *FLOAT8])
def test_numbers_are_those_of_ml_dtypes(kind: str) -> None:
    numbers = FLOATS if kind.startswith("FLOAT") else INTEGERS
    (node,) = _in_graph(_input(), [_cast(_input(), kind, saturate=0)])
    made = bind(node, OPSET)(torch.from_numpy(numbers))
    assert isinstance(made, torch.Tensor)
    with np.errstate(invalid="ignore"):
        wanted = numbers.astype(ir.DataType[kind].numpy()).astype(np.float32)
    np.testing.assert_array_equal(made.float().numpy(), wanted)


@pytest.mark.parametrize("kind", ["INT4", "FLOAT4E2M1", "FLOAT8E5M2"])
def test_low_types_stay_between_conversions(kind: str) -> None:
    x = _input()
    there = _cast(x, kind)
    back = _cast(there.outputs[0], "FLOAT")
    assert all(map(supported, _in_graph(x, [there, back])))


@pytest.mark.parametrize("kind", ["INT4", "FLOAT4E2M1", "FLOAT8E5M2"])
def test_low_types_that_others_read_are_left_to_onnx_runtime(kind: str) -> None:
    x = _input()
    there = _cast(x, kind)
    between = ir.node("Identity", [there.outputs[0]], version=OPSET)
    between.outputs[0].name, between.outputs[0].dtype = "same", ir.DataType[kind]
    back = _cast(between.outputs[0], "FLOAT")
    assert not any(map(supported, _in_graph(x, [there, between, back])))
    y = _input()
    assert not any(map(supported, _in_graph(y, [_cast(y, kind)])))
    low = _input(kind)
    assert not any(map(supported, _in_graph(low, [_cast(low, "FLOAT")])))
