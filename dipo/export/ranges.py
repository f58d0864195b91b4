"""The ranges of a quantized model's tensors, in the forms that range files carry."""

from __future__ import annotations

import dataclasses
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from dipo.errors import UserError
from dipo.graph import operators
from dipo.graph.accessors import name_of, node_name
from dipo.graph.operators import Moves
from dipo.graph.placement import is_float, is_moved
from dipo.graph.plan import QuantizedLayer, QuantizedModel
from dipo.graph.target_spec import TargetSpec
from dipo.quant.spec import QParams

Numbers = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Encoding:
    """A tensor's grid `x = (code - zero_point) * scale`, and the forms in which files carry it.

    Arrays of shape [] belong to the whole tensor, of shape [C] to its channels.
    """

    qparams: QParams

    @property
    def scale(self) -> Numbers:
        """Scale as float64."""
        return self.qparams.scale.astype(np.float64)

    @property
    def zero_point(self) -> NDArray[np.int64]:
        """Code of 0, as ONNX counts codes."""
        return self.qparams.zero_point.astype(np.int64)

    @property
    def axis(self) -> int | None:
        """Axis of the channels; None if the grid is that of the whole tensor."""
        return self.qparams.axis

    @property
    def bits(self) -> int:
        """Width of the codes in bits; a grid without its smallest code is as wide as one with it."""
        return int(self.qparams.qmax - self.qparams.qmin).bit_length()

    @property
    def signed(self) -> bool:
        """Whether codes are two's complement."""
        return self.qparams.qmin < 0

    @property
    def symmetric(self) -> bool:
        """Whether the code of 0 is in the middle."""
        return bool(np.all(self.zero_point == (self.qparams.qmin + self.qparams.qmax + 1) // 2))

    @property
    def min(self) -> Numbers:
        """Number of the smallest code."""
        return np.asarray((self.qparams.qmin - self.zero_point) * self.scale)

    @property
    def max(self) -> Numbers:
        """Number of the largest code."""
        return np.asarray((self.qparams.qmax - self.zero_point) * self.scale)

    @property
    def amax(self) -> Numbers:
        """End of the symmetric range, 127 steps at 8 bits."""
        return np.asarray(self.scale * ((1 << (self.bits - 1)) - 1))

    def offset(self, bits: int) -> NDArray[np.int64]:
        """Return the offset, never positive, to add to codes counted from 0 before they are scaled.

        Args:
            bits: Width of these codes, at least that of the grid.
        """
        lowest = -(1 << (bits - 1)) if self.signed else 0
        return lowest - self.zero_point


@dataclass(frozen=True, eq=False)
class LayerRanges:
    """The grids of a quantized layer's tensors."""

    node: ir.Node
    weight_name: str
    weight: Encoding
    bias_name: str | None
    bias: NDArray[np.float32] | None
    bias_scale: Numbers | None
    """Scale of an int32 bias, input scale x weight scale; None without bias or quantized input, or with blocks."""


def float_values(model: ir.Model) -> list[str]:
    """Return names of inputs and intermediate values that hold floats and are read, in topological order.

    What lies within a part that stays float, between operators that torch does not compute, has no range.
    """
    values = [*model.graph.inputs, *(value for node in model.graph for value in node.outputs)]
    return [
        value.name
        for value in values
        if value.name
        and value.const_value is None
        and is_float(value)
        and (value.uses() or value.is_graph_output())
        and not _is_within(value)
    ]


def _is_within(value: ir.Value) -> bool:
    """Return whether a value is made and read by operators that torch does not compute alone."""
    maker = value.producer()
    nodes = [*([] if maker is None else [maker]), *(use.node for use in value.uses())]
    return maker is not None and not value.is_graph_output() and all(operators.of(node).torch is None for node in nodes)


def spread(model: ir.Model, activations: Mapping[str, QParams]) -> dict[str, QParams]:
    """Return the grids of the activations and of values around them that share these on the device, by name.

    The input of a fused Relu or Clip is never written to memory, and has the range of its output; an operator that only
    moves numbers has one range for input and output. A value with a grid of its own keeps it; one that could take
    several takes that of what it is moved from, else the widest. Activations without a finite positive scale are left
    out.
    """
    known = {name: each for name, each in activations.items() if np.isfinite(each.scale) and each.scale > 0}
    values = [*model.graph.inputs, *(value for node in model.graph for value in node.outputs if value.name)]
    count = -1
    while count != len(known):
        count = len(known)
        _forward(known, [value for value in values if (node := value.producer()) and not operators.of(node).clips])
        for value in reversed(values):
            downstream = [known[name] for name in _made_from(value) if name in known]
            if downstream and name_of(value) not in known:
                known[name_of(value)] = max(downstream, key=lambda qparams: float(qparams.scale))
        _forward(known, values)
    return known


def _forward(known: dict[str, QParams], values: Sequence[ir.Value]) -> None:
    """Add to the known grids those of values that are moved from known ones, or clipped."""
    for value in values:
        source = _moved_from(value)
        if source in known:
            known.setdefault(name_of(value), known[source])


def all_ranges(
    model: ir.Model, activations: Mapping[str, QParams], beside: Mapping[str, QParams]
) -> dict[str, QParams]:
    """Return the known grids of values that hold floats, in topological order.

    Args:
        model: The float graph.
        activations: Grids of the quantized values.
        beside: Grids of values that are not quantized but have ranges.
    """
    known = spread(model, activations)
    known = spread(model, {name: each for name, each in beside.items() if name not in known} | known)
    return {name: known[name] for name in float_values(model) if name in known}


def unify_concats(model: ir.Model, known: Mapping[str, QParams]) -> dict[str, QParams]:
    """Return `known` with one grid for each Concat's inputs and output, and for values that share a grid with them.

    Values share a grid if an operator that moves or clips numbers lies between them and their grids are equal before.
    If several Concats meet in a value, all of them take the widest grid.
    """
    group: dict[str, set[str]] = {name: {name} for name in known}
    for node in model.graph:
        for names in _of_one_grid(node, known):
            merged = set[str]().union(*(group[name] for name in names))
            group |= dict.fromkeys(merged, merged)
    unified = dict(known)
    joined = [name_of(node.outputs[0]) for node in model.graph if _is_concat(node) and node.outputs[0].name in known]
    for name in known:
        grids = [known[each] for each in joined if each in group[name]]
        if grids:
            unified[name] = max(grids, key=lambda qparams: float(qparams.scale))
    return unified


def _is_concat(node: ir.Node) -> bool:
    return operators.of(node).moves is Moves.JOINED


def _keeps(node: ir.Node) -> bool:
    """Return whether the node's outputs have the range of its first input, which a clip may narrow.

    A clip is part of the kernel before it, which then writes the clip's range.
    """
    operator = operators.of(node)
    return operator.keeps_range or operator.clips


def _of_one_grid(node: ir.Node, known: Mapping[str, QParams]) -> Iterator[list[str]]:
    """Yield lists of names of the node's inputs and outputs that must share a grid."""
    outputs = [name_of(value) for value in node.outputs if value.name in known]
    read = [name_of(value) for value in node.inputs if value is not None and value.name in known]
    if _is_concat(node):
        if outputs:
            yield [*outputs, *read]
    elif _keeps(node) and node.inputs[0] is not None:
        source = name_of(node.inputs[0])
        yield from ([source, name] for name in outputs if source in known and known[source].same(known[name]))


def layer_ranges(model: ir.Model, quantized: QuantizedModel, known: Mapping[str, QParams]) -> Iterator[LayerRanges]:
    """Yield the quantized layers, in topological order; `known` has the grids of their inputs."""
    for node in model.graph:
        layer = quantized.layers.get(node_name(node))
        if layer is None:
            continue
        data, weight = node.inputs[0], node.inputs[1]
        assert data is not None and weight is not None
        input_qparams = known.get(name_of(data))
        has_bias = layer.bias is not None and len(node.inputs) > 2 and node.inputs[2] is not None
        int32 = has_bias and layer.qparams.blocks is None
        grid = Encoding(layer.qparams)
        yield LayerRanges(
            node=node,
            weight_name=name_of(weight),
            weight=grid,
            bias_name=name_of(node.inputs[2]) if has_bias and node.inputs[2] is not None else None,
            bias=layer.bias,
            bias_scale=Encoding(input_qparams).scale * grid.scale if int32 and input_qparams is not None else None,
        )


def coverage(required: Iterable[str], known: Container[str]) -> list[str]:
    """Return the required tensors that have no range, each once."""
    return [name for name in dict.fromkeys(required) if name not in known]


def check_coverage(platform: str, required: Iterable[str], known: Container[str]) -> None:
    """Check that every tensor for which the target needs a range has one.

    Raises:
        UserError: Some have none; all are named.
    """
    missing = coverage(required, known)
    if missing:
        raise UserError(
            f"platform={platform}: no range for tensors {', '.join(missing)}, and the target needs one for each: take "
            "their layers out of precision.skip, or end the model before the operators that have no range"
        )


def check_widths(spec: TargetSpec, quantized: QuantizedModel) -> None:
    """Check that the target's file can express all widths.

    Raises:
        UserError: It cannot; the first such tensor is named.
    """
    grids = {
        "weight": (spec.weight_widths, {name: layer.qparams for name, layer in quantized.layers.items()}),
        "act": (spec.act_widths, quantized.activations),
    }
    for kind, (widths, qparams) in grids.items():
        for name, each in qparams.items():
            if (bits := Encoding(each).bits) not in widths:
                choices = " or ".join(map(str, widths))
                raise UserError(
                    f"platform={spec.name}: {name!r} has {bits} bits and the target takes {choices}, set "
                    f"precision.{kind}_bits (and precision.overrides) to that"
                )


def per_tensor(layer: QuantizedLayer) -> QuantizedLayer:
    """Return the layer with one scale, its largest, for the whole symmetric weight, which is rounded again."""
    if layer.qparams.axis is None:
        return layer
    scale = layer.qparams.scale.max()
    qparams = dataclasses.replace(
        layer.qparams, scale=np.asarray(scale), zero_point=np.asarray(layer.qparams.zero_point[0]), axis=None
    )
    return layer.rounded_to(qparams)


def _made_from(value: ir.Value) -> Iterator[str]:
    """Yield the names of the values computed from this one within its range."""
    for node, index in value.uses():
        if index == 0 and _keeps(node):
            yield from (name_of(output) for output in node.outputs if output.name)


def _moved_from(value: ir.Value) -> str | None:
    """Return the name of the value whose range this one has by the operator that computes it; None if there is none."""
    node = value.producer()
    if node is None or not _keeps(node) or node.inputs[0] is None:
        return None
    if not (operators.of(node).clips or is_moved(node)):
        return None
    return name_of(node.inputs[0])
