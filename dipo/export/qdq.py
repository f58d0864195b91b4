"""Writing of a quantized model as QDQ ONNX: the float graph with QuantizeLinear and DequantizeLinear inserted.

The file computes the same everywhere: each DequantizeLinear yields the numbers of the simulation. A runtime that knows
the pattern replaces `DequantizeLinear -> operator -> QuantizeLinear` by an integer kernel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass

from dipo.export.bounds import Bounds
from dipo.export.onnx_file import has_external_data, raise_opset, save_model
from dipo.export.storage import (
    BLOCK_OPSET,
    FOR_KERNELS,
    Storage,
    less_zero_point,
    required_opset,
    storage_type,
    weight_types,
)
from dipo.graph.accessors import array_of
from dipo.graph.constants import fresh_name
from dipo.graph.plan import QuantizedLayer, QuantizedModel
from dipo.graph.target_spec import TargetSpec
from dipo.quant.bias import QuantizedBias, quantize_bias
from dipo.quant.spec import QParams

__all__ = ["insert_qdq", "storage_type", "write_qdq"]


def write_qdq(
    model: ir.Model,
    quantized: QuantizedModel,
    path: Path,
    *,
    rules: TargetSpec,
    metadata: Mapping[str, str],
    storage: Storage = FOR_KERNELS,
) -> None:
    """Write the quantized model to `path`, which appears only once the file is complete and checked.

    Args:
        model: The float graph that was planned and calibrated; it is not changed.
        quantized: Integer weights and the activations' scales, by the names of that graph. The output of a pass-through
            operator on a quantized value has its own entry, with the same scale and zero point.
        path: The ONNX file. Tensors of a model that had them in other files, or is too large for one file, are written
            beside it, to `<path>.data`.
        rules: The deploy target's specification.
        metadata: Entries for the file's `metadata_props`.
        storage: Types in which codes are stored.

    Raises:
        onnx.checker.ValidationError: The result is not valid ONNX.
    """
    exported = insert_qdq(model, quantized, rules=rules, storage=storage)
    exported.metadata_props.update(metadata)
    save_model(exported, path, external=has_external_data(model))


def insert_qdq(
    model: ir.Model, quantized: QuantizedModel, *, rules: TargetSpec, storage: Storage = FOR_KERNELS
) -> ir.Model:
    """Return a copy of `model` with integer weights, and each quantized value quantized and dequantized.

    Every node that reads a quantized value reads it dequantized; a graph output stays float unless the rules say
    otherwise. The opset is raised to 13; to 21 if anything is stored in 4 or 16 bits or has a scale for each block of a
    weight; to 25 if anything is stored in 2 bits.

    Args:
        model: The float graph; every node and value has a unique name.
        quantized: Integer weights and the activations' scales.
        rules: The deploy target's specification.
        storage: Types in which codes are stored.
    """
    exported = model.clone()
    nodes = {node.name: node for node in exported.graph}
    types = {name: weight_types(nodes[name], quantized, rules, storage) for name in quantized.layers}
    stored = [dtype for pair in types.values() for dtype in pair]
    stored += [storage_type(qparams, storage.activations) for qparams in quantized.activations.values()]
    stored += [storage_type(weight.qparams) for weight in quantized.recurrent.values()]
    blocks = any(layer.qparams.blocks is not None for layer in quantized.layers.values())
    raise_opset(exported, max(required_opset(stored), BLOCK_OPSET if blocks else 0))
    nodes = {node.name: node for node in exported.graph}
    writer = _Writer(exported.graph, rules, quantized.activations, storage)
    for name, layer in quantized.layers.items():
        writer.quantize_layer(nodes[name], layer, *types[name])
    for name, weight in quantized.recurrent.items():
        writer.store(exported.graph.initializers[name], weight)
    values = _values_by_name(exported.graph)
    for name in quantized.activations:
        writer.quantize_activation(values[name])
    RemoveUnusedNodesPass()(exported)
    return exported


def _values_by_name(graph: ir.Graph) -> dict[str, ir.Value]:
    values = [*graph.inputs, *graph.initializers.values(), *(value for node in graph for value in node.outputs)]
    return {value.name: value for value in values if value.name}


class _Writer:
    """An editor that inserts quantization into one graph, under unique names."""

    def __init__(
        self, graph: ir.Graph, rules: TargetSpec, activations: Mapping[str, QParams], storage: Storage
    ) -> None:
        self._graph = graph
        self._rules = rules
        self._activations = activations
        self._storage = storage
        self._first = graph[0]
        self._taken: set[str | None] = {*_values_by_name(graph), *(node.name for node in graph)}
        self._zeros: dict[tuple[ir.DataType, tuple[int, ...]], ir.Value] = {}
        self._parameters: dict[tuple[str, ir.DataType], ir.Value] = {}

    def quantize_layer(self, node: ir.Node, layer: QuantizedLayer, in_file: ir.DataType, dtype: ir.DataType) -> None:
        """Replace the node's weight by integer codes, and its bias by that of the quantized layer.

        The weight is stored in type `in_file`, and DequantizeLinear reads it in type `dtype`, which may be the same.

        Called before any value is quantized, while the node's input still has its name of the float graph.
        """
        bias = self._int32_bias(node, layer)
        if bias is not None:
            layer = layer.with_scale(bias.weight_scale)
            self._replace_by_codes(node, 2, self._stored(node, 2, bias.codes, ir.DataType.INT32), bias.qparams)
        elif layer.bias is not None:
            float_bias = node.inputs[2]
            assert float_bias is not None
            float_bias.const_value = ir.tensor(layer.bias, name=float_bias.name)
        for_kernels = self._rules.int8_kernels and layer.qparams.blocks is None and dtype.bitwidth == 8
        read = less_zero_point(layer) if for_kernels else layer
        if read is not layer:
            dtype = ir.DataType.INT8
        if in_file.bitwidth < dtype.bitwidth:
            codes = self._widened(node, layer, read, in_file, dtype)
        else:
            codes = self._stored(node, 1, read.codes, dtype)
        self._replace_by_codes(node, 1, codes, read.qparams)

    def _widened(
        self, node: ir.Node, layer: QuantizedLayer, read: QuantizedLayer, in_file: ir.DataType, dtype: ir.DataType
    ) -> ir.Value:
        """Return the codes of `read` in `dtype`, computed from those of `layer`, stored in a narrower type."""
        stored = self._stored(node, 1, layer.codes, in_file)
        name = node.inputs[1].name if node.inputs[1] is not None else None
        assert name is not None
        widened = self._insert("Cast", [stored], name, "widened", dtype=dtype, to=dtype.value)
        if read is layer:
            return widened
        _, zero_point = layer.qparams.broadcast_to(layer.codes.ndim)
        shift = self._parameter(f"{name}_shift", zero_point, dtype)
        return self._insert("Sub", [widened, shift], name, "shifted", dtype=dtype)

    def store(self, value: ir.Value, weight: QuantizedLayer) -> None:
        """Let all nodes that read an initializer read dequantized integer codes in its place."""
        name, dtype = value.name, storage_type(weight.qparams)
        assert name is not None
        codes = self._initializer(f"{name}_quantized", weight.codes, dtype)
        dequantized = self._dequantized(name, codes, weight.qparams)
        for reader in tuple(value.uses()):
            reader.node.replace_input_with(reader.idx, dequantized)

    def _int32_bias(self, node: ir.Node, layer: QuantizedLayer) -> QuantizedBias | None:
        """Return the layer's bias in int32.

        None if there is none, if it stays float because of the target or a float input, or if the blocks of a channel
        leave no common scale for the bias.
        """
        data = node.inputs[0]
        assert data is not None and data.name is not None
        input_qparams = self._activations.get(data.name)
        if layer.bias is None or input_qparams is None or not self._rules.int32_bias:
            return None
        if layer.qparams.blocks is not None:
            return None
        return quantize_bias(layer.bias, input_scale=input_qparams.scale, weight=layer.qparams)

    def quantize_activation(self, value: ir.Value) -> None:
        """Replace `value`, for all its readers and, if the rules say so, as graph output, by its dequantized codes."""
        name, readers = value.name, tuple(value.uses())
        assert name is not None
        qparams = self._activations[name]
        assert qparams.axis is None
        dtype = storage_type(qparams, self._storage.activations)
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
        dequantized = self._dequantize([codes, scale, zero_point], name, qparams)
        for reader in readers:
            reader.node.replace_input_with(reader.idx, dequantized)
        if becomes_output:
            value.name, dequantized.name, dequantized.shape = self._fresh(f"{name}_float"), name, value.shape
            self._graph.outputs[self._graph.outputs.index(value)] = dequantized

    def _absorb_clip(self, value: ir.Value, qparams: QParams) -> tuple[ir.Value, QParams]:
        """Return the input of a Relu or Clip with limits on codes, which quantizes to the same codes as its output.

        Rounding and saturation are monotone: `quantize(clip(x, a, b)) = clip(quantize(x), quantize(a), quantize(b))`.
        """
        node = value.producer()
        bounds = Bounds.of_clip(node) if node is not None else None
        source = node.inputs[0] if node is not None else None
        if bounds is None or source is None or self._is_quantized(source):
            return value, qparams
        return source, bounds.limit(qparams)

    def _is_quantized(self, value: ir.Value) -> bool:
        """Return whether the value is, or will be, read dequantized.

        Such a value must not be quantized again right away: ONNX Runtime merges the two pairs of QuantizeLinear and
        DequantizeLinear into one that yields other codes.
        """
        producer = value.producer()
        return value.name in self._activations or (producer is not None and producer.op_type == "DequantizeLinear")

    def _stored(self, node: ir.Node, index: int, codes: NDArray[np.int32], dtype: ir.DataType) -> ir.Value:
        """Return an initializer with codes, named after the one that the node reads at this index."""
        value = node.inputs[index]
        assert value is not None and value.name is not None
        return self._parameter(f"{value.name}_quantized", codes, dtype)

    def _replace_by_codes(self, node: ir.Node, index: int, codes: ir.Value, qparams: QParams) -> None:
        """Replace the initializer that the node reads at this index by dequantized integer codes."""
        value = node.inputs[index]
        assert value is not None and value.name is not None
        node.replace_input_with(index, self._dequantized(value.name, codes, qparams))

    def _dequantized(self, name: str, codes: ir.Value, qparams: QParams) -> ir.Value:
        """Return the numbers of a parameter's integer codes."""
        assert codes.dtype is not None
        scale = self._parameter(f"{name}_scale", qparams.scale, ir.DataType.FLOAT)
        # Written even if it is zero: without it ONNX Runtime leaves a Gemm in float.
        zero_point = self._zero_point(name, qparams, codes.dtype)
        return self._dequantize([codes, scale, zero_point], name, qparams)

    def _zero_point(self, name: str, qparams: QParams, dtype: ir.DataType) -> ir.Value:
        """Return an initializer with the zero points; arrays of zeros are shared by type and shape."""
        if qparams.axis is None or qparams.zero_point.any():
            return self._parameter(f"{name}_zero_point", qparams.zero_point, dtype)
        shape = qparams.zero_point.shape
        if (dtype, shape) not in self._zeros:
            name = f"zero_point_{dtype.name.lower()}_{'x'.join(map(str, shape))}"
            self._zeros[dtype, shape] = self._initializer(name, qparams.zero_point, dtype)
        return self._zeros[dtype, shape]

    def _dequantize(self, inputs: Sequence[ir.Value], name: str, qparams: QParams) -> ir.Value:
        attributes = {} if qparams.axis is None else {"axis": qparams.axis}
        if qparams.blocks is not None:
            attributes = {"axis": qparams.blocks.axis, "block_size": qparams.blocks.size}
        return self._insert("DequantizeLinear", inputs, name, "dequantized", dtype=ir.DataType.FLOAT, **attributes)

    def _clip(self, value: ir.Value, bounds: Bounds, name: str, dtype: ir.DataType) -> ir.Value:
        """Return `value` clipped to the bounds; `value` itself if there are none."""
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
        **attributes: int,
    ) -> ir.Value:
        """Insert node `<name>_<op_type>` after the producer of its first input; return its output `<name>_<result>`."""
        source = inputs[0]
        assert source is not None
        output = ir.Value(name=self._fresh(f"{name}_{result}"), type=ir.TensorType(dtype))
        output.shape = source.shape.copy() if source.shape is not None else None
        node = ir.node(op_type, inputs, attributes, outputs=[output], name=self._fresh(f"{name}_{op_type}"))
        producer = source.producer()
        if producer is None:
            self._graph.insert_before(self._first, node)
        else:
            self._graph.insert_after(producer, node)
        return output

    def _parameter(self, name: str, array: NDArray[np.generic], dtype: ir.DataType) -> ir.Value:
        """Return an initializer of a layer, the same for all layers that share it."""
        shared = self._parameters.get((name, dtype))
        if shared is None:
            self._parameters[name, dtype] = shared = self._initializer(name, array, dtype)
        elif not np.array_equal(array_of(shared), array.astype(dtype.numpy())):
            # Layers share a float bias whose int32 codes differ, because their inputs have other scales.
            return self._initializer(name, array, dtype)
        return shared

    def _initializer(self, name: str, array: NDArray[np.generic], dtype: ir.DataType) -> ir.Value:
        name = self._fresh(name)
        tensor = ir.tensor(array.astype(dtype.numpy()), name=name)
        value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(dtype), const_value=tensor)
        self._graph.register_initializer(value)
        return value

    def _fresh(self, name: str) -> str:
        """Return `name`, followed by a number if the graph has it already, and reserve it."""
        free = fresh_name(name, self._taken, first=1)
        self._taken.add(free)
        return free
