"""From unit to unit: each is solved behind those before it, so that it sees their errors and makes up for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dipo.algo.activation_cache import CachedActivation
from dipo.algo.bench import Bench
from dipo.algo.network_pair import LayerOutputs, NetworkPair
from dipo.algo.step import UnitStep
from dipo.algo.trainer import GradShard
from dipo.graph.plan import QuantizedLayer
from dipo.graph.units import Unit
from dipo.quant.spec import QParams


@dataclass(frozen=True)
class UnitResult:
    """What became of a unit."""

    layers: dict[str, QuantizedLayer]
    activations: dict[str, QParams]
    rounding: dict[str, NDArray[np.float32]] | None = None
    """By layer: what a later phase goes on with, see `WeightQuantizer.begun`; None where there is none."""
    loss_first: float | None = None
    """Mean loss of the first steps."""
    loss_last: float | None = None
    bias_corrected: bool = False
    """Whether correcting the biases after training lowered the error of the unit's outputs."""
    seconds: float = 0.0
    """What it cost the worker."""


@dataclass(frozen=True, eq=False)
class UnitWork:
    """A unit in front of its solution, as one of the workers has it that solve it together."""

    unit: Unit
    pair: NetworkPair
    """Both networks, in front of the unit."""
    targets: Mapping[str, CachedActivation]
    """The unit's outputs in the float network; empty where that is not carried along."""
    outputs: LayerOutputs | None
    """What the unit's layer gives as it is, where the step asked for that and the layer has a bias."""
    pieces: Sequence[GradShard]
    """This worker's."""
    shard_ranks: Sequence[int]
    """The worker that holds each of the run's pieces."""
    warm_start: UnitResult | None
    """What an earlier phase made of the unit."""
    bench: Bench

    @property
    def layers(self) -> list[str]:
        """The layers of the unit that are quantized."""
        return [name for name in self.unit.layers if name in self.pair.plan.layers]


class UnitSolver:
    """Goes through the units in order with one step. Every worker makes the same calls at the same time."""

    def __init__(
        self,
        step: UnitStep,
        pair: NetworkPair,
        bench: Bench,
        *,
        pieces: Sequence[GradShard],
        shard_ranks: Sequence[int],
    ) -> None:
        """Begin in front of the first unit of `pair`.

        Args:
            step: What is done with each unit.
            pair: Both networks.
            bench: The worker's.
            pieces: Parts of an optimizer step's batch that this worker holds.
            shard_ranks: The worker that holds each of the run's pieces.
        """
        self.step, self.pair, self.bench = step, pair, bench
        self.pieces, self.shard_ranks = pieces, shard_ranks

    def solve(self, unit: Unit, *, warm_start: UnitResult | None = None) -> UnitResult:
        """Solve the next unit (one without layers is only passed through) and move on behind it.

        Args:
            unit: The next unit.
            warm_start: What an earlier phase made of it.
        """
        return self._take(unit, known=None, warm_start=warm_start)

    def replay(self, unit: Unit, result: UnitResult) -> None:
        """Take the result of the next unit as it was found before and move on behind it, to the same bits."""
        self._take(unit, known=result, warm_start=None)

    def _take(self, unit: Unit, *, known: UnitResult | None, warm_start: UnitResult | None) -> UnitResult:
        targets = self.pair.targets(unit) if self.pair.with_float else {}
        outputs = self.pair.layer_outputs(unit) if self.step.reads_outputs else None
        result = known
        if result is None and any(name in self.pair.plan.layers for name in unit.layers):
            if warm_start is not None:
                self.pair.adopt(warm_start.layers, warm_start.activations)
            work = UnitWork(
                unit, self.pair, targets, outputs, self.pieces, self.shard_ranks, warm_start, self.bench
            )  # fmt: skip
            result = self.step.solve(work)
        result = result or UnitResult({}, {})
        self.pair.adopt(result.layers, result.activations)
        self.pair.advance(unit, outputs=outputs)
        self.pair.fp.update(targets)
        self.pair.forget(unit)
        return result
