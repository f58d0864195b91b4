"""Requantization for another target's grids: the same numbers where possible, else rounded once more."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Set
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from dipo.errors import UserError
from dipo.graph.accessors import array_of
from dipo.graph.plan import LayerPlan, Plan, QuantizedLayer, QuantizedModel
from dipo.graph.value_signs import positive_values
from dipo.quant.codes import nearest_codes
from dipo.quant.ranges import Range, weight_qparams
from dipo.quant.spec import QParams, QuantSpec, qparams_of
from dipo.recipe import CalibConfig


@dataclass(frozen=True)
class Requantized:
    """A network on another target's grids, and what changed."""

    quantized: QuantizedModel
    weights: dict[str, float]
    """SQNR, in dB against the former weight, of weights that were rounded once more, by name of the layer,
    or of the initializer where a recurrent node reads it."""
    activations: dict[str, str]
    """Origin of each grid, by name of the value: `kept` (the same numbers), `range` (the same range, another grid), or
    `statistics` (a new range, because it was not quantized before)."""


def requantize(
    model: ir.Model,
    quantized: QuantizedModel,
    *,
    plan: Plan,
    ranges: Mapping[str, Range],
    cfg: CalibConfig,
    target: str,
) -> Requantized:
    """Convert a network to the grids of another target.

    Weights are the dequantized ones; their zeros stay zeros. Activations keep their ranges.

    Args:
        model: The float graph.
        quantized: The network, as the run saved it.
        plan: The plan for the other target.
        ranges: Known ranges of values that are not quantized in `quantized`.
        cfg: Choice of ranges for weights that are rounded once more.
        target: Name of the other target, for messages.

    Raises:
        UserError: Values have no range; all are named.
    """
    missing = [name for name in plan.activations if name not in quantized.activations and name not in ranges]
    if missing:
        raise UserError(
            f"platform={target}: no range for tensors {', '.join(missing)}, and the target needs one for each: "
            "calibrate in a new run for this platform, or leave it out"
        )
    layers = {
        name: _layer(model, quantized.layers.get(name), layer_plan, cfg) for name, layer_plan in plan.layers.items()
    }
    positive = positive_values(model)
    activations: dict[str, QParams] = {}
    origins: dict[str, str] = {}
    for name, spec in plan.activations.items():
        if name in quantized.activations:
            activations[name], origins[name] = activation_on(name, quantized.activations[name], spec, positive)
        else:
            activations[name], origins[name] = qparams_of(ranges[name], spec), "statistics"
    recurrent = {
        name: _layer(model, quantized.recurrent.get(name), weight_plan, cfg)
        for name, weight_plan in plan.recurrent.items()
    }
    network = QuantizedModel(
        {name: layer for name, (layer, _) in layers.items()},
        activations,
        {name: weight for name, (weight, _) in recurrent.items()},
    )
    losses = {name: sqnr for name, (_, sqnr) in (layers | recurrent).items() if sqnr is not None}
    return Requantized(network.with_updates([], plan), losses, origins)


def _layer(
    model: ir.Model, own: QuantizedLayer | None, plan: LayerPlan, cfg: CalibConfig
) -> tuple[QuantizedLayer, float | None]:
    """Return the layer on the planned grid, and the SQNR of its weight; None if it was not rounded."""
    if own is not None and (same := _same_weight(own, plan.spec)) is not None:
        return same, None
    weight = array_of(model.graph.initializers[plan.weight]).astype(np.float32) if own is None else own.weight
    bias = own.bias if own is not None else None
    if own is None and plan.bias is not None:
        bias = array_of(model.graph.initializers[plan.bias]).astype(np.float32)
    qparams = weight_qparams(
        weight, plan.spec, axis=plan.axis, method=cfg.weights, percentile=cfg.weight_percentile,
        name=f"weight {plan.weight}",
    )  # fmt: skip
    layer = QuantizedLayer(nearest_codes(weight, qparams), qparams, bias)
    return layer, _sqnr_db(weight, layer.weight)


def _same_weight(layer: QuantizedLayer, spec: QuantSpec) -> QuantizedLayer | None:
    """Return the layer's numbers on another grid, with shifted codes; None if the grid lacks some of them."""
    own = layer.qparams
    if (own.axis is not None and not spec.per_channel) or not _has_scale(own, spec):
        return None
    if own.blocks is not None and own.blocks.size != spec.block:
        return None
    _, zero_point = own.broadcast_to(layer.codes.ndim)
    for zero in _zeros(own, spec):
        if zero.min() < spec.qmin or zero.max() > spec.qmax:
            continue
        codes = layer.codes - zero_point + dataclasses.replace(own, zero_point=zero).broadcast_to(layer.codes.ndim)[1]
        if codes.min() >= spec.qmin and codes.max() <= spec.qmax:
            return dataclasses.replace(layer, codes=codes, qparams=_on(own, spec, zero))
    return None


