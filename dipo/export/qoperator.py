"""Writing of a quantized model as QOperator ONNX, with integer operators in place of float ones.

The file computes the same as the QDQ file. The integer operators are ONNX's own (QLinearConv, QLinearMatMul) and those
of ONNX Runtime's domain `com.microsoft`. Operators that have no such kernel, are wider than 8 bits or have a scale for
each block of a weight read their inputs through DequantizeLinear, and their outputs are quantized.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass

from dipo.errors import UserError
from dipo.export.onnx_file import has_external_data, save_model
from dipo.export.qdq import insert_qdq
from dipo.export.storage import FOR_KERNELS, Storage
from dipo.graph import operators
from dipo.graph.accessors import sole_consumer
from dipo.graph.operators import Moves
from dipo.graph.operators.quantized import MICROSOFT
from dipo.graph.plan import QuantizedModel
from dipo.graph.target_spec import TargetSpec


def write_qoperator(
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
        quantized: Integer weights and the activations' scales, as `write_qdq` takes them.
        path: The ONNX file; tensors may be written beside it, as by `write_qdq`.
        rules: The deploy target's specification.
        metadata: Entries for the file's `metadata_props`.
        storage: Types in which codes are stored.

    Raises:
        UserError: The target's biases are float, which integer operators do not take.
        onnx.checker.ValidationError: The result is not valid ONNX.
    """
    exported = insert_qoperators(model, quantized, rules=rules, storage=storage)
    exported.metadata_props.update(metadata)
    save_model(exported, path, external=has_external_data(model))


def insert_qoperators(
    model: ir.Model, quantized: QuantizedModel, *, rules: TargetSpec, storage: Storage = FOR_KERNELS
) -> ir.Model:
    """Return a copy of `model` whose quantized operators compute with integers.

    Args:
        model: The float graph; every node and value has a unique name.
        quantized: Integer weights and the activations' scales.
        rules: The deploy target's specification.
        storage: Types in which codes are stored.

    Raises:
        UserError: The target's biases are float.
    """
    if not rules.int32_bias:
        raise UserError(
            f"export.format=qop: platform {rules.name} keeps biases float, which integer operators do not take: "
            "set export.format=qdq"
        )
    rules = dataclasses.replace(rules, int8_kernels=True)
    exported = insert_qdq(model, _with_sources_of_moves(model, quantized, rules), rules=rules, storage=storage)
    for node in list(exported.graph):
        kernel = _kernel(node)
        if kernel is not None:
            _replace(exported.graph, node, kernel)
    RemoveUnusedNodesPass()(exported)
    if any(node.domain == MICROSOFT for node in exported.graph):
        exported.opset_imports[MICROSOFT] = 1
    return exported


def _with_sources_of_moves(model: ir.Model, quantized: QuantizedModel, rules: TargetSpec) -> QuantizedModel:
    """Return the model with the inputs of operators that only move numbers quantized like their quantized outputs.

    The codes are the same: rounding is monotone, so it commutes with a MaxPool as it does with a Reshape. Network
    outputs that stay float are left out, because they would be rounded too.
    """
    activations = dict(quantized.activations)
    for node in reversed(list(model.graph)):
        source = node.inputs[0] if _moves_codes(node) else None
        qparams = activations.get(node.outputs[0].name or "")
        if source is None or source.name is None or qparams is None or source.const_value is not None:
            continue
        if node.outputs[0].is_graph_output() and not rules.quantize_outputs:
            continue
        if source.name not in activations and sole_consumer(source) is not None:
            activations[source.name] = qparams
    return dataclasses.replace(quantized, activations=activations)


@dataclass(frozen=True)
class _Codes:
    """8-bit codes with their scale and zero point, in the order of integer operators' inputs."""

    codes: ir.Value
    scale: ir.Value
    zero_point: ir.Value

    def __iter__(self) -> Iterator[ir.Value]:
        return iter((self.codes, self.scale, self.zero_point))

    @property
    def grid(self) -> tuple[ir.Value, ir.Value]:
        """Scale and zero point."""
        return self.scale, self.zero_point

    def on_grid_of(self, other: _Codes) -> bool:
        """Return whether both have the same type, scale and zero point."""
        if self.codes.dtype != other.codes.dtype:
            return False
        pairs = zip(self.grid, other.grid, strict=True)
        return all(np.array_equal(_array(mine), _array(its)) for mine, its in pairs)


@dataclass(frozen=True)
class _Kernel:
    """An integer operator that can replace a float one."""

    op_type: str
    inputs: Sequence[ir.Value | None]
    domain: str = MICROSOFT
    attributes: Mapping[str, ir.Attr] = field(default_factory=dict)
    gives_float: bool = False
    """Whether it replaces the float operator alone, not also the QuantizeLinear after it."""


def _moves_codes(node: ir.Node) -> bool:
    """Return whether the node maps its input's codes to some of them, without computing or adding any number."""
    operator = operators.of(node)
    return operator.on_codes and operator.moves is not Moves.PADDED


def _kernel(node: ir.Node) -> _Kernel | None:
    """Return the integer operator that can replace the node; None if there is none."""
    if _moves_codes(node):
        return _move(node)
    name = operators.of(node).qoperator
    if name is None:
        return None
    return _FORMS[name](node) if name in _FORMS else _simple(name, node)


def _read(value: ir.Value | None) -> _Codes | None:
    """Return the 8-bit codes behind a dequantized value; None if it is another value, or has a scale for each block."""
    node = value.producer() if value is not None else None
    if node is None or node.op_type != "DequantizeLinear" or "block_size" in node.attributes:
        return None
    codes, scale, zero_point = node.inputs
    assert codes is not None and scale is not None and zero_point is not None
    return _Codes(codes, scale, zero_point) if codes.dtype in {ir.DataType.INT8, ir.DataType.UINT8} else None


