"""A unit's layers in closed form: each from sums over the samples, with the damping that held-out samples choose."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from dipo.algo.closed_form import Sums, damped, descend, least_squares, round_columns
from dipo.algo.held_out import held_out_samples
from dipo.algo.judgement import Judgement
from dipo.algo.layer_sums import Sampling, SplitSums, layer_sums
from dipo.algo.output_grids import better_grids
from dipo.algo.reference_weights import rounded, target_of
from dipo.algo.steps.gptq import GptqOptions
from dipo.algo.unit_solver import UnitResult, UnitWork
from dipo.algo.weight_grids import Entries, Scales, as_columns, as_weight, refit_scales
from dipo.graph.accessors import name_of
from dipo.graph.plan import LayerPlan, QuantizedLayer
from dipo.graph.weight_layout import WeightLayout
from dipo.recipe import CalibConfig

REFITS = 3
"""Number of times that scales are fitted anew to the codes."""
SWEEPS = 8
"""Number of sweeps of the coordinate descent behind them, at most."""


@dataclass(frozen=True, eq=False)
class Solution:
    """A layer's weights on their grids, for one damping."""

    best: torch.Tensor
    """The weights before they were rounded, [G, D + 1, O], the bias last."""
    metric: torch.Tensor
    """H', [G, D + 1, D + 1]."""
    weight: torch.Tensor
    """The weights, and the bias last."""
    scales: Scales


def round_layer(problem: LayerProblem, sums: Sums, damping: Sequence[float], cfg: GptqOptions) -> list[Solution]:
    """Return a layer's weights by least squares and rounding of columns, for each of some dampings.

    Args:
        problem: The layer.
        sums: H and C.
        damping: Dampings, each as a part of the mean of H's diagonal.
        cfg: What is done.
    """
    copies, groups = len(damping), len(problem.weight)
    strength = torch.tensor(damping, dtype=torch.float64, device=problem.weight.device).repeat_interleave(groups)
    metric = damped(sums.gram.repeat(copies, 1, 1), strength)
    best = problem.weight.repeat(copies, 1, 1)
    if cfg.gptq_target == "asymmetric":
        best = least_squares(problem.weight, sums, metric)
    entries, scales = problem.entries.copies(copies), problem.scales(best, copies=copies, anew=cfg.gptq_new_grids)
    kept = None if problem.kept is None else problem.kept.repeat(copies, 1, 1)
    weight = round_columns(best, metric, scales.grids(entries, kept), act_order=cfg.gptq_act_order)
    parts = [each.view(copies, groups, *each.shape[1:]) for each in (best, metric, weight)]
    return [
        Solution(own_best, own_metric, own_weight, scales.copy(copy, copies))
        for copy, (own_best, own_metric, own_weight) in enumerate(zip(*parts, strict=True))
    ]


def polish(problem: LayerProblem, solution: Solution) -> Solution:
    """Return a solution after coordinate descent, with its scales fitted to its codes in between."""
    best, metric, weight, scales = solution.best, solution.metric, solution.weight, solution.scales
    entries, kept = problem.entries, problem.kept
    for _ in range(REFITS):
        weight, _ = descend(best, weight, metric, scales.grids(entries, kept), sweeps=1)
        scales, weight = refit_scales(best, weight, metric, scales, entries)
    weight, _ = descend(best, weight, metric, scales.grids(entries, kept), sweeps=SWEEPS)
    return dataclasses.replace(solution, weight=weight, scales=scales)


def solve_unit(work: UnitWork, *, cfg: GptqOptions, calib: CalibConfig, num_samples: int, seed: int) -> UnitResult:
    """Solve a unit's layers, first to last, together with the other workers.

    Args:
        work: The unit.
        cfg: What is done.
        calib: How grids of weights are chosen.
        num_samples: Number of samples of all workers.
        seed: Seed of the positions that are looked at.
    """
    held_out = work.held_out or held_out_samples(num_samples)
    sampling = Sampling(cfg.gptq_positions, num_samples, held_out, seed)
    found, befores, afters = {}, {}, {}
    for name in work.layers:
        sums = layer_sums(work.pair, work.unit, name, sampling)
        if sums is None:
            continue
        problem = LayerProblem.of(work, name, calib)
        found[name], before, after = problem.best(sums, cfg)
        output = name_of(work.pair.nodes[name].outputs[0])
        befores[output], afters[output] = before, after
        work.pair.adopt({name: found[name]}, {})
    judged = None
    if befores and work.held_out:
        judged = Judgement.of(befores, afters)
    activations = better_grids(work, sampling) if cfg.gptq_act_grids == "output" else {}
    return UnitResult(found, activations, bias_corrected=True, judged=judged)


