"""Which tensors are quantized, and how: graph x platform rules x the user's overrides."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from dipo.graph import operators
from dipo.graph.load import array_of, bias_of, is_layer, name_of, node_name, weight_axis, weight_of
from dipo.graph.placement import is_float, pass_through_source, quantized_values
from dipo.graph.rules import PlatformRules
from dipo.graph.signs import positive_values
from dipo.graph.wishes import check_patterns, check_widths, check_wishes
from dipo.quant.spec import QParams, QuantSpec, input_axis


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
    observed: tuple[str, ...] = ()
    """Other values whose statistics are taken too, as another target would quantize them."""

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
    target: NDArray[np.float32] | None = None
    """The weight that the codes stand for was made from; None: the float network's own. Zeros in it stay zeros."""

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
    weight_narrow: bool | None = None,
    weight_block: int | None = None,
    act_signed: bool | None = None,
    act_symmetric: bool | None = None,
    power_of_two: bool | None = None,
    placement: str = "input",
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
        weight_narrow: Weights without their smallest code; None as the target has it, with it where it takes both.
        weight_block: So many weights along the input axis share a scale, for each output channel; None for all of a
            channel.
        act_signed: None as the target has it.
        act_symmetric: None as the target has it.
        power_of_two: Scales that are powers of two; None as the target has it.
        placement: Where activations are quantized: `input` or `output`, see `quantized_values`.
        first_last_bits: Least width of the first and last layers and of what they read; None for no exception.
        overrides: Pattern of layers' names -> `weight_bits`, `act_bits`, `weight_per_channel`, `weight_symmetric`,
            `weight_narrow`, `weight_block`.
        skip: Patterns of node names that stay float.

    Raises:
        UserError: The target cannot do what was asked, or a pattern matches nothing.
    """
    overrides = overrides or {}
    layer_names = [node_name(node) for node in model.graph if is_layer(node)]
    check_patterns("precision.overrides", overrides, layer_names, layer_names)
    check_patterns("precision.skip", skip, [node_name(node) for node in model.graph], layer_names)
    grid = {
        "weight_per_channel": weight_per_channel,
        "weight_symmetric": weight_symmetric,
        "weight_narrow": weight_narrow,
        "power_of_two": power_of_two,
        "weight_block": weight_block,
    }
    check_wishes(rules, [{**grid, "act_signed": act_signed, "act_symmetric": act_symmetric}, *overrides.values()])
    edge = edge_layers(model)
    nodes = [node for node in model.graph if operators.key_of(node) in rules.operators and not _matches(node, skip)]
    layers: dict[str, LayerPlan] = {}
    input_bits: dict[str, int] = {}
    for node in filter(is_layer, nodes):
        least = first_last_bits or 0 if node_name(node) in edge else 0
        wish: dict[str, Any] = {"weight_bits": max(weight_bits, least), "act_bits": max(act_bits, least), **grid}
        for pattern, values in overrides.items():
            wish |= values if fnmatchcase(node_name(node), pattern) else {}
        layers[node_name(node)] = _layer_plan(node, rules, wish)
        read = name_of(node.inputs[0]) if node.inputs[0] is not None else ""
        input_bits[read] = max(wish["act_bits"], input_bits.get(read, 0))
    quantized = quantized_values(nodes, rules, placement=placement)
    if rules.quantize_outputs:
        quantized |= {name_of(value) for value in model.graph.outputs}
    widest = QuantSpec(
        bits=max(act_bits, 8),
        signed=_chosen(wish=act_signed, rule=rules.act_signed),
        symmetric=_chosen(wish=act_symmetric, rule=rules.act_symmetric),
        power_of_two=_powers(rules, wish=power_of_two),
    )
    activations, shared = _activations(model, quantized, input_bits, widest)
    if rules.unsigned_where_positive and act_signed is None:
        positive = positive_values(model)
        activations = {
            name: replace(spec, signed=False, symmetric=False) if name in positive else spec
            for name, spec in activations.items()
        }
    activations |= {
        name: activations[name].between(int(bounds[0]))
        for node in model.graph
        if operators.key_of(node) in rules.fixed_ranges
        and (bounds := operators.of(node).output_range)
        and (name := name_of(node.outputs[0])) in activations
    }
    plan = Plan(layers=layers, activations=activations, shared=shared)
    check_widths(
        rules,
        weights={name: layer.spec.bits for name, layer in layers.items()},
        activations={name: spec.bits for name, spec in activations.items()},
    )
    return plan


def _chosen(*, wish: bool | None, rule: bool | None) -> bool:
    """What the user wishes, else what the target has, else no."""
    return bool(rule if wish is None else wish)


def _powers(rules: PlatformRules, *, wish: bool | None) -> bool:
    return _chosen(wish=wish, rule=rules.power_of_two or rules.prefers_power_of_two)


def _activations(
    model: ir.Model, quantized: Set[str], input_bits: Mapping[str, int], widest: QuantSpec
) -> tuple[dict[str, QuantSpec], dict[str, str]]:
    """`Plan.activations` and `Plan.shared`, where `widest` is the grid of what no layer reads."""
    activations: dict[str, QuantSpec] = {}
    shared: dict[str, str] = {}
    values = [*model.graph.inputs, *(value for node in model.graph for value in node.outputs)]
    for value in values:
        name = value.name
        if not name or value.const_value is not None or name not in quantized:
            continue
        source = pass_through_source(value, quantized)
        if source is not None:
            shared[name] = shared.get(source, source)
        else:
            activations[name] = replace(widest, bits=_bits_of(value, input_bits, widest.bits))
    return activations, shared


def _bits_of(value: ir.Value, input_bits: Mapping[str, int], least_bits: int) -> int:
    """The width that the layers reading the value want, through pass-through operators too; else `least_bits`."""
    wanted = [input_bits[name_of(value)]] if name_of(value) in input_bits else []
    for use in value.uses():
        if operators.of(use.node).on_codes:
            below = _bits_of(use.node.outputs[0], input_bits, 0)
            wanted += [below] if below else []
    return max(wanted, default=least_bits)


def _layer_plan(node: ir.Node, rules: PlatformRules, wish: Mapping[str, Any]) -> LayerPlan:
    weight, bias = weight_of(node), bias_of(node)
    assert weight is not None
    symmetric = wish["weight_symmetric"]
    if symmetric is None:
        symmetric = rules.weight_symmetric if rules.weight_symmetric is not None else wish["weight_bits"] >= 8
    per_channel, axis = rules.per_channel(node.op_type, wish=wish["weight_per_channel"]), weight_axis(node)
    shape = array_of(weight).shape
    num_inputs = shape[input_axis(axis)] if len(shape) > 1 else 1
    block = rules.block(node.op_type, bits=wish["weight_bits"], wish=wish["weight_block"], length=num_inputs)
    spec = QuantSpec(
        bits=wish["weight_bits"],
        signed=symmetric,
        symmetric=symmetric,
        per_channel=per_channel,
        narrow=_chosen(wish=wish["weight_narrow"], rule=rules.weight_narrow),
        power_of_two=_powers(rules, wish=wish["power_of_two"]),
        block=block if per_channel else None,
    )
    return LayerPlan(
        node=node_name(node),
        weight=name_of(weight),
        bias=None if bias is None else name_of(bias),
        axis=axis,
        spec=spec,
    )


def edge_layers(model: ir.Model) -> set[str]:
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
                from_input.update(value for value in node.outputs if is_float(value))
    return first | last


def _matches(node: ir.Node, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(node_name(node), pattern) for pattern in patterns)
