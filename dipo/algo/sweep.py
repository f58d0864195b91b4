"""From unit to unit: each is solved behind those before it, so that it sees their errors and makes up for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from dipo.algo.bias_correction import correct_if_better
from dipo.algo.captures import Batch, Capture
from dipo.algo.fisher import fisher_diagonals, normalised
from dipo.algo.pair import Pair
from dipo.algo.program import fuse
from dipo.algo.reconstruct import Phase, reconstruct, tuning
from dipo.algo.trainer import Piece, UnitProblem
from dipo.graph.accessors import name_of, opset_of
from dipo.graph.plan import QuantizedLayer
from dipo.graph.units import Unit
from dipo.quant.kernels import Kernels
from dipo.quant.spec import QParams
from dipo.recipe import AlgoConfig


@dataclass(frozen=True)
class UnitResult:
    """What became of a unit."""

    layers: dict[str, QuantizedLayer]
    activations: dict[str, QParams]
    rounding: dict[str, NDArray[np.float32]] | None = None
    """By layer: what a later phase goes on with, see `Weights.begun`; None where there is none."""
    loss_first: float | None = None
    loss_last: float | None = None
    bias_corrected: bool = False
    """Whether correcting the biases after training lowered the error of the unit's outputs."""


@dataclass(frozen=True, eq=False)
class Training:
    """How a unit is trained."""

    cfg: AlgoConfig
    phase: Phase
    correct_bias: bool
    """Correct the biases behind the training, where that helps."""
    pieces: Sequence[Piece]
    """This worker's."""
    piece_owners: Sequence[int]
    """The worker that holds each of the run's pieces."""
    seed: int
    kernels: Kernels
    progress: Callable[[int], None]
    tunes: bool = False
    """The codes stay: biases and scales alone are trained, those of all activations, by `tuning`'s options."""


class Sweep:
    """Goes through the units in order. Every worker makes the same calls at the same time."""

    def __init__(self, pair: Pair, inputs: Callable[[Batch], Mapping[str, torch.Tensor]] | None = None) -> None:
        """Begins with the first unit of `pair`.

        Args:
            pair: Both networks.
            inputs: Reads the network's inputs of a batch again, which `algo.loss=fisher` needs.
        """
        self.pair, self.inputs = pair, inputs

    def solve(self, unit: Unit, how: Training, *, begun: UnitResult | None = None) -> UnitResult:
        """Reconstructs the next unit (one without layers is only passed through) and moves on behind it.

        Args:
            unit: The next unit.
            how: Its training.
            begun: What an earlier phase made of it.
        """
        targets = self.pair.targets(unit)
        result = UnitResult({}, {})
        if self.has_layers(unit):
            if begun is not None:
                self.pair.adopt(begun.layers, begun.activations)
            result = self.train(unit, targets, how, rounding=None if begun is None else begun.rounding)
        self._move_on(unit, targets)
        return result

    def replay(self, unit: Unit, result: UnitResult) -> None:
        """Takes the result of the next unit as it was found before and moves on behind it, to the same bits."""
        targets = self.pair.targets(unit) if self.pair.with_float else {}
        self.pair.adopt(result.layers, result.activations)
        self._move_on(unit, targets)

    def has_layers(self, unit: Unit) -> bool:
        """Whether there is something to train."""
        return any(node in self.pair.plan.layers for node in unit.layers)

    def train(
        self,
        unit: Unit,
        targets: Mapping[str, Capture],
        how: Training,
        *,
        rounding: Mapping[str, NDArray[np.float32]] | None,
    ) -> UnitResult:
        """Reconstructs the unit whose inputs `pair` holds."""
        cfg = tuning(how.cfg) if how.tunes else how.cfg
        problem = self.problem(unit, targets, cfg=cfg, seed=how.seed, tunes=how.tunes, rounding=rounding)
        solution = reconstruct(
            problem, cfg=cfg, phase=how.phase, pieces=how.pieces, owners=how.piece_owners,
            exchange=self.pair.exchange, seed=how.seed, kernels=how.kernels, progress=how.progress,
        )  # fmt: skip
        self.pair.adopt(solution.layers, solution.activations)
        corrected = how.correct_bias and correct_if_better(self.pair, unit, targets)
        return UnitResult(
            layers={name: self.pair.layers[name] for name in solution.layers},
            activations=solution.activations,
            rounding=solution.rounding if how.phase.stop < cfg.iters else None,
            loss_first=solution.loss_first,
            loss_last=solution.loss_last,
            bias_corrected=corrected,
        )

    def _move_on(self, unit: Unit, targets: Mapping[str, Capture]) -> None:
        self.pair.advance(unit)
        self.pair.fp.update(targets)
        self.pair.forget(unit)

    def problem(
        self,
        unit: Unit,
        targets: Mapping[str, Capture],
        *,
        cfg: AlgoConfig,
        seed: int = 0,
        tunes: bool = False,
        rounding: Mapping[str, NDArray[np.float32]] | None = None,
    ) -> UnitProblem:
        """The next unit as a problem to reconstruct."""
        nodes = [self.pair.nodes[name] for name in unit.nodes]
        made = {name_of(value) for node in nodes for value in node.outputs if value.name}
        activations = {name: self.pair.activations[name] for name in self.pair.plan.activations if name in made}
        if not tunes:
            activations = _coarse(activations)
        module = self.pair.module(nodes, unit.outputs)
        fp_inputs = {name: self.pair.fp[name] for name in module.inputs}
        return UnitProblem(
            steps=fuse(nodes, set(activations), opset_of(self.pair.model)),
            constants={name: module.constant(name) for name in module.constant_names},
            layers={
                name: (*self.pair.layer_layouts[name], self.pair.layers[name])
                for name in unit.layers
                if name in self.pair.plan.layers
            },
            activations=activations,
            fp_inputs=fp_inputs,
            q_inputs=fp_inputs if cfg.inputs == "float" else {name: self.pair.q[name] for name in module.inputs},
            targets=targets,
            weights=self._fisher(unit, seed) if cfg.loss == "fisher" else None,
            rounding=rounding,
            tunes=tunes,
        )

    def _fisher(self, unit: Unit, seed: int) -> dict[str, Capture]:
        """What the errors of the unit's outputs count, 1 in the mean over all workers' samples."""
        assert self.inputs is not None, "the loss needs the samples again"
        found = fisher_diagonals(
            self.pair.model, unit.outputs, self.pair.batches, self.inputs, seed=seed, device=self.pair.device
        )
        return normalised(found, self.pair.batches, owners=self.pair.owners, exchange=self.pair.exchange)


def _coarse(activations: Mapping[str, QParams]) -> dict[str, QParams]:
    """The activations to train with: beside coarser ones, 8 bits add a noise 24 dB lower and cost as much time."""
    coarse = {name: qparams for name, qparams in activations.items() if qparams.qmax - qparams.qmin < 255}
    return coarse or dict(activations)
