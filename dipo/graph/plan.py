"""Which tensors are quantized, and how: graph x platform rules x the user's overrides."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from dipo.errors import UserError
from dipo.graph.load import array_of, bias_of, is_layer, name_of, node_name, weight_axis, weight_of
from dipo.graph.rules import PlatformRules
from dipo.quant.spec import QParams, QuantSpec

PASS_THROUGH = frozenset(
    {"MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Identity", "Pad"}
)
"""Operators whose output holds values of their input (and zeros) alone: what is quantized before is so behind."""


@dataclass(frozen=True)
class LayerPlan:
    """A layer with weights: Conv, ConvTranspose, Gemm or MatMul with a constant side."""

    node: str
    """Name of the node."""
    weight: str
    """Name of its weight, an initializer that no other node uses."""
    bias: str | None
    """Name of its bias, an initializer that no other node uses; None for a MatMul, which has none."""
    axis: int
    """Axis of the weight that counts output channels."""
    spec: QuantSpec


@dataclass(frozen=True)
class Plan:
    """What is quantized. A value in `activations` is quantized for every node that reads it, not as a graph output."""

    layers: dict[str, LayerPlan]
    """By name of the node, in topological order."""
    activations: dict[str, QuantSpec]
    """By name of the value, in topological order."""
    shared: dict[str, str]
    """Values that pass-through operators made of a quantized one, and that one: they have its scale and zero point."""

    def input_of(self, node: ir.Node) -> str | None:
        """The quantized value whose scale a layer's input has; None where the input is float."""
        name = name_of(node.inputs[0]) if node.inputs[0] is not None else ""
        name = self.shared.get(name, name)
        return name if name in self.activations else None


@dataclass(frozen=True, eq=False)
class QuantizedLayer:
    """A layer's integer weights and its float bias."""

    codes: NDArray[np.int32]
    """Shaped like the weight."""
    qparams: QParams
    bias: NDArray[np.float32] | None

    @property
    def weight(self) -> NDArray[np.float32]:
        """The weight that the codes stand for."""
        scale, zero_point = self.qparams.along(self.codes.ndim)
        return ((self.codes - zero_point) * scale).astype(np.float32)


class Found(Protocol):
    """A part of a quantized model."""

    @property
    def layers(self) -> dict[str, QuantizedLayer]:
        """By name of the node."""
        ...

    @property
    def activations(self) -> dict[str, QParams]:
        """By name of the value."""
        ...


@dataclass(frozen=True)
class QuantizedModel:
    """What calibration and reconstruction found: all that an export writes."""

    layers: dict[str, QuantizedLayer]
    """By name of the node."""
    activations: dict[str, QParams]
    """By name of the value."""

    def having(self, found: Iterable[Found], plan: Plan) -> QuantizedModel:
        """The model with what was found for some of its layers and activations, and for those that share scales."""
        layers, activations = dict(self.layers), dict(self.activations)
        for part in found:
            layers |= part.layers
            activations |= part.activations
        shared = {value: activations[source] for value, source in plan.shared.items()}
        return QuantizedModel(layers, activations | shared)


