"""Writes a quantized model as QDQ ONNX: the float graph with QuantizeLinear and DequantizeLinear where it is quantized.

The file means the same wherever it runs: each DequantizeLinear gives the numbers that the simulation computed with. A
runtime that knows the pattern replaces `DequantizeLinear -> operator -> QuantizeLinear` by an integer kernel.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass

from dipo.export.bounds import Bounds
from dipo.export.onnx_file import raise_opset, save_model
from dipo.graph.plan import QuantizedLayer, QuantizedModel
from dipo.graph.rules import PlatformRules
from dipo.quant.bias import QuantizedBias, quantize_bias
from dipo.quant.spec import QParams

_STORAGE = (ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT16, ir.DataType.UINT16)
"""Narrowest first. ONNX's 4-bit types are not among them: ONNX Runtime 1.32 has no integer kernels for them, and
refuses a model whose 4-bit activations meet 8-bit weights."""

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
    writer = _Writer(exported.graph, rules, quantized.activations)
    nodes = {node.name: node for node in exported.graph}
    for name, layer in quantized.layers.items():
        writer.quantize_layer(nodes[name], layer)
    values = _values_by_name(exported.graph)
    for name in quantized.activations:
        writer.quantize_activation(values[name])
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


def _rescaled(layer: QuantizedLayer, scale: NDArray[np.float32]) -> QuantizedLayer:
    """The layer with its weight rounded to another scale, nowhere smaller than its own."""
    if np.array_equal(scale, layer.qparams.scale):
        return layer
    qparams = dataclasses.replace(layer.qparams, scale=scale)
    new_scale, zero_point = qparams.along(layer.codes.ndim)
    codes = np.rint(layer.weight / new_scale).astype(np.int32) + zero_point
    return dataclasses.replace(layer, codes=codes, qparams=qparams)


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


class _Writer:
    """Puts quantization into one graph, under names that nothing else in it has."""

    def __init__(self, graph: ir.Graph, rules: PlatformRules, activations: Mapping[str, QParams]) -> None:
        self._graph = graph
        self._rules = rules
        self._activations = activations
        self._first = graph[0]
        self._taken: set[str | None] = {*_values_by_name(graph), *(node.name for node in graph)}

    def quantize_layer(self, node: ir.Node, layer: QuantizedLayer) -> None:
        """Put integers in the place of the node's weight, and the quantized layer's bias in the place of the float one.

        Called before any value is quantized: the node's input still has the name that it had in the float graph.
        """
        bias = self._int32_bias(node, layer)
        if bias is not None:
            layer = _rescaled(layer, bias.weight_scale)
            self._replace_by_codes(node, 2, bias.codes, bias.qparams, ir.DataType.INT32)
        elif layer.bias is not None:
            float_bias = node.inputs[2]
            assert float_bias is not None
            float_bias.const_value = ir.tensor(layer.bias, name=float_bias.name)
        if self._rules.int8_kernels:
            layer = _less_zero_point(layer)
        self._replace_by_codes(node, 1, layer.codes, layer.qparams, storage_type(layer.qparams))

    def _int32_bias(self, node: ir.Node, layer: QuantizedLayer) -> QuantizedBias | None:
        """The layer's bias in int32; None where there is none, or the target or a float input wants it float."""
        data = node.inputs[0]
        assert data is not None and data.name is not None
        input_qparams = self._activations.get(data.name)
        if layer.bias is None or input_qparams is None or not self._rules.int32_bias:
            return None
        return quantize_bias(layer.bias, input_scale=input_qparams.scale, weight=layer.qparams)

    def quantize_activation(self, value: ir.Value) -> None:
        """Let every reader of `value`, and the network's output where the rules say so, have it dequantized."""
        name, readers = value.name, tuple(value.uses())
        assert name is not None
        qparams = self._activations[name]
        assert qparams.axis is None
        dtype = storage_type(qparams)
        becomes_output = value.is_graph_output() and self._rules.quantize_outputs
        scale = self._initializer(f"{name}_scale", qparams.scale, ir.DataType.FLOAT)
        zero_point = self._initializer(f"{name}_zero_point", qparams.zero_point, dtype)
        if self._rules.int8_kernels and dtype.bitwidth == 8:
            source, limits = self._absorb_clip(value, qparams)
            codes = self._insert("QuantizeLinear", [source, scale, zero_point], name, "quantized", dtype=dtype)
            codes = self._clip(codes, Bounds.of_codes(limits, dtype), name, dtype)
        else:
            bounds = Bounds.of_codes(qparams, dtype)
            source = self._clip(value, bounds.dequantized(qparams), name, ir.DataType.FLOAT)
            codes = self._insert("QuantizeLinear", [source, scale, zero_point], name, "quantized", dtype=dtype)
        dequantized = self._dequantize([codes, scale, zero_point], name)
        for reader in readers:
            reader.node.replace_input_with(reader.idx, dequantized)
        if becomes_output:
            value.name, dequantized.name, dequantized.shape = self._fresh(f"{name}_float"), name, value.shape
            self._graph.outputs[self._graph.outputs.index(value)] = dequantized

    def _absorb_clip(self, value: ir.Value, qparams: QParams) -> tuple[ir.Value, QParams]:
        """What to quantize in the place of a Relu's or Clip's output, and between which limits: the codes are the same.

        Rounding and saturation are monotone: `quantize(clip(x, a, b)) = clip(quantize(x), quantize(a), quantize(b))`.
        """
        node = value.producer()
        bounds = Bounds.of_clip(node) if node is not None else None
        source = node.inputs[0] if node is not None else None
        if bounds is None or source is None or self._is_quantized(source):
            return value, qparams
        return source, bounds.limit(qparams)

    def _is_quantized(self, value: ir.Value) -> bool:
        """Whether it is, or will be, read dequantized.

        Quantizing such a value again right away is not what ONNX Runtime computes: it merges the two pairs of
        QuantizeLinear and DequantizeLinear into one that gives other codes.
        """
        producer = value.producer()
        return value.name in self._activations or (producer is not None and producer.op_type == "DequantizeLinear")

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

    def _clip(self, value: ir.Value, bounds: Bounds, name: str, dtype: ir.DataType) -> ir.Value:
        """`value` cut off at the bounds; itself where there are none."""
        if bounds == Bounds():
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
