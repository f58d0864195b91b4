"""A part of the network that torch does not compute, as a torch function that runs it in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import torch

from dipo.errors import UserError
from dipo.graph.accessors import array_of, name_of
from dipo.graph.op_library import library_of, register
from dipo.graph.recurrent import weights_of

_Given = tuple[frozenset[str], tuple[int, ...]]
"""Names of the weights that are given to a region, and the ranks of all that is."""
FATAL = 4
"""Severity from which ONNX Runtime's log is shown; errors raise exceptions."""


@dataclass(eq=False)
class RuntimeRegion:
    """Nodes that run together in ONNX Runtime, on the CPU, as one float function.

    It takes the values of `inputs`, and then of `weights`, by position and returns a tuple of `outputs`. Gradients do
    not pass it. What is no tensor, such as a sequence, goes in and out as ONNX Runtime has it. A session is made at the
    first call, when the types of the inputs are known.

    ONNX Runtime packs weights that are part of a file, and then adds up in another order than where a node computes
    them. So the network's own weights are part of the session, as in a float file, and others are given to it, as
    DequantizeLinear gives them in a quantized one: both compute what the file does, to the last bit.
    """

    model: ir.Model
    """The model that the nodes belong to."""
    nodes: tuple[ir.Node, ...]
    """The nodes, in topological order."""
    inputs: tuple[str, ...]
    """Names of the values that they read from outside, constants excepted."""
    outputs: tuple[str, ...]
    """Names of the values to return."""
    weights: tuple[str, ...] = ()
    """Names of the constants for which others may be given: weights of recurrent nodes."""
    _sessions: dict[_Given, ort.InferenceSession] = field(default_factory=dict, init=False, repr=False)
    """By what is given to it."""
    _compared: tuple[tuple[Any, ...], frozenset[str]] = field(default=((), frozenset()), init=False, repr=False)
    """The last weights that were compared with the network's own, and the names of those that are others."""

    def __call__(self, *values: Any) -> tuple[Any, ...]:
        """Run the nodes.

        Raises:
            RuntimeError: ONNX Runtime does not run them.
        """
        device = next((value.device for value in values if isinstance(value, torch.Tensor)), torch.device("cpu"))
        others = self._others(values[len(self.inputs) :])
        given = zip((*self.inputs, *self.weights), values, strict=True)
        feeds = {name: _to_runtime(value) for name, value in given if name not in self.weights or name in others}
        try:
            # The scan of a Scan node runs only where its shapes can be inferred, which takes the ranks of its inputs.
            key = others, tuple(np.ndim(value) for value in feeds.values() if isinstance(value, np.ndarray))
            if key not in self._sessions:
                self._sessions[key] = self._make_session(feeds)
            made = self._sessions[key].run(list(self.outputs), feeds)
        except UserError:
            raise
        except Exception as error:
            # Of many types, none of which are those that torch raises for the same faults.
            raise RuntimeError(next(iter(str(error).splitlines()), type(error).__name__)) from error
        return tuple(_to_torch(value, device) for value in made)

    def _others(self, weights: tuple[Any, ...]) -> frozenset[str]:
        """Return the names of the weights that are not the network's own; the same tensors are compared once."""
        last, names = self._compared
        if len(last) != len(weights) or any(mine is not its for mine, its in zip(last, weights, strict=True)):
            own = {value.name: value for node in self.nodes for value in weights_of(node)}
            pairs = zip(self.weights, weights, strict=True)
            names = frozenset(name for name, its in pairs if not np.array_equal(array_of(own[name]), _to_runtime(its)))
            self._compared = weights, names
        return names

    def _make_session(self, feeds: dict[str, Any]) -> ort.InferenceSession:
        options = ort.SessionOptions()
        options.log_severity_level = FATAL
        options.intra_op_num_threads = torch.get_num_threads()
        register(options, library_of(self.model))
        types = {name: _type_of(value, ranked=True) for name, value in feeds.items()}
        file = region_proto(self.model, self.nodes, types, self.outputs)
        return ort.InferenceSession(file.SerializeToString(), options, providers=["CPUExecutionProvider"])


def region_proto(
    model: ir.Model, nodes: Sequence[ir.Node], inputs: dict[str, onnx.TypeProto], outputs: Sequence[str]
) -> onnx.ModelProto:
    """Return some nodes of a model as a model of their own.

    Args:
        model: The model.
        nodes: The nodes, in topological order.
        inputs: Types of the values that they read from outside, constants excepted, by name.
        outputs: Names of the values to return.
    """
    read = dict.fromkeys(value for node in nodes for value in node.inputs if value is not None)
    constants = []
    for value in read:
        if value.const_value is not None and value.name not in inputs:
            tensor = ir.serde.serialize_tensor(ir.tensor(value.const_value.numpy(), name=name_of(value)))
            constants.append(tensor)
    graph = onnx.helper.make_graph(
        [ir.serde.serialize_node(node) for node in nodes],
        "region",
        [onnx.ValueInfoProto(name=name, type=kind) for name, kind in inputs.items()],
        [onnx.ValueInfoProto(name=name) for name in outputs],
        constants,
    )
    called = {node.op_identifier() for node in nodes}
    functions = [f for key, f in model.functions.items() if key in called]
    imports = dict(model.opset_imports)
    for function in functions:
        imports[function.domain] = 1
    return onnx.helper.make_model(
        graph,
        opset_imports=[onnx.helper.make_opsetid(domain, version) for domain, version in imports.items()],
        ir_version=max(model.ir_version, _WITH_FUNCTIONS),
        functions=[ir.serde.serialize_function(function) for function in functions],
    )


_WITH_FUNCTIONS = 8
"""First IR version with functions."""


def _to_runtime(value: Any) -> Any:
    return value.detach().cpu().contiguous().numpy() if isinstance(value, torch.Tensor) else value


def _to_torch(value: Any, device: torch.device) -> Any:
    if isinstance(value, (list, type(None))) or np.asarray(value).dtype.kind not in "biuf":
        return value
    return torch.from_numpy(np.asarray(value)).to(device)


def _type_of(value: Any, *, ranked: bool = False) -> onnx.TypeProto:
    """Return the type of a value that ONNX Runtime made or takes; `ranked`, a tensor's with as many free sizes."""
    if isinstance(value, list):
        return onnx.helper.make_sequence_type_proto(_type_of(value[0]))
    kind = onnx.TensorProto.STRING if value.dtype.kind in "OU" else onnx.helper.np_dtype_to_tensor_dtype(value.dtype)
    proto = onnx.TypeProto()
    proto.tensor_type.elem_type = kind
    for _ in range(np.ndim(value) if ranked else 0):
        proto.tensor_type.shape.dim.add()
    if ranked and not np.ndim(value):
        proto.tensor_type.shape.SetInParent()
    return proto
