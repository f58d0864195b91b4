"""Shapes behind operators that ONNX does not know."""

from __future__ import annotations

import dataclasses

import onnx_ir as ir
import pytest

from dipo.graph.operators import OPERATORS, Operator
from dipo.graph.passes.infer_shapes import InferShapes


def shapes(model: ir.Model) -> dict[str, list[int | str] | None]:
    InferShapes()(model)
    made = (value for node in model.graph for value in node.outputs)
    return {value.name: None if value.shape is None else list(value.shape.numpy()) for value in made}


@pytest.fixture
def model() -> ir.Model:
    """Two operators of another domain, each before one of ONNX's."""
    return ir.from_onnx_text(
        """<ir_version: 8, opset_import: ["": 18, "com.example": 1]>
        g (float[2,4,6,6] x) => (float[2,4,3,3] y) {
            a = com.example.Squash(x)
            b = MaxPool<kernel_shape=[2,2], strides=[2,2]>(a)
            c = com.example.Squash(b)
            d = Transpose<perm=[0,2,3,1]>(c)
            e = Transpose<perm=[0,3,1,2]>(d)
            y = Relu(e)
        }"""
    )


def test_they_go_through_functions_of_one_tensor(model: ir.Model, squash: Operator) -> None:
    assert shapes(model) == {
        "a": [2, 4, 6, 6], "b": [2, 4, 3, 3], "c": [2, 4, 3, 3], "d": [2, 3, 3, 4], "e": [2, 4, 3, 3],
        "y": [2, 4, 3, 3],
    }  # fmt: skip
    assert {value.dtype for node in model.graph for value in node.outputs} == {ir.DataType.FLOAT}


def test_they_end_at_what_nobody_knows(model: ir.Model) -> None:
    assert shapes(model)["a"] is None


@pytest.fixture
def squash(monkeypatch: pytest.MonkeyPatch) -> Operator:
    operator = dataclasses.replace(OPERATORS["Tanh"], name="Squash", domain="com.example")
    monkeypatch.setitem(OPERATORS._own, operator.key, operator)  # type: ignore[attr-defined]
    return operator