def make_plan(
    model: ir.Model,
    *,
    rules: PlatformRules,
    weight_bits: int,
    act_bits: int,
    weight_per_channel: bool | None = None,
    weight_symmetric: bool | None = None,
    first_last_bits: int | None = 8,
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
    skip: Sequence[str] = (),
) -> Plan:
    """Decides what is quantized.

    Activations take `act_bits` where a layer multiplies them. Those that only additions, poolings and the like read
    take at least 8: they cost the device no multiplier and the network much accuracy.

    Args:
        model: A model that `graph.load` has normalised.
        rules: What the target takes.
        weight_bits: Width of weights.
        act_bits: Width of activations.
        weight_per_channel: One scale for each output channel; None as the target has it.
        weight_symmetric: None as the target has it; where it takes both, symmetric at 8 bits and asymmetric below.
        first_last_bits: Least width of the first and last layers and of what they read; None for no exception.
        overrides: Pattern of layers' names -> `weight_bits`, `act_bits`, `weight_per_channel`, `weight_symmetric`.
        skip: Patterns of node names that stay float.

    Raises:
        UserError: The target cannot do what was asked, or a pattern matches nothing.
    """
    overrides = overrides or {}
    layer_names = [node_name(node) for node in model.graph if is_layer(node)]
    _check_patterns("overrides", overrides, layer_names, layer_names)
    _check_patterns("skip", skip, [node_name(node) for node in model.graph], layer_names)
    _check_rules(rules, weight_per_channel=weight_per_channel, weight_symmetric=weight_symmetric, overrides=overrides)
    edge = _edge_layers(model)
    layers: dict[str, LayerPlan] = {}
    input_bits: dict[str, int] = {}
    readers: dict[str, list[ir.Node]] = {}
    for node in model.graph:
        if node.op_type not in rules.operators or _matches(node, skip):
            continue
        for value in _quantized_inputs(node, rules):
            readers.setdefault(name_of(value), []).append(node)
        if not is_layer(node):
            continue
        least = first_last_bits or 0 if node_name(node) in edge else 0
        wish: dict[str, Any] = {
            "weight_bits": max(weight_bits, least),
            "act_bits": max(act_bits, least),
            "weight_per_channel": weight_per_channel,
            "weight_symmetric": weight_symmetric,
        }
        for pattern, values in overrides.items():
            wish |= values if fnmatchcase(node_name(node), pattern) else {}
        layers[node_name(node)] = _layer_plan(node, rules, wish)
        read = name_of(node.inputs[0]) if node.inputs[0] is not None else ""
        input_bits[read] = max(wish["act_bits"], input_bits.get(read, 0))
    return _with_activations(model, rules, layers, readers, input_bits, least_bits=max(act_bits, 8))


def _with_activations(
    model: ir.Model,
    rules: PlatformRules,
    layers: dict[str, LayerPlan],
    readers: Mapping[str, Sequence[ir.Node]],
    input_bits: Mapping[str, int],
    *,
    least_bits: int,
) -> Plan:
    activations: dict[str, QuantSpec] = {}
    shared: dict[str, str] = {}
    values = [*model.graph.inputs, *(value for node in model.graph for value in node.outputs)]
    for value in values:
        name = value.name
        wanted = rules.quantize_outputs and value.is_graph_output()
        if not name or value.const_value is not None or not (name in readers or wanted):
            continue
        source = _pass_through_source(value, readers)
        if source is not None:
            shared[name] = shared.get(source, source)
            continue
        activations[name] = QuantSpec(
            bits=_bits_of(value, input_bits, least_bits), signed=rules.act_signed, symmetric=rules.act_symmetric
        )
    return Plan(layers=layers, activations=activations, shared=shared)


def _bits_of(value: ir.Value, input_bits: Mapping[str, int], least_bits: int) -> int:
    """The width that the layers reading the value want, through pass-through operators too; else `least_bits`."""
    wanted = [input_bits[name_of(value)]] if name_of(value) in input_bits else []
    for use in value.uses():
        if use.node.op_type in PASS_THROUGH:
            below = _bits_of(use.node.outputs[0], input_bits, 0)
            wanted += [below] if below else []
    return max(wanted, default=least_bits)


def _pass_through_source(value: ir.Value, readers: Mapping[str, object]) -> str | None:
    """The quantized value that this one is a rearrangement of."""
    node = value.producer()
    while node is not None and node.op_type in PASS_THROUGH and node.inputs[0] is not None:
        if node.op_type == "Pad" and not _pads_with_zeros(node):
            return None
        if name_of(node.inputs[0]) in readers:
            return name_of(node.inputs[0])
        node = node.inputs[0].producer()
    return None


def _pads_with_zeros(node: ir.Node) -> bool:
    """Or with values of its input: both have a code on the input's grid."""
    if node.attributes.get_string("mode", "constant") != "constant":
        return True
    value = node.inputs[2] if len(node.inputs) > 2 else None
    if value is not None:
        return value.const_value is not None and not array_of(value).any()
    return node.attributes.get_float("value", 0.0) == 0


