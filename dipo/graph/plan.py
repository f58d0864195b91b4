"""The quantization plan: which tensors are quantized and how, from graph, target and the user's overrides."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Protocol

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from dipo.graph import operators, torch_ops
from dipo.graph.accessors import name_of, node_name
from dipo.graph.constraints import check_constraints, check_patterns, check_widths
from dipo.graph.layers import Layer, is_layer, layer_of, layers_of
from dipo.graph.placement import final_floats, is_float, pass_through_source, quantized_values
from dipo.graph.recurrent import stored_weights
from dipo.graph.scheme import LayerScheme, act_spec, layer_scheme, recurrent_spec, weight_spec
from dipo.graph.target_spec import TargetSpec
from dipo.graph.value_signs import positive_values
from dipo.quant.codes import nearest_codes
from dipo.quant.spec import QParams, QuantSpec
from dipo.recipe import PrecisionConfig


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
    """Axis along which the weight has scales by channel."""
    spec: QuantSpec


@dataclass(frozen=True)
class Plan:
    """The tensors to quantize. A value in `activations` is quantized for every node that reads it, not as an output."""

    layers: dict[str, LayerPlan]
    """Layers by name of the node, in topological order."""
    activations: dict[str, QuantSpec]
    """Grids by name of the value, in topological order."""
    aliases: dict[str, str]
    """Outputs of pass-through operators, mapped to the quantized value whose scale and zero point they share."""
    observed: tuple[str, ...] = ()
    """Further values to take statistics of, because another target would quantize them."""
    recurrent: dict[str, LayerPlan] = field(default_factory=dict)
    """Weights of recurrent nodes that are stored as integers, and with whose floats these compute, by name of the
    initializer; each under the first node that reads it, without a bias."""

    def input_of(self, node: ir.Node) -> str | None:
        """Return the quantized value that gives a layer's input its scale; None if the input is float."""
        name = name_of(node.inputs[0]) if node.inputs[0] is not None else ""
        name = self.aliases.get(name, name)
        return name if name in self.activations else None


@dataclass(frozen=True, eq=False)
class QuantizedLayer:
    """A layer's weight as integer codes, and its float bias."""

    codes: NDArray[np.int32]
    """Integer codes, shaped like the weight."""
    qparams: QParams
    bias: NDArray[np.float32] | None
    target: NDArray[np.float32] | None = None
    """Float weight from which the codes were rounded; None: the float network's own. Its zeros stay zero."""

    @property
    def weight(self) -> NDArray[np.float32]:
        """The dequantized weight: the float numbers of the codes."""
        scale, zero_point = self.qparams.broadcast_to(self.codes.ndim)
        return ((self.codes - zero_point) * scale).astype(np.float32)

    def with_scale(self, scale: NDArray[np.float32]) -> QuantizedLayer:
        """Return the layer with its weight rounded to the nearest codes of another scale, no smaller than its own.

        Args:
            scale: Shaped like `qparams.scale`.
        """
        if np.array_equal(scale, self.qparams.scale):
            return self
        return self.rounded_to(replace(self.qparams, scale=scale))

    def rounded_to(self, qparams: QParams) -> QuantizedLayer:
        """Return the layer with its weight rounded to the nearest codes of another grid."""
        return replace(self, codes=nearest_codes(self.weight, qparams), qparams=qparams)


class Found(Protocol):
    """Quantized layers and activations of a part of the model."""

    @property
    def layers(self) -> dict[str, QuantizedLayer]:
        """Quantized layers, by name of the node."""
        ...

    @property
    def activations(self) -> dict[str, QParams]:
        """Scales and zero points of activations, by name of the value."""
        ...


@dataclass(frozen=True)
class QuantizedModel:
    """A quantized network, as calibration and reconstruction return it and exports write it."""

    layers: dict[str, QuantizedLayer]
    """Quantized layers, by name of the node."""
    activations: dict[str, QParams]
    """Scales and zero points of activations, by name of the value."""
    recurrent: dict[str, QuantizedLayer] = field(default_factory=dict)
    """Weights of recurrent nodes, without biases, by name of the initializer; no step changes them."""

    def with_updates(self, found: Iterable[Found], plan: Plan) -> QuantizedModel:
        """Return the model with some layers and activations replaced, and the aliases that share their scales."""
        layers, activations = dict(self.layers), dict(self.activations)
        for part in found:
            layers |= part.layers
            activations |= part.activations
        aliases = {value: activations[source] for value, source in plan.aliases.items()}
        return replace(self, layers=layers, activations=activations | aliases)


def make_plan(model: ir.Model, rules: TargetSpec, precision: PrecisionConfig) -> Plan:
    """Decide which tensors are quantized, and on which grids.

    Activations that a layer multiplies have `precision.act_bits`. Those that only additions, poolings and the like read
    have at least 8: fewer would save the device no multiplier and cost the network much accuracy.

    Args:
        model: A model that `graph.load` has normalised.
        rules: What the target takes.
        precision: Widths and grids that the user asks for.

    Raises:
        UserError: The target cannot do what was asked, or a pattern matches nothing.
    """
    _check_names(model, precision)
    check_constraints(rules, precision)
    named = (node for node in model.graph if operators.key_of(node) in rules.operators)
    taken = (node for node in named if torch_ops.supported(node))  # what ONNX Runtime computes here stays float
    nodes = [node for node in taken if not _is_skipped(node, precision.skip)]
    edge = edge_layers(model)
    schemes = {
        layer: layer_scheme(layer.name, precision, is_edge=layer.name in edge)
        for layer in map(layer_of, nodes)
        if layer is not None
    }
    quantized = quantized_values(nodes, rules, placement=precision.placement)
    if rules.quantize_outputs:
        quantized |= final_floats(model)
    activations, aliases = _activations(model, quantized, _input_bits(schemes), act_spec(rules, precision))
    if rules.unsigned_where_positive and precision.act_signed is None:
        activations = _unsigned_where_positive(model, activations)
    plan = Plan(
        layers={
            layer.name: _layer_plan(layer, scheme, rules, power_of_two=precision.power_of_two)
            for layer, scheme in schemes.items()
        },
        activations=activations | _fixed_ranges(model, activations, rules.fixed_ranges),
        aliases=aliases,
        recurrent=_recurrent(model, rules, precision),
    )
    check_widths(
        rules,
        weights={name: layer.spec.bits for name, layer in plan.layers.items()},
        activations={name: spec.bits for name, spec in plan.activations.items()},
    )
    return plan