@dataclass(frozen=True, eq=False)
class LayerProblem:
    """A layer, with its weights as columns."""

    layer: QuantizedLayer
    layout: WeightLayout
    plan: LayerPlan
    calib: CalibConfig
    weight: torch.Tensor
    """The float weight, and its bias last, float64 [G, D + 1, O]."""
    entries: Entries
    kept: torch.Tensor | None

    @staticmethod
    def of(work: UnitWork, name: str, calib: CalibConfig) -> LayerProblem:
        """Return the problem of a unit's layer."""
        pair, layer = work.pair, work.pair.layers[name]
        target = target_of(pair, name)
        layout = WeightLayout.of(pair.nodes[name], target.shape)
        columns = as_columns(target, layout, pair.device)
        kept = None if layer.target is None else (columns != 0).double()
        entries = Entries.of(layer.qparams, layout, pair.device)
        return LayerProblem(
            layer, layout, pair.plan.layers[name], calib, _with_bias(columns, layer.bias), entries, kept
        )

    def best(self, sums: SplitSums, cfg: GptqOptions) -> tuple[QuantizedLayer, float, float]:
        """Return what has the least error on the held-out samples, or on all where there are none.

        Candidates are the layer as it is, the same with its mean error taken into its bias, and the solutions.

        Returns:
            The layer, the error of the layer as it is, and its own.
        """
        if self.layer.bias is None:
            sums = sums.without_bias()
        judge = sums.held_out or sums.fitted
        damping = cfg.dampings if sums.held_out is not None else (cfg.few_damping,)
        solutions = round_layer(self, sums.fitted, damping, cfg)
        solutions = sorted(solutions, key=lambda each: float(judge.error(each.weight).sum()))[:1]
        if cfg.gptq_descent:
            solutions += [polish(self, each) for each in solutions]
        candidates = [self.layer, *self.corrected(sums.fitted), *(self.solved(each) for each in solutions)]
        errors = [float(judge.error(self.columns(each)).sum()) for each in candidates]
        index = int(np.argmin(errors))
        return candidates[index], errors[0], errors[index]

    def scales(self, best: torch.Tensor, *, copies: int, anew: bool) -> Scales:
        """Return the grids on which some weights are rounded.

        Args:
            best: The weights, [K * G, D + 1, O], the bias last.
            copies: K.
            anew: Choose grids as calibration does, for the weights of the middle damping, instead of those that the
                layer has.
        """
        device, qparams = self.weight.device, self.layer.qparams
        if not anew:
            return Scales.joined([Scales.of(qparams, device)] * copies)
        middle = best.view(copies, -1, *best.shape[1:])[copies // 2]
        chosen = rounded(as_weight(middle[:, :-1], self.layout), None, layer=self.plan, calib=self.calib)
        return Scales.joined([Scales.of(chosen.qparams, device)] * copies)

    def columns(self, layer: QuantizedLayer) -> torch.Tensor:
        """Return a layer's dequantized weight and its bias as columns, float64 [G, D + 1, O]."""
        return _with_bias(as_columns(layer.weight, self.layout, self.weight.device), layer.bias)

    def corrected(self, sums: Sums) -> list[QuantizedLayer]:
        """Return the layer with its mean error taken into its bias, where it has one."""
        if self.layer.bias is None:
            return []
        own = self.columns(self.layer)
        shift = (sums.cross - sums.gram @ own)[:, -1] / sums.count
        bias = (self.layer.bias + shift.flatten().cpu().numpy()).astype(np.float32)
        return [dataclasses.replace(self.layer, bias=bias)]

    def solved(self, solution: Solution) -> QuantizedLayer:
        """Return the layer with a solution."""
        weight, scales, entries = solution.weight, solution.scales, self.entries.of_weight
        codes = as_weight((weight[:, :-1] / scales.scale[entries]).round() + scales.zero[entries], self.layout)
        bias = None if self.layer.bias is None else weight[:, -1].flatten().cpu().numpy().astype(np.float32)
        qparams = scales.to_qparams(self.layer.qparams)
        return dataclasses.replace(self.layer, codes=codes.astype(np.int32), qparams=qparams, bias=bias)


def _with_bias(columns: torch.Tensor, bias: NDArray[np.float32] | None) -> torch.Tensor:
    groups, _, outputs = columns.shape
    last = torch.zeros(groups, 1, outputs, dtype=torch.float64, device=columns.device)
    if bias is not None:
        last = torch.tensor(bias, dtype=torch.float64, device=columns.device).view(groups, 1, outputs)
    return torch.cat([columns.double(), last], 1)
