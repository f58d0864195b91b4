"""Training of one unit: the problem for the trainer, and the correction of biases after it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from dipo.algo.activation_cache import CachedActivation
from dipo.algo.bias_correction import correct_if_better
from dipo.algo.fisher import fisher_diagonals, normalised
from dipo.algo.fused_unit import fuse
from dipo.algo.judgement import Judgement
from dipo.algo.pair_statistics import held_out_rows, output_errors
from dipo.algo.phase import Phase
from dipo.algo.reconstruct import reconstruct
from dipo.algo.steps.reconstruction import ReconstructionOptions
from dipo.algo.trainer import UnitProblem
from dipo.algo.unit_solver import UnitResult, UnitWork
from dipo.graph.accessors import name_of
from dipo.quant.spec import QParams


def train_unit(
    work: UnitWork,
    *,
    cfg: ReconstructionOptions,
    phase: Phase,
    seed: int,
    corrects: bool = False,
    judges: bool = False,
    freeze_rounding: bool = False,
) -> UnitResult:
    """Train a unit together with the other workers.

    Args:
        work: The unit.
        cfg: Options of the training.
        phase: The part of its schedule to run.
        seed: Seed of the run.
        corrects: Correct the biases after the training, and keep that where it helps.
        judges: Keep what is best on the held-out samples, where there are any; a unit half way has not come to rest.
        freeze_rounding: Keep the codes; train biases and scales alone, those of all activations.
    """
    pair, own_seed = work.pair, phase.seed(seed, work.unit.index)
    solved = reconstruct(
        unit_problem(work, cfg=cfg, seed=own_seed, freeze_rounding=freeze_rounding),
        cfg=cfg, phase=phase, pieces=work.pieces, owners=work.shard_ranks, collectives=pair.collectives, seed=own_seed,
        kernels=work.bench.kernels, progress=work.bench.progress,
    )  # fmt: skip
    pair.adopt(solved.layers, solved.activations)
    corrected = corrects and correct_if_better(pair, work.unit, work.targets, held_out=work.held_out)
    layers = {name: pair.layers[name] for name in solved.layers}
    solved = dataclasses.replace(solved, layers=layers, bias_corrected=corrected)
    return best_of(work, solved) if judges and work.held_out else solved


def best_of(work: UnitWork, solved: UnitResult) -> UnitResult:
    """Return what has the least error on held-out samples, with the inputs that the quantized unit reads.

    Args:
        work: The unit, as it came into the step and as an earlier phase left it.
        solved: The unit after the training.

    Returns:
        One of these three, and the verdict on the training; of equal ones the first.
    """
    assert work.before is not None
    rows = held_out_rows(work.pair, work.held_out)

    def errors(found: UnitResult) -> dict[str, float]:
        work.pair.adopt(found.layers, found.activations)
        return output_errors(work.pair, work.unit, work.targets, rows)

    first = least = errors(work.before)
    best, judged = work.before, Judgement(0.0, kept=False)
    for found in (work.warm_start, solved):
        if found is not None:
            own = errors(found)
            judged = Judgement.of(first, own)
            if Judgement.of(least, own).kept:
                best, least = found, own
    if best is not work.before:
        judged = Judgement.of(first, least)
    return dataclasses.replace(
        solved,
        layers=best.layers,
        activations=best.activations,
        bias_corrected=best.bias_corrected,
        judged=dataclasses.replace(judged, kept=best is not work.before),
    )


def unit_problem(
    work: UnitWork, *, cfg: ReconstructionOptions, seed: int = 0, freeze_rounding: bool = False
) -> UnitProblem:
    """Return the problem of reconstructing a unit.

    Args:
        work: The unit.
        cfg: Options of the training.
        seed: Seed of this unit and phase.
        freeze_rounding: Keep the codes.
    """
    unit, pair = work.unit, work.pair
    nodes = pair.nodes_of(unit)
    own = (pair.nodes[name] for name in unit.nodes)
    made = {name_of(value) for node in own for value in node.outputs if value.name}
    activations = {name: pair.activations[name] for name in pair.plan.activations if name in made}
    if not freeze_rounding:
        activations = _coarse(activations)
    module = pair.module(nodes, unit.outputs)
    counted = pair.samples.counted
    captured = [name for name in module.inputs if name not in counted]
    fp_inputs = {name: pair.fp[name] for name in captured}
    return UnitProblem(
        steps=fuse(pair.model, nodes, set(activations)),
        constants={name: pair.recurrent.get(name, module.constant(name)) for name in module.constant_names},
        layers={name: (*pair.layer_layouts[name], pair.layers[name]) for name in work.layers},
        activations=activations,
        fp_inputs=fp_inputs,
        q_inputs=fp_inputs if cfg.inputs == "float" else {name: pair.q[name] for name in captured},
        sizes={name: counted[name] for name in module.inputs if name in counted},
        targets={name: work.targets[name] for name in pair.fitted(unit)},
        weights=_fisher(work, seed) if cfg.loss == "fisher" else None,
        rounding=None if work.warm_start is None else work.warm_start.rounding,
        freeze_rounding=freeze_rounding,
    )


def _fisher(work: UnitWork, seed: int) -> dict[str, CachedActivation]:
    """Return weights of the output elements' errors, 1 in the mean over all workers' samples."""
    pair = work.pair
    diagonals = fisher_diagonals(
        pair.model,
        pair.fitted(work.unit),
        pair.batches,
        work.bench.calib_inputs,
        seed=seed,
        device=pair.device,
        samples=pair.samples,
    )
    return normalised(diagonals, pair.batches, owners=pair.owners, collectives=pair.collectives)


def _coarse(activations: Mapping[str, QParams]) -> dict[str, QParams]:
    """Return the activations to quantize in training: those coarser than 8 bits, or all where there are none.

    Beside coarser ones, 8 bits add a noise 24 dB lower and cost as much time.
    """
    coarse = {name: qparams for name, qparams in activations.items() if qparams.qmax - qparams.qmin < 255}
    return coarse or dict(activations)