def _read_all(node: ir.Node) -> list[_Codes] | None:
    inputs = [_read(value) for value in node.inputs]
    return None if any(codes is None for codes in inputs) else [codes for codes in inputs if codes is not None]


def _made(node: ir.Node) -> _Codes | None:
    """Return the 8-bit codes of the node's only output if a QuantizeLinear alone reads it; else None."""
    output = node.outputs[0]
    uses = output.uses()
    quantizer = next(iter(uses)).node if len(uses) == 1 else None
    if quantizer is None or quantizer.op_type != "QuantizeLinear" or output.is_graph_output() or len(node.outputs) > 1:
        return None
    _, scale, zero_point = quantizer.inputs
    codes = quantizer.outputs[0]
    assert scale is not None and zero_point is not None
    return _Codes(codes, scale, zero_point) if codes.dtype in {ir.DataType.INT8, ir.DataType.UINT8} else None


def _bias(node: ir.Node) -> tuple[bool, ir.Value | None]:
    """Return whether an integer kernel can add the node's bias, and its int32 codes; None without a bias."""
    value = node.inputs[2] if len(node.inputs) > 2 else None
    if value is None:
        return True, None
    producer = value.producer()
    codes = producer.inputs[0] if producer is not None and producer.op_type == "DequantizeLinear" else None
    return codes is not None and codes.dtype == ir.DataType.INT32, codes


def _conv(node: ir.Node) -> _Kernel | None:
    data, weight, made, (fits, bias) = _read(node.inputs[0]), _read(node.inputs[1]), _made(node), _bias(node)
    if data is None or weight is None or made is None or not fits:
        return None
    return _Kernel("QLinearConv", [*data, *weight, *made.grid, bias], "", node.attributes)


def _gemm(node: ir.Node) -> _Kernel | None:
    """Return a QGemm, which in ONNX Runtime computes floats if it gets no grid for its output."""
    data, weight, (fits, bias) = _read(node.inputs[0]), _read(node.inputs[1]), _bias(node)
    factors = {node.attributes.get_float(name, 1.0) for name in ("alpha", "beta")}
    if data is None or weight is None or not fits or factors != {1.0}:
        return None
    made = _made(node)
    grid: tuple[ir.Value, ...] = made.grid if made is not None else ()
    transposed = {name: node.attributes[name] for name in ("transA", "transB") if name in node.attributes}
    return _Kernel("QGemm", [*data, *weight, bias, *grid], attributes=transposed, gives_float=made is None)


def _matmul(node: ir.Node) -> _Kernel | None:
    read = _read_all(node)
    if read is None or (_array(read[1].scale).ndim and len(read[1].codes.shape or ()) != 2):
        return None
    made = _made(node)
    if made is not None:
        return _Kernel("QLinearMatMul", [*read[0], *read[1], *made.grid], "")
    (a, a_scale, a_zero_point), (b, b_scale, b_zero_point) = read
    inputs = [a, b, a_scale, b_scale, a_zero_point, b_zero_point]
    return _Kernel("MatMulIntegerToFloat", inputs, gives_float=True)


def _concat(node: ir.Node) -> _Kernel | None:
    read, made = _read_all(node), _made(node)
    if read is None or made is None:
        return None
    flat = [value for codes in read for value in codes]
    return _Kernel("QLinearConcat", [*made.grid, *flat], attributes=node.attributes)


def _move(node: ir.Node) -> _Kernel | None:
    """Return the node's own operator on codes, if its output has the grid of its input; else None."""
    read, made = _read(node.inputs[0]), _made(node)
    if read is None or made is None or not read.on_grid_of(made):
        return None
    return _Kernel(node.op_type, [read.codes, *node.inputs[1:]], "", node.attributes)


def _simple(op_type: str, node: ir.Node) -> _Kernel | None:
    """Return an operator of one or two inputs with the float operator's attributes."""
    read, made = _read_all(node), _made(node)
    if read is None or made is None:
        return None
    flat = [value for codes in read for value in codes]
    return _Kernel(op_type, [*flat, *made.grid], attributes=node.attributes)


def _average_pool(node: ir.Node) -> _Kernel | None:
    if any(size != 1 for size in node.attributes.get_ints("dilations", ())):
        return None
    kernel = _simple("QLinearAveragePool", node)
    if kernel is None:
        return None
    known = {name: attribute for name, attribute in kernel.attributes.items() if name != "dilations"}
    return dataclasses.replace(kernel, attributes=known)


_FORMS: dict[str, Callable[[ir.Node], _Kernel | None]] = {
    "QGemm": _gemm,
    "QLinearAveragePool": _average_pool,
    "QLinearConcat": _concat,
    "QLinearConv": _conv,
    "QLinearMatMul": _matmul,
}
"""Builders of integer operators that differ in more than codes from the float ones, by name of the operator."""


def _replace(graph: ir.Graph, node: ir.Node, kernel: _Kernel) -> None:
    """Replace the node, and unless the kernel gives floats the QuantizeLinear after it, by the integer operator."""
    old = node.outputs[0] if kernel.gives_float else next(iter(node.outputs[0].uses())).node.outputs[0]
    new = ir.Value(name=old.name, type=old.type, shape=old.shape)
    replacement = ir.node(kernel.op_type, kernel.inputs, domain=kernel.domain, outputs=[new], name=node.name)
    replacement.attributes.update(kernel.attributes)
    graph.insert_before(node, replacement)
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    producer = old.producer()
    assert producer is not None
    graph.remove([node] if producer is node else [producer, node], safe=True)


def _array(value: ir.Value) -> NDArray[np.generic]:
    assert value.const_value is not None
    return value.const_value.numpy()
