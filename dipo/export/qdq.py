"""Writes a quantized model as QDQ ONNX: the float graph with QuantizeLinear and DequantizeLinear where it is quantized.

The file means the same wherever it runs: each DequantizeLinear gives the numbers that the simulation computed with. A
runtime that knows the pattern replaces `DequantizeLinear -> operator -> QuantizeLinear` by an integer kernel.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass

from dipo.export.onnx_file import raise_opset, save_model
from dipo.graph.plan import QuantizedLayer, QuantizedModel
from dipo.graph.rules import PlatformRules
from dipo.quant.bias import quantize_bias
from dipo.quant.spec import QParams

_STORAGE = (ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT16, ir.DataType.UINT16)
"""Narrowest first. ONNX's 4-bit types are not among them: ONNX Runtime 1.32 has no integer kernels for them, and refuses
a model whose 4-bit activations meet 8-bit weights."""

_OPSET = 13
"""The first with a scale for each channel."""
_OPSET_16_BITS = 21
"""The first whose QuantizeLinear knows 16-bit types."""


def write_qdq(
    model: ir.Model, quantized: QuantizedModel, path: Path, *, rules: PlatformRules, metadata: Mapping[str, str]
) -> None:
    """Write the quantized model to `path`; nothing is found there before the file is complete and checked.

    Args:
        model: The float graph that was planned and calibrated; it is left as it is.
        quantized: Integer weights and the activations' scales, by the names of that graph. A value that a pass-through
            operator made of a quantized one has its own entry, with the same scale and zero point.
        path: The ONNX file. A model too large for one file keeps its tensors beside it, in `<path>.data`.
        rules: The deploy target's.
        metadata: Goes into the file's `metadata_props`.

    Raises:
        onnx.checker.ValidationError: What came out is not valid ONNX.
    """
    exported = insert_qdq(model, quantized, rules=rules)
    exported.metadata_props.update(metadata)
    save_model(exported, path)


def insert_qdq(model: ir.Model, quantized: QuantizedModel, *, rules: PlatformRules) -> ir.Model:
    """A copy of `model` with integer weights, and QuantizeLinear and DequantizeLinear after each quantized value.

    Every node that reads a quantized value reads it dequantized; a graph output stays float unless the rules say
    otherwise. The opset is raised to 13, or to 21 where something is stored in 16 bits.

    Args:
        model: The float graph; every node and value has a unique name.
        quantized: What to put into it.
        rules: The deploy target's.
    """
    exported = model.clone()
    raise_opset(exported, _required_opset(quantized))
    writer = _Writer(exported.graph, rules)
    nodes = {node.name: node for node in exported.graph}
    for name, layer in quantized.layers.items():
        writer.quantize_layer(nodes[name], layer, quantized.activations)
    values = _values_by_name(exported.graph)
    for name, qparams in quantized.activations.items():
        writer.quantize_activation(values[name], qparams)
    RemoveUnusedNodesPass()(exported)
    return exported


def storage_type(qparams: QParams) -> ir.DataType:
    """The narrowest ONNX type, of 8 or 16 bits, that holds every code; signed where a code is negative."""
    for dtype in _STORAGE:
        limits = np.iinfo(dtype.numpy())
        if (qparams.qmin < 0) == (limits.min < 0) and limits.min <= qparams.qmin and qparams.qmax <= limits.max:
            return dtype
    raise AssertionError(f"no storage type holds the codes {qparams.qmin} to {qparams.qmax}")


def _required_opset(quantized: QuantizedModel) -> int:
    qparams = [*(layer.qparams for layer in quantized.layers.values()), *quantized.activations.values()]
    return _OPSET_16_BITS if any(storage_type(each).bitwidth == 16 for each in qparams) else _OPSET


def _values_by_name(graph: ir.Graph) -> dict[str, ir.Value]:
    values = [*graph.inputs, *graph.initializers.values(), *(value for node in graph for value in node.outputs)]
    return {value.name: value for value in values if value.name}


@dataclass(frozen=True)
class _Bounds:
    """Where numbers or codes are cut off; None at an end where nothing is."""

    low: float | None = None
    high: float | None = None


def _clip_bounds(node: ir.Node) -> _Bounds | None:
    """What a Relu, or a Clip between constants, cuts off; None for any other node."""
    if node.domain != "" or node.op_type not in {"Relu", "Clip"}:
        return None
    if node.op_type == "Relu":
        return _Bounds(low=0.0)
    ends: list[float | None] = [None, None]
    for index, value in enumerate(node.inputs[1:]):
        if value is not None:
            constant = ir.convenience.get_const_tensor(value)
            if constant is None:
                return None
            ends[index] = constant.numpy().item()
    return _Bounds(*ends)


def _absorb_clip(value: ir.Value, qparams: QParams) -> tuple[ir.Value, QParams]:
    """What to quantize in the place of a Relu's or Clip's output, and between which limits: the codes are the same.

    Rounding and saturation are monotone: `quantize(clip(x, a, b)) = clip(quantize(x), quantize(a), quantize(b))`.
    """
    node = value.producer()
    bounds = _clip_bounds(node) if node is not None else None
    if node is None or bounds is None or node.inputs[0] is None:
        return value, qparams

    def code(number: float) -> int:
        nearest = np.rint(np.float32(number) / qparams.scale) + qparams.zero_point
        return int(np.clip(nearest, qparams.qmin, qparams.qmax))

    low = qparams.qmin if bounds.low is None else code(bounds.low)
    high = qparams.qmax if bounds.high is None else code(bounds.high)
    return node.inputs[0], dataclasses.replace(qparams, qmin=low, qmax=high)


def _less_zero_point(layer: QuantizedLayer) -> QuantizedLayer:
    """The same weight with zero point 0, where its codes then fit int8: always below 8 bits."""
    _, zero_point = layer.qparams.along(layer.codes.ndim)
    codes = layer.codes - zero_point
    int8 = np.iinfo(np.int8)
    if not zero_point.any() or codes.min() < int8.min or codes.max() > int8.max:
        return layer
    zeros = np.zeros_like(layer.qparams.zero_point)
    qparams = dataclasses.replace(layer.qparams, zero_point=zeros, qmin=int8.min, qmax=int8.max)
    return dataclasses.replace(layer, codes=codes, qparams=qparams)


def _narrowed(limits: QParams, dtype: ir.DataType) -> _Bounds:
    """The limits that the storage type does not have by itself, in codes."""
    stored = np.iinfo(dtype.numpy())
    return _Bounds(
        low=limits.qmin if limits.qmin > stored.min else None, high=limits.qmax if limits.qmax < stored.max else None
    )


def _dequantized(bounds: _Bounds, qparams: QParams) -> _Bounds:
    """Bounds on codes as bounds on the numbers that they stand for."""
    low, high = (
        None if code is None else float((np.float32(code) - qparams.zero_point) * qparams.scale)
        for code in (bounds.low, bounds.high)
    )
    return _Bounds(low, high)


class _Writer:
    """Puts quantization into one graph, under names that nothing else in it has."""

    def __init__(self, graph: ir.Graph, rules: PlatformRules) -> None:
        self._graph = graph
        self._rules = rules
        self._first = graph[0]
        self._taken: set[str | None] = {*_values_by_name(graph), *(node.name for node in graph)}

    def quantize_layer(self, node: ir.Node, layer: QuantizedLayer, activations: Mapping[str, QParams]) -> None:
        """Put integers in the place of the node's weight, and the quantized layer's bias in the place of the float one.

        Called before any value is quantized: the node's input still has the name that it had in the float graph.
        """
        weight = _less_zero_point(layer) if self._rules.int8_kernels else layer
        self._replace_by_codes(node, 1, weight.codes, weight.qparams, storage_type(weight.qparams))
        if layer.bias is None:
            return
        data, bias = node.inputs[0], node.inputs[2]
        assert data is not None and data.name is not None and bias is not None
        input_qparams = activations.get(data.name)
        if self._rules.int32_bias and input_qparams is not None:
            quantized = quantize_bias(layer.bias, input_scale=input_qparams.scale, weight_scale=layer.qparams.scale)
            self._replace_by_codes(node, 2, quantized.codes, quantized.qparams, ir.DataType.INT32)
        else:
            bias.const_value = ir.tensor(layer.bias, name=bias.name)

    def quantize_activation(self, value: ir.Value, qparams: QParams) -> None:
        """Let every reader of `value`, and the network's output where the rules say so, have it dequantized."""
        name, readers, dtype = value.name, tuple(value.uses()), storage_type(qparams)
        assert name is not None and qparams.axis is None
        becomes_output = value.is_graph_output() and self._rules.quantize_outputs
        if becomes_output:
            value.name = self._fresh(f"{name}_float")
        scale = self._initializer(f"{name}_scale", qparams.scale, ir.DataType.FLOAT)
        zero_point = self._initializer(f"{name}_zero_point", qparams.zero_point, dtype)
        if self._rules.int8_kernels and dtype.bitwidth == 8:
            stays_float = value.is_graph_output() and not becomes_output
            source, limits = (value, qparams) if stays_float else _absorb_clip(value, qparams)
            codes = self._insert("QuantizeLinear", [source, scale, zero_point], name, "quantized", dtype=dtype)
            codes = self._clip(codes, _narrowed(limits, dtype), name, dtype)
        else:
            bounds = _dequantized(_narrowed(qparams, dtype), qparams)
            source = self._clip(value, bounds, name, ir.DataType.FLOAT)
            codes = self._insert("QuantizeLinear", [source, scale, zero_point], name, "quantized", dtype=dtype)
        dequantized = self._dequantize([codes, scale, zero_point], name)
        for reader in readers:
            reader.node.replace_input_with(reader.idx, dequantized)
        if becomes_output:
            dequantized.name = name
            self._graph.outputs[self._graph.outputs.index(value)] = dequantized

    def _replace_by_codes(
        self, node: ir.Node, index: int, codes: NDArray[np.int32], qparams: QParams, dtype: ir.DataType
    ) -> None:
        """Let the node read integers through DequantizeLinear in the place of the initializer that it reads now."""
        value = node.inputs[index]
        assert value is not None and value.name is not None
        stored = self._initializer(f"{value.name}_quantized", codes, dtype)
        scale = self._initializer(f"{value.name}_scale", qparams.scale, ir.DataType.FLOAT)
        # Written where it is zero, too: without it ONNX Runtime leaves a Gemm in float.
        zero_point = self._initializer(f"{value.name}_zero_point", qparams.zero_point, dtype)
        dequantized = self._dequantize([stored, scale, zero_point], value.name, axis=qparams.axis)
        node.replace_input_with(index, dequantized)

    def _dequantize(self, inputs: Sequence[ir.Value], name: str, *, axis: int | None = None) -> ir.Value:
        return self._insert("DequantizeLinear", inputs, name, "dequantized", dtype=ir.DataType.FLOAT, axis=axis)

    def _clip(self, value: ir.Value, bounds: _Bounds, name: str, dtype: ir.DataType) -> ir.Value:
        """`value` cut off at the bounds; itself where there are none."""
        if bounds == _Bounds():
            return value
        low, high = (
            None if end is None else self._initializer(f"{name}_{which}", np.array(end), dtype)
            for which, end in (("min", bounds.low), ("max", bounds.high))
        )
        return self._insert("Clip", [value, low, high], name, "clipped", dtype=dtype)

    def _insert(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        name: str,
        result: str,
        *,
        dtype: ir.DataType,
        axis: int | None = None,
    ) -> ir.Value:
        """The output `<name>_<result>` of a new node `<name>_<op_type>`, put right after what makes its first input."""
        source = inputs[0]
        assert source is not None
        output = ir.Value(name=self._fresh(f"{name}_{result}"), type=ir.TensorType(dtype))
        output.shape = source.shape.copy() if source.shape is not None else None
        attributes = {} if axis is None else {"axis": axis}
        node = ir.node(op_type, inputs, attributes, outputs=[output], name=self._fresh(f"{name}_{op_type}"))
        producer = source.producer()
        if producer is None:
            self._graph.insert_before(self._first, node)
        else:
            self._graph.insert_after(producer, node)
        return output

    def _initializer(self, name: str, array: NDArray[np.generic], dtype: ir.DataType) -> ir.Value:
        name = self._fresh(name)
        tensor = ir.tensor(array.astype(dtype.numpy()), name=name)
        value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(dtype), const_value=tensor)
        self._graph.register_initializer(value)
        return value

    def _fresh(self, name: str) -> str:
        """`name`, with a number behind it where the graph has it already."""
        numbered = (f"{name}_{number}" for number in itertools.count(1))
        free = next(each for each in itertools.chain([name], numbered) if each not in self._taken)
        self._taken.add(free)
        return free
