"""From unit to unit: each is solved behind those before it, so that it sees their errors and makes up for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dipo.algo.bias_correction import correct_if_better, correct_layer
from dipo.algo.captures import Capture
from dipo.algo.pair import Pair
from dipo.algo.program import fuse
from dipo.algo.reconstruct import Piece, UnitProblem, UnitSolution, reconstruct
from dipo.config import AlgoConfig
from dipo.graph.load import name_of, opset_of
from dipo.graph.plan import QuantizedLayer
from dipo.graph.units import Unit
from dipo.quant.kernels import Kernels
from dipo.quant.spec import QParams


@dataclass(frozen=True)
class UnitResult:
    """What became of a unit."""

    layers: dict[str, QuantizedLayer]
    activations: dict[str, QParams]
    loss_first: float | None = None
    loss_last: float | None = None
    bias_corrected: bool = False
    """Whether correcting the biases after training lowered the error of the unit's outputs."""


class Sweep:
    """Goes through the units in order. Every worker makes the same calls at the same time."""

    def __init__(self, pair: Pair) -> None:
        """Begins with the first unit of `pair`."""
        self.pair = pair

    def solve(
        self,
        unit: Unit,
        *,
        cfg: AlgoConfig,
        pieces: Sequence[Piece],
        piece_owners: Sequence[int],
        seed: int,
        kernels: Kernels,
        progress: Callable[[int], None],
    ) -> UnitResult:
        """Reconstructs the next unit (one without layers is only passed through) and moves on behind it."""
        pair = self.pair
        targets = pair.targets(unit)
        result = UnitResult({}, {})
        if any(node in pair.plan.layers for node in unit.layers):
            problem = self.problem(unit, targets)
            solution = reconstruct(
                problem, cfg=cfg, pieces=pieces, owners=piece_owners, exchange=pair.exchange,
                seed=seed, kernels=kernels, progress=progress,
            )  # fmt: skip
            self._adopt(solution)
            corrected = cfg.correct_bias and correct_if_better(pair, unit, targets)
            result = UnitResult(
                layers={name: pair.layers[name] for name in solution.layers},
                activations=solution.activations,
                loss_first=solution.loss_first,
                loss_last=solution.loss_last,
                bias_corrected=corrected,
            )
        pair.advance(unit)
        pair.fp.update(targets)
        pair.forget(unit)
        return result

    def correct(self, unit: Unit, fp_means: Mapping[str, NDArray[np.float64]]) -> UnitResult:
        """Corrects the bias of the next unit's layer, see `correct_layer`, and moves on behind it."""
        return UnitResult(correct_layer(self.pair, unit, fp_means), {}, bias_corrected=True)

    def problem(self, unit: Unit, targets: Mapping[str, Capture]) -> UnitProblem:
        """The next unit as a problem to reconstruct."""
        nodes = [self.pair.nodes[name] for name in unit.nodes]
        made = {name_of(value) for node in nodes for value in node.outputs if value.name}
        activations = _coarse(
            {name: self.pair.activations[name] for name in self.pair.plan.activations if name in made}
        )
        module = self.pair.module(nodes, unit.outputs)
        constants = {name: module.constant(name) for name in module.constant_names}
        return UnitProblem(
            steps=fuse(nodes, set(activations), opset_of(self.pair.model)),
            constants=constants,
            layers={
                name: (*self.pair.layer_layouts[name], self.pair.layers[name])
                for name in unit.layers
                if name in self.pair.plan.layers
            },
            activations=activations,
            fp_inputs={name: self.pair.fp[name] for name in module.inputs},
            q_inputs={name: self.pair.q[name] for name in module.inputs},
            targets=targets,
        )

    def _adopt(self, solution: UnitSolution) -> None:
        self.pair.layers.update(solution.layers)
        self.pair.activations.update(solution.activations)
        for value, source in self.pair.plan.shared.items():
            if source in solution.activations:
                self.pair.activations[value] = solution.activations[source]


def _coarse(activations: Mapping[str, QParams]) -> dict[str, QParams]:
    """The activations to train with: beside coarser ones, 8 bits add a noise 24 dB lower and cost as much time."""
    coarse = {name: qparams for name, qparams in activations.items() if qparams.qmax - qparams.qmin < 255}
    return coarse or dict(activations)
