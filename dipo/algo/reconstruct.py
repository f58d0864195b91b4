"""Reconstruction of one unit: AdaRound, BRECQ and QDrop as presets of one loop.

The rounding of each weight, the biases and the scales of the activations are trained so that the unit's outputs,
on its quantized inputs, come near the float network's. AdaRound (arXiv:2004.10568) takes a layer as the unit,
BRECQ (arXiv:2102.05426) a block, QDrop (arXiv:2203.05740) a block whose activations are, element by element,
quantized with probability 1/2.

A step's batch is cut into fixed shards. Each shard has its own samples and its own random numbers, and the shards'
gradients are added in their order: the result depends on the number of shards, not on the number of workers that
hold them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch

from dipo.algo.collectives import Collectives
from dipo.algo.phase import Phase
from dipo.algo.steps.reconstruction import ReconstructionOptions
from dipo.algo.trainer import GradShard, Trainer, UnitProblem
from dipo.algo.unit_solver import UnitResult
from dipo.quant.kernels import Kernels
from dipo.quant.rounding import ADAM_BETA1, ADAM_BETA2

STRAIGHT_SPEED = 1.0
"""Factor on the rounding's learning rate with `algo.rounding=straight_through`, where V counts in codes."""
LOSS_SAMPLES = 10
"""Steps at either end whose mean loss is reported."""


def reconstruct(
    problem: UnitProblem,
    *,
    cfg: ReconstructionOptions,
    phase: Phase,
    pieces: Sequence[GradShard],
    owners: Sequence[int],
    collectives: Collectives,
    seed: int,
    kernels: Kernels,
    progress: Callable[[int], None] = lambda _: None,
) -> UnitResult:
    """Train the rounding, biases and scales of a unit.

    Args:
        problem: The unit; its cached values hold the samples of this worker's shards.
        cfg: Steps, learning rates, regulariser.
        phase: The steps to run.
        pieces: This worker's shards of every step's batch.
        owners: The worker that holds each of all shards.
        collectives: Adds gradients over the workers.
        seed: Seed of this unit.
        kernels: Elementwise arithmetic.
        progress: Called with the number of steps done.
    """
    trainer = Trainer(problem, cfg=cfg, num_steps=len(phase), pieces=pieces, seed=seed, kernels=kernels)
    losses: list[torch.Tensor] = []
    schedule = _schedule(cfg, phase).to(trainer.device)
    for step in range(len(phase)):
        wants_loss = step < LOSS_SAMPLES or step >= len(phase) - LOSS_SAMPLES
        gradients = {piece.index: trainer.gradient(piece, step, wants_loss=wants_loss) for piece in pieces}
        total = collectives.all_reduce_ordered(gradients, owners=owners)
        # The slope of a root or a logarithm at 0 is infinite, and NaN times a difference of 0: no direction to go.
        total.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
        if wants_loss:
            losses.append(total[-1].clone())
        trainer.update(total, schedule[step])
        progress(step + 1)
    count = min(LOSS_SAMPLES, len(phase))
    measured = [float(loss) for loss in losses]
    return UnitResult(
        layers=trainer.layers(),
        activations=trainer.activations(),
        rounding=trainer.weights.begun() if phase.stop < cfg.iters else None,
        loss_first=float(np.mean(measured[:count])),
        loss_last=float(np.mean(measured[-count:])),
    )


def _schedule(cfg: ReconstructionOptions, phase: Phase) -> torch.Tensor:
    """Return the numbers that change from step to step of a phase, [steps, 6].

    Columns: learning rate of the rounding, beta, strength of the regulariser, Adam's two bias corrections, and the
    factor on the learning rates of biases and scales, which fall along a cosine. Adam's moments begin with the phase.
    """
    step = torch.arange(phase.first, phase.stop, dtype=torch.float64)
    moments = step - phase.first + 1
    speed = cfg.reference_iters / cfg.iters * phase.lr
    begin = cfg.warmup * cfg.iters
    done = ((step - begin) / max(1.0, cfg.iters - begin)).clamp(0, 1)
    cosine = speed * 0.5 * (1 + torch.cos(math.pi * step / cfg.iters))
    # Rounding that a regulariser decides comes to rest by itself; codes that an offset moves do not.
    straight = cfg.rounding == "straight_through"
    lr = cfg.lr_round * (STRAIGHT_SPEED * cosine if straight else torch.full_like(step, speed))
    beta = cfg.beta_end + (cfg.beta_start - cfg.beta_end) * (1 - done)
    columns = [
        lr,
        beta,
        torch.where(step >= begin, cfg.reg_strength, 0.0),
        1 / (1 - ADAM_BETA1**moments),
        1 / (1 - ADAM_BETA2**moments),
        cosine,
    ]
    return torch.stack(columns, dim=1).to(torch.float32)