def activation_on(name: str, own: QParams, spec: QuantSpec, positive: Set[str]) -> tuple[QParams, str]:
    """Return the value's new grid, and its origin: `kept` or `range`, as in `Requantized`."""
    if spec.fixed is not None:
        its = qparams_of(spec.fixed, spec)
        same = (its.qmin, its.qmax) == (own.qmin, own.qmax) and its.scale == own.scale
        return its, "kept" if same and its.zero_point == own.zero_point else "range"
    # Half of a symmetric grid is unused if no value is negative and the other target allows asymmetric grids.
    idle = name in positive and not spec.symmetric and bool(np.all(own.zero_point > own.qmin))
    if _has_scale(own, spec) and not idle:
        for zero in _zeros(own, spec):
            shift = zero - own.zero_point
            if np.all(own.qmin + shift == spec.qmin) and np.all(own.qmax + shift == spec.qmax):
                return _on(own, spec, zero), "kept"
    high = float((own.qmax - own.zero_point) * own.scale.astype(np.float64))
    low = float((own.qmin - own.zero_point) * own.scale.astype(np.float64))
    if np.all(own.zero_point == (own.qmin + own.qmax + 1) // 2):
        low = -high  # a symmetric range is equally wide on both sides, even if the smallest code reaches further
    return qparams_of(Range(0.0 if name in positive else low, high), spec), "range"


def _has_scale(own: QParams, spec: QuantSpec) -> bool:
    """Return whether the other grid can have the same scales."""
    return not spec.power_of_two or bool(np.all(np.frexp(own.scale)[0] == 0.5))


def _zeros(own: QParams, spec: QuantSpec) -> list[NDArray[np.int32]]:
    """Return zero points to try on the other grid, in order."""
    middle = np.full_like(own.zero_point, spec.middle)
    if spec.symmetric:
        return [middle]
    first = own.zero_point + (spec.qmin - own.qmin)
    return [first, middle] if np.any(own.zero_point != (own.qmin + own.qmax + 1) // 2) else [middle, first]


def _on(own: QParams, spec: QuantSpec, zero: NDArray[np.int32]) -> QParams:
    return QParams(own.scale, zero.astype(np.int32), spec.qmin, spec.qmax, own.axis, spec.power_of_two, own.blocks)


def _sqnr_db(before: NDArray[np.float32], after: NDArray[np.float32]) -> float | None:
    """Return the ratio of signal to quantization noise, in dB; None without noise."""
    signal, noise = (float(np.sum(array.astype(np.float64) ** 2)) for array in (before, after - before))
    return 10 * math.log10(signal / noise) if signal > 0 and noise > 0 else None


_WORDS: dict[str, dict[object, str]] = {
    "per_channel": {True: "a scale for each channel", False: "one scale for all"},
    "symmetric": {True: "symmetric", False: "asymmetric"},
    "power_of_two": {True: "scales that are powers of two", False: "any scales"},
    "narrow": {True: "without the smallest code", False: "with all codes"},
    "signed": {True: "signed", False: "unsigned"},
}


def differences(own: Plan, other: Plan) -> list[str]:
    """Return in words how another target's scheme differs from the one for which a network was quantized."""
    pairs = {
        "weights": [
            (layer.spec, other.layers[name].spec) for name, layer in own.layers.items() if name in other.layers
        ],
        "activations": [
            (spec, other.activations[name]) for name, spec in own.activations.items() if name in other.activations
        ],
    }
    found = []
    for kind, specs in pairs.items():
        changes: dict[str, int] = {}
        for mine, its in specs:
            for text in _changes(mine, its, is_weight=kind == "weights"):
                changes[text] = changes.get(text, 0) + 1
        found += [f"{count} of {len(specs)} {kind}: {text}" for text, count in changes.items()]
    more = len(other.activations.keys() - own.activations.keys())
    found += [f"values quantized besides: {more}"] if more else []
    fewer, further = own.recurrent.keys() - other.recurrent.keys(), other.recurrent.keys() - own.recurrent.keys()
    found += [f"{len(fewer)} weights of recurrent nodes: float, not 8 bits"] if fewer else []
    return [*found, *([f"{len(further)} weights of recurrent nodes: 8 bits, not float"] if further else [])]


def _changes(mine: QuantSpec, its: QuantSpec, *, is_weight: bool) -> list[str]:
    # The signedness of a weight's codes follows from its symmetry.
    fields = [name for name in _WORDS if not (is_weight and name == "signed")]
    changed = [name for name in fields if getattr(mine, name) != getattr(its, name)]
    if mine.fixed != its.fixed:
        changed = [name for name in changed if name != "power_of_two"]
    words = [f"{_WORDS[name][getattr(its, name)]}, not {_WORDS[name][getattr(mine, name)]}" for name in changed]
    if mine.fixed != its.fixed:
        words.append("the range that was seen" if its.fixed is None else "the range of its function, not the one seen")
    if mine.block != its.block and its.per_channel:
        here, there = ("all of a channel" if block is None else f"{block} inputs" for block in (mine.block, its.block))
        words.append(f"a scale for {there}, not for {here}")
    return ([f"{its.bits} bits, not {mine.bits}"] if mine.bits != its.bits else []) + words
