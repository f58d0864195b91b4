"""Grids of activations by what the layers that read them lose, not by the values' own error.

A grid is the better the less of what a layer should give is left over by the weights that repeat it best from the
quantized values. What the weights can make up for costs nothing: a value may be clipped more, or less, than its own
error would have it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from dipo.algo.closed_form import damped, least_squares
from dipo.algo.integer_sums import IntegerSums, in_units
from dipo.algo.layer_sums import (
    FLOAT_STEPS,
    Sampling,
    chosen_positions,
    exchanged,
    largest_of_all,
    reach_of,
    samples_of,
    unit_of,
)
from dipo.algo.unit_solver import UnitWork
from dipo.algo.weight_grids import SMALLEST, as_columns
from dipo.algo.window_reader import WindowReader
from dipo.graph.accessors import array_of
from dipo.graph.layers import Layer, layer_of
from dipo.quant.functional import TorchQParams, quantize
from dipo.quant.spec import QParams

FACTORS = (1.0, 0.85, 0.7, 0.55, 1.15)
"""Factors on a calibrated scale that are tried; of equal ones the first is taken."""
POWERS = (1.0, 0.5, 2.0)
"""The same for a scale that is a power of two."""
COARSE = 255
"""Number of steps from which on a grid is fine enough as it is."""
DAMPING = 0.03
"""Damping of the least squares, as a part of the mean of H's diagonal."""
POSITIONS = 8000
"""Number of positions that are looked at."""


def better_grids(work: UnitWork, sampling: Sampling) -> dict[str, QParams]:
    """Return grids of the unit's coarse outputs with which the layers that read them lose least.

    Args:
        work: The unit, its layers solved.
        sampling: Which positions are looked at; the held-out samples judge, where there are any.

    Returns:
        Those that differ from what they were, by name of the value.
    """
    found = {}
    few = dataclasses.replace(sampling, positions=min(sampling.positions, POSITIONS))
    for name, readers in _movable(work).items():
        tried = _tried(work.pair.activations[name])
        lost = np.zeros(len(tried))
        for layer in readers:
            lost += _lost(work, name, layer, tried, few)
        best = int(np.argmin(lost))
        if np.isfinite(lost).all() and best:
            found[name] = tried[best]
    return found


def _movable(work: UnitWork) -> dict[str, list[Layer]]:
    """Return the unit's coarse outputs whose grids are calibrated ones, by name, with the layers that read them."""
    found, specs = {}, work.pair.plan.activations
    for name in work.unit.outputs:
        # A grid that is fixed, or another value's, is not chosen here.
        if name in specs and specs[name].fixed is None and specs[name].qmax - specs[name].qmin < COARSE:
            found[name] = _readers(work, name)
    return {name: readers for name, readers in found.items() if readers}


def _tried(grid: QParams) -> list[QParams]:
    """Return the grids that are tried, the present one first."""
    scales = (np.maximum(grid.scale * factor, SMALLEST) for factor in (POWERS if grid.power_of_two else FACTORS))
    return [dataclasses.replace(grid, scale=scale.astype(np.float32)) for scale in scales]


def _readers(work: UnitWork, name: str) -> list[Layer]:
    """Return the layers that read a value; none where anything else reads it: what that would lose is not known."""
    value = next(each for node in work.unit.nodes for each in work.pair.nodes[node].outputs if each.name == name)
    layers = [layer_of(use.node) for use in value.uses()]
    found = [each for each in layers if each is not None and each.input is value and each.name in work.pair.layers]
    return found if len(found) == len(layers) and not value.is_graph_output() else []


@dataclass(frozen=True, eq=False)
class _Columns:
    """What a layer reads before it is quantized, and what it should give, at some positions."""

    read: torch.Tensor
    target: torch.Tensor
    num_fitted: int


def _lost(work: UnitWork, name: str, layer: Layer, tried: Sequence[QParams], sampling: Sampling) -> np.ndarray:
    """Return for each grid the part of the power of a layer's target that no weights repeat; infinite if not finite."""
    pair, reader = work.pair, WindowReader.of(layer, work.pair.model)
    weight = as_columns(np.asarray(layer.array, np.float32), layer.layout, pair.device)
    bias = None if layer.bias is None else torch.tensor(array_of(layer.bias), device=pair.device)
    nodes = pair.nodes_of(work.unit)
    module, hook, constants = pair.module(nodes, [name]), pair.hook(nodes), pair.weights(work.unit.layers)
    parts, largest = [], 0.0
    for samples in samples_of(pair, sampling.held_out, apart=not pair.samples.of(name).is_first):
        fp = work.targets[name].at(samples.rows)
        if not reader.takes(fp):
            largest = np.inf
            break
        seed = (sampling.seed, work.unit.index, 1)
        chosen, num_fitted = chosen_positions(reader.count(fp), samples, sampling, seed=seed)
        chosen = chosen.to(pair.device)
        target = reader.inputs(fp, chosen) @ weight
        if bias is not None:
            target += bias.view(len(weight), 1, -1)
        q = module(pair.read(pair.q, module.inputs, samples.rows), hook=hook, constants=constants)[name]
        parts.append(_Columns(reader.inputs(q, chosen), target, num_fitted))
        largest = max(largest, reach_of(target))
    (largest,) = largest_of_all(pair, [largest])
    if not np.isfinite(largest):
        return np.full(len(tried), np.inf)
    unit = unit_of(largest, FLOAT_STEPS)
    with_bias = torch.cat(
        [weight, torch.zeros_like(weight[:, :1]) if bias is None else bias.view(len(weight), 1, -1)], 1
    )
    return np.array(
        [
            _left_over(
                work, with_bias.double(), grid, parts, unit, has_bias=bias is not None, judge=bool(sampling.held_out)
            )
            for grid in tried
        ]
    )


def _left_over(
    work: UnitWork, weight: torch.Tensor, grid: QParams, parts: Sequence[_Columns], target_unit: float, *,
    has_bias: bool, judge: bool,
) -> float:  # fmt: skip
    """Return the part of the target's power that no weights repeat from values on a grid."""
    pair, qparams = work.pair, TorchQParams.of(grid, num_dims=0, device=work.pair.device)
    zero, (groups, width, outputs) = int(grid.zero_point), weight.shape
    low, high = float(grid.qmin - zero), float(grid.qmax - zero)
    totals = [IntegerSums(groups, width - 1, outputs, low=low, high=high, device=pair.device) for _ in range(1 + judge)]
    for part in parts:
        x = quantize(part.read, qparams).float() - zero
        t = part.target.double().div_(target_unit).round_()
        cut = part.num_fitted
        for total, own in zip(totals, ((x[:, :cut], t[:, :cut]), (x[:, cut:], t[:, cut:])), strict=False):
            total.add(*own)
    sums = [
        in_units(*(exchanged(pair, each) for each in total.total()), unit=float(grid.scale), target_unit=target_unit)
        for total in totals
    ]
    fitted, judging = ((each if has_bias else each.without_bias()) for each in (sums[0], sums[-1]))
    strength = torch.full((groups,), DAMPING, dtype=torch.float64, device=pair.device)
    best = least_squares(weight, fitted, damped(fitted.gram, strength))
    power = float(judging.power.sum())
    return float(judging.error(best).sum()) / power if power > 0 else 0.0
