"""Networks of one node: in torch, and in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import torch
from onnx import helper, numpy_helper

from dipo.graph.torch_ops import bind


def to_tensor(array: np.ndarray) -> torch.Tensor:
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(np.array(array))


def read(proto: onnx.ModelProto, constants: Mapping[str, np.ndarray]) -> tuple[ir.Node, int]:
    """The model's only node, with `constants` as initializers, and the opset."""
    model = ir.serde.deserialize_model(proto)
    (node,) = model.graph
    for value in node.inputs:
        if value is not None and value.name in constants:
            value.const_value = ir.tensor(constants[value.name])
    return node, model.opset_imports[""]


def run(node: ir.Node, opset: int, feed: Mapping[str, np.ndarray]) -> tuple[torch.Tensor, ...]:
    inputs = [None if value is None else to_tensor(feed[value.name]) for value in node.inputs]
    before = [None if x is None else x.clone() for x in inputs]
    result = bind(node, opset)(*inputs)
    assert all(x is None or torch.equal(x, y) or x.isnan().any() for x, y in zip(inputs, before, strict=True))
    return result if isinstance(result, tuple) else (result,)


def assert_same(results: Sequence[torch.Tensor], expected: Iterable[np.ndarray], rtol: float, atol: float) -> None:
    for result, array in zip(results, expected, strict=True):
        wanted = to_tensor(array)
        assert result.dtype == wanted.dtype
        assert result.shape == wanted.shape
        torch.testing.assert_close(result, wanted, rtol=rtol, atol=atol, equal_nan=True)


def make(
    op: str,
    inputs: Mapping[str, np.ndarray],
    *,
    constants: Sequence[str] = (),
    opset: int = 18,
    num_outputs: int = 1,
    **attributes: Any,
) -> onnx.ModelProto:
    """A model of one node; an input named with a leading underscore is left out."""
    outputs = [f"y{i}" for i in range(num_outputs)]
    names = ["" if name.startswith("_") else name for name in inputs]
    graph = helper.make_graph(
        [helper.make_node(op, names, outputs, name="the_node", **attributes)],
        "graph",
        [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
            for name, array in inputs.items()
            if name in names and name not in constants
        ],
        [helper.make_empty_tensor_value_info(name) for name in outputs],
        [numpy_helper.from_array(inputs[name], name) for name in constants],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def onnxruntime(proto: onnx.ModelProto, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {value.name: inputs[value.name] for value in session.get_inputs()})


def check(op: str, inputs: Mapping[str, np.ndarray], *, rtol: float = 1e-4, atol: float = 1e-5, **options: Any) -> None:
    """One node in torch and in ONNX Runtime."""
    proto = make(op, inputs, **options)
    model = ir.serde.deserialize_model(proto)
    (node,) = model.graph
    results = run(node, model.opset_imports[""], inputs)
    assert_same(results, onnxruntime(proto, inputs), rtol, atol)


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)
