"""Digests of each layer's integers, its scales and its output's range, read from a QDQ model.

A row stands for a node that has weights or whose output is quantized, or for a quantized input of the network. The
rows are in the order of the graph, so that the first one that differs from another night's is where the two part.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dipo.graph import operators
from dipo.graph.operators import Kind

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True)
class LayerState:
    """The state of one layer."""

    name: str
    """The node's, or the network input's."""
    weights: str | None = None
    """Digest of its integer weights and their zero points; None where it has none."""
    weight_scale: tuple[float, ...] | None = None
    """Scale of each channel, or one for all."""
    bias: str | None = None
    """Digest of its other constants, a bias in most cases, as they are stored."""
    range: str | None = None
    """Name of the quantized value that the node makes; None where its output is not quantized."""
    act_scale: float | None = None
    act_zero_point: int | None = None
    cosine: float | None = None
    """Cosine of the layer's output with the float network's, where the job's report has it."""
    sqnr_db: float | None = None


def read_layers(path: Path, errors: Mapping[str, tuple[float, float]]) -> tuple[LayerState, ...]:
    """Read the rows of a QDQ model.

    Args:
        path: The ONNX file.
        errors: Cosine and SQNR of layers, by name.
    """
    import onnx_ir as ir

    graph = ir.load(path).graph
    ranges = _ranges(graph)
    rows = []
    for name, node in [*((str(value.name), None) for value in graph.inputs), *((str(n.name), n) for n in graph)]:
        arrays = _arrays(node) if node is not None else {}
        first, *others = ranges.get((name, node is None)) or [None]
        cosine, sqnr_db = errors.get(name, (None, None)) if node is not None else (None, None)
        if not arrays and first is None and cosine is None:
            continue
        rows.append(
            LayerState(
                name,
                weights=_digest(arrays.get("weights")),
                weight_scale=tuple(float(scale) for scale in arrays["scale"][0].ravel()) if "scale" in arrays else None,
                bias=_digest(arrays.get("bias")),
                cosine=cosine,
                sqnr_db=sqnr_db,
                **(first or {}),
            )
        )
        rows += [LayerState(str(other["range"]), **other) for other in others if other is not None]
    return tuple(rows)


def read_arrays(path: Path, name: str) -> dict[str, list[NDArray[Any]]]:
    """Read a node's constants, as stored: `weights`, their `zero_point` and `scale`, `bias`; some may be absent."""
    import onnx_ir as ir

    node = next((node for node in ir.load(path).graph if node.name == name), None)
    return {} if node is None else _arrays(node, split=True)


def same_weights(arrays: Mapping[str, list[NDArray[Any]]], digest: str | None) -> bool:
    """Return whether arrays of `read_arrays` are the weights of a row."""
    return _digest([*arrays.get("weights", []), *arrays.get("zero_point", [])]) == digest


def same_bias(arrays: Mapping[str, list[NDArray[Any]]], digest: str | None) -> bool:
    """Return whether arrays of `read_arrays` have the bias of a row."""
    return _digest(arrays.get("bias")) == digest


def _arrays(node: ir.Node, *, split: bool = False) -> dict[str, list[NDArray[Any]]]:
    """Return a node's constants by role, if any is quantized; zero points are among the weights unless `split`."""
    found: dict[str, list[NDArray[Any]]] = {}
    if operators.of(node).kind is Kind.QUANTIZED:
        return found
    points: list[NDArray[Any]] = []
    for value in node.inputs:
        stored = _dequantized(value)
        if stored is not None:
            codes, scale, *zero_point = stored
            if codes.dtype == np.int32:
                found.setdefault("bias", []).append(codes)
                continue
            found.setdefault("weights", []).append(codes)
            found.setdefault("scale", []).append(scale)
            points += zero_point
        elif value is not None and value.const_value is not None:
            found.setdefault("bias", []).append(value.const_value.numpy())
    if "weights" not in found:
        return {}
    found.setdefault("zero_point" if split else "weights", []).extend(points)
    return found


def _dequantized(value: ir.Value | None) -> list[NDArray[Any]] | None:
    """Return codes, scale and zero point of a value that DequantizeLinear computes from constants."""
    node = value.producer() if value is not None else None
    if node is None or node.op_type != "DequantizeLinear" or node.inputs[0] is None:
        return None
    if node.inputs[0].const_value is None:
        return None
    return [each.const_value.numpy() for each in node.inputs if each is not None and each.const_value is not None]


def _ranges(graph: ir.Graph) -> dict[tuple[str, bool], list[dict[str, Any] | None]]:
    """Return the ranges by name of the node, or of the network's input (True), whose values they quantize."""
    found: dict[tuple[str, bool], list[dict[str, Any] | None]] = {}
    for node in graph:
        if node.op_type != "QuantizeLinear" or node.inputs[0] is None:
            continue
        scale, zero_point = (each.const_value if each is not None else None for each in (*node.inputs, None)[1:3])
        if scale is None or scale.size != 1:
            continue
        state = {
            "range": str(scale.name).removesuffix("_scale"),
            "act_scale": float(scale.numpy().item()),
            "act_zero_point": int(zero_point.numpy().item()) if zero_point is not None else 0,
        }
        found.setdefault(_owner(node.inputs[0]), []).append(state)
    return found


def _owner(value: ir.Value) -> tuple[str, bool]:
    """Find a value's source: the node before activation functions and reshapes ahead of QuantizeLinear, or an input."""
    *_, (name, is_input) = _makers(value)
    return name, is_input


def _makers(value: ir.Value) -> Iterator[tuple[str, bool]]:
    """Yield a value's producer, and those before it while each has one float input alone and no weights."""
    producer = value.producer()
    if producer is None:
        yield str(value.name), True
        return
    yield str(producer.name), False
    computed = [each for each in producer.inputs if each is not None and each.const_value is None]
    if len(computed) != 1 or _has_weights(producer):
        return
    before = computed[0].producer()
    if before is not None and before.op_type != "DequantizeLinear":
        yield from _makers(computed[0])


def _has_weights(node: ir.Node) -> bool:
    """Return whether a node reads an array of float constants: a layer that stays float, not an activation function."""
    constants = [each.const_value for each in node.inputs if each is not None and each.const_value is not None]
    return any(each.size > 1 and each.dtype.is_floating_point() for each in constants)


def _digest(arrays: list[NDArray[Any]] | None) -> str | None:
    """Return a digest of the arrays' types, shapes and bytes; None where there are no arrays."""
    if not arrays:
        return None
    digest = hashlib.blake2b(digest_size=16)
    for array in arrays:
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