def _quantized_inputs(node: ir.Node, rules: PlatformRules) -> list[ir.Value]:
    """The activations that a quantized kernel of this node reads as integers."""
    data = node.inputs[:1] if is_layer(node) or node.op_type in PASS_THROUGH else node.inputs
    values = [value for value in data if value is not None and value.const_value is None and _is_float(value)]
    if rules.fuse_residual_add and node.op_type == "Add" and len(values) == 2:
        fused = next((v for v in reversed(values) if _only_feeds_a_sum(v)), None)
        values = [value for value in values if value is not fused]
    return values


def _only_feeds_a_sum(value: ir.Value) -> bool:
    producer = value.producer()
    return producer is not None and is_layer(producer) and len(value.uses()) == 1


def _is_float(value: ir.Value) -> bool:
    return value.dtype is None or value.dtype == ir.DataType.FLOAT


def _layer_plan(node: ir.Node, rules: PlatformRules, wish: Mapping[str, Any]) -> LayerPlan:
    weight, bias = weight_of(node), bias_of(node)
    assert weight is not None
    symmetric = wish["weight_symmetric"]
    if symmetric is None:
        symmetric = rules.weight_symmetric if rules.weight_symmetric is not None else wish["weight_bits"] >= 8
    per_channel = wish["weight_per_channel"]
    spec = QuantSpec(
        bits=wish["weight_bits"],
        signed=symmetric,
        symmetric=symmetric,
        per_channel=rules.weight_per_channel if per_channel is None else per_channel,
    )
    return LayerPlan(
        node=node_name(node),
        weight=name_of(weight),
        bias=None if bias is None else name_of(bias),
        axis=weight_axis(node),
        spec=spec,
    )


def _edge_layers(model: ir.Model) -> set[str]:
    """Layers that read a network input, or make a network output, with no other layer between."""
    last: set[str] = set()
    reaches_output = set(model.graph.outputs)
    for node in reversed(list(model.graph)):
        if any(value in reaches_output for value in node.outputs):
            if is_layer(node):
                last.add(node_name(node))
            else:
                reaches_output.update(value for value in node.inputs if value is not None)
    first: set[str] = set()
    from_input = set(model.graph.inputs)
    for node in model.graph:
        if any(value in from_input for value in node.inputs if value is not None):
            if is_layer(node):
                first.add(node_name(node))
            else:
                from_input.update(value for value in node.outputs if _is_float(value))
    return first | last


def _matches(node: ir.Node, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(node_name(node), pattern) for pattern in patterns)


def _check_patterns(option: str, patterns: Iterable[str], names: Sequence[str], layers: Sequence[str]) -> None:
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            choices = list(dict.fromkeys([*get_close_matches(pattern, names, n=1), *layers]))
            shown = ", ".join([*choices[:8], *(["..."] if len(choices) > 8 else [])])
            raise UserError(f"precision.{option} {pattern!r}: no layer is named like that, choose from {shown}")


def _check_rules(
    rules: PlatformRules,
    *,
    weight_per_channel: bool | None,
    weight_symmetric: bool | None,
    overrides: Mapping[str, Mapping[str, Any]],
) -> None:
    wishes = [{"weight_per_channel": weight_per_channel, "weight_symmetric": weight_symmetric}, *overrides.values()]
    for wish in wishes:
        if wish.get("weight_symmetric") is not None and rules.weight_symmetric not in (None, wish["weight_symmetric"]):
            kind = "symmetric" if rules.weight_symmetric else "asymmetric"
            raise UserError(
                f"precision.weight_symmetric: platform {rules.name} takes only {kind} weights, leave it out"
            )
        if wish.get("weight_per_channel") and not rules.weight_per_channel:
            raise UserError(
                f"precision.weight_per_channel: platform {rules.name} takes one scale for a weight, leave it out"
            )