def _check_names(model: ir.Model, precision: PrecisionConfig) -> None:
    """Check that patterns of names match layers."""
    layers = [layer.name for layer in layers_of(model)]
    check_patterns("precision.overrides", precision.overrides, layers, layers)
    check_patterns("precision.skip", precision.skip, [node_name(node) for node in model.graph], layers)


def _is_skipped(node: ir.Node, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(node_name(node), pattern) for pattern in patterns)


def _input_bits(schemes: Mapping[Layer, LayerScheme]) -> dict[str, int]:
    """Return, by name of the value, the largest width that the layers reading it ask for."""
    widths: dict[str, int] = {}
    for layer, scheme in schemes.items():
        name = name_of(layer.input) if layer.input is not None else ""
        widths[name] = max(scheme.act_bits, widths.get(name, 0))
    return widths


def _unsigned_where_positive(model: ir.Model, activations: Mapping[str, QuantSpec]) -> dict[str, QuantSpec]:
    """Return the grids, made unsigned with zero point 0 where values cannot be negative."""
    positive = positive_values(model)
    return {
        name: replace(spec, signed=False, symmetric=False) if name in positive else spec
        for name, spec in activations.items()
    }


def _fixed_ranges(model: ir.Model, activations: Mapping[str, QuantSpec], keys: Set[str]) -> dict[str, QuantSpec]:
    """Return fixed grids for the outputs of the operators with these keys, over the range of their function."""
    return {
        name: activations[name].between(int(bounds[0]))
        for node in model.graph
        if operators.key_of(node) in keys
        and (bounds := operators.of(node).output_range)
        and (name := name_of(node.outputs[0])) in activations
    }


def _activations(
    model: ir.Model, quantized: Set[str], input_bits: Mapping[str, int], widest: QuantSpec
) -> tuple[dict[str, QuantSpec], dict[str, str]]:
    """Return `Plan.activations` and `Plan.aliases`; `widest` is the grid of values that no layer reads."""
    activations: dict[str, QuantSpec] = {}
    aliases: dict[str, str] = {}
    values = [*model.graph.inputs, *(value for node in model.graph for value in node.outputs)]
    for value in values:
        name = value.name
        if not name or value.const_value is not None or name not in quantized:
            continue
        source = pass_through_source(value, quantized)
        if source is not None:
            aliases[name] = aliases.get(source, source)
        else:
            activations[name] = replace(widest, bits=_bits_of(value, input_bits, widest.bits))
    return activations, aliases


def _bits_of(value: ir.Value, input_bits: Mapping[str, int], least_bits: int) -> int:
    """Return the width asked for by layers that read the value, also via pass-through operators; else `least_bits`."""
    wanted = [input_bits[name_of(value)]] if name_of(value) in input_bits else []
    for use in value.uses():
        if operators.of(use.node).on_codes:
            below = _bits_of(use.node.outputs[0], input_bits, 0)
            wanted += [below] if below else []
    return max(wanted, default=least_bits)


def _recurrent(model: ir.Model, rules: TargetSpec, precision: PrecisionConfig) -> dict[str, LayerPlan]:
    """Return `Plan.recurrent`."""
    spec = recurrent_spec(rules, precision)
    return {
        name_of(value): LayerPlan(node_name(nodes[0]), name_of(value), bias=None, axis=axis, spec=spec)
        for value, axis, nodes in (stored_weights(model) if rules.recurrent_weights else ())
        if not any(_is_skipped(node, precision.skip) for node in nodes)
    }


def _layer_plan(layer: Layer, scheme: LayerScheme, rules: TargetSpec, *, power_of_two: bool | None) -> LayerPlan:
    return LayerPlan(
        node=layer.name,
        weight=name_of(layer.weight),
        bias=None if layer.bias is None else name_of(layer.bias),
        axis=layer.scale_axis,
        spec=weight_spec(layer.layout, scheme, rules, power_of_two=power_of_two),
    )


def edge_layers(model: ir.Model) -> set[str]:
    """Return the first and last layers: those with no other layer in front of them, and those with none behind.

    What only the shape of a value decides does not count as reading it.
    """
    nodes = list(model.graph)
    behind: set[ir.Value] = set()
    first: set[str] = set()
    for node in nodes:
        read = any(value in behind for value in node.inputs)
        if is_layer(node) and not read:
            first.add(node_name(node))
        if is_layer(node) or read:
            behind.update(value for value in node.outputs if is_float(value))
    before: set[ir.Value] = set()
    last: set[str] = set()
    for node in reversed(nodes):
        leads = any(value in before for value in node.outputs)
        if is_layer(node) and not leads:
            last.add(node_name(node))
        if is_layer(node) or leads:
            before.update(value for value in node.inputs if value is not None)
    return first | last
