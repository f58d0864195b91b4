"""The loop over units: each is solved after those before it, so that it sees their errors and compensates them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dipo.algo.activation_cache import CachedActivation
from dipo.algo.bench import Bench
from dipo.algo.judgement import Judgement
from dipo.algo.network_pair import LayerOutputs, NetworkPair
from dipo.algo.step import UnitStep
from dipo.algo.trainer import GradShard
from dipo.graph.accessors import name_of
from dipo.graph.plan import Found, QuantizedLayer
from dipo.graph.units import Unit
from dipo.quant.spec import QParams


@dataclass(frozen=True)
class UnitResult:
    """A unit's layers and activations after a step."""

    layers: dict[str, QuantizedLayer]
    activations: dict[str, QParams]
    rounding: dict[str, NDArray[np.float32]] | None = None
    """By name of the layer: state that a later phase resumes, see `WeightQuantizer.begun`; None where there is none."""
    loss_first: float | None = None
    """Mean loss of the first optimizer steps; None where nothing was trained."""
    loss_last: float | None = None
    """Mean loss of the last optimizer steps; likewise."""
    bias_corrected: bool = False
    """Whether correcting the biases after training lowered the error of the unit's outputs."""
    judged: Judgement | None = None
    """The verdict on what the step made, by held-out samples; None where it was not judged."""
    seconds: float = 0.0
    """Seconds that the worker took, where it was measured."""


@dataclass(frozen=True, eq=False)
class UnitWork:
    """A unit before it is solved, on one of the workers that solve it together."""

    unit: Unit
    pair: NetworkPair
    """Both networks, in front of the unit."""
    targets: Mapping[str, CachedActivation]
    """The unit's outputs in the float network; empty where that is not carried along."""
    outputs: LayerOutputs | None
    """Outputs of the unit's layer before the step, where it asked for them and the layer has a bias."""
    pieces: Sequence[GradShard]
    """This worker's shards of every optimizer step's batch."""
    shard_ranks: Sequence[int]
    """The worker that holds each of the run's shards."""
    warm_start: UnitResult | None
    """The unit's result after an earlier phase; None where there was none."""
    bench: Bench
    before: UnitResult | None = None
    """The unit as it came into the step, in front of all its phases; None where it is not to be judged."""
    held_out: Sequence[int] = ()
    """Indices of the samples that the step must not be fitted to, rising."""

    @property
    def layers(self) -> list[str]:
        """Names of the unit's layers that are quantized."""
        return [name for name in self.unit.layers if name in self.pair.plan.layers]


def as_it_is(pair: NetworkPair, unit: Unit, network: Found) -> UnitResult:
    """Return what a network has of a unit: its quantized layers, and the activations that it makes.

    Args:
        pair: Both networks, for their nodes and plan.
        unit: The unit.
        network: The quantized network that is asked.
    """
    made = {name_of(value) for name in unit.nodes for value in pair.nodes[name].outputs if value.name}
    return UnitResult(
        {name: network.layers[name] for name in unit.layers if name in network.layers},
        {name: network.activations[name] for name in pair.plan.activations if name in made},
    )


class UnitSolver:
    """A pass of one step over the units, in order. Every worker makes the same calls at the same time."""

    def __init__(
        self,
        step: UnitStep,
        pair: NetworkPair,
        bench: Bench,
        *,
        pieces: Sequence[GradShard],
        shard_ranks: Sequence[int],
        held_out: Sequence[int] = (),
    ) -> None:
        """Begin in front of the first unit of `pair`.

        Args:
            step: The step that solves each unit.
            pair: Both networks.
            bench: The worker's networks, samples and device.
            pieces: This worker's shards of every optimizer step's batch.
            shard_ranks: The worker that holds each of the run's shards.
            held_out: Indices of the samples that the step must not be fitted to, rising.
        """
        self.step, self.pair, self.bench = step, pair, bench
        self.pieces, self.shard_ranks, self.held_out = pieces, shard_ranks, held_out

    def solve(self, unit: Unit, *, warm_start: UnitResult | None = None) -> UnitResult:
        """Solve the next unit (one without layers is only run) and move on to the one after it.

        Args:
            unit: The next unit.
            warm_start: Its result after an earlier phase.
        """
        return self._take(unit, known=None, warm_start=warm_start)

    def replay(self, unit: Unit, result: UnitResult) -> None:
        """Apply an earlier result of the next unit and move on to the one after it, with the same bits as `solve`."""
        self._take(unit, known=result, warm_start=None)

    def _take(self, unit: Unit, *, known: UnitResult | None, warm_start: UnitResult | None) -> UnitResult:
        targets = self.pair.targets(unit) if self.pair.with_float else {}
        outputs = self.pair.layer_outputs(unit) if self.step.reads_outputs else None
        result = known
        if result is None and any(name in self.pair.plan.layers for name in unit.layers):
            before = as_it_is(self.pair, unit, self.pair)
            if warm_start is not None:
                self.pair.adopt(warm_start.layers, warm_start.activations)
            work = UnitWork(
                unit, self.pair, targets, outputs, self.pieces, self.shard_ranks, warm_start, self.bench, before,
                self.held_out,
            )  # fmt: skip
            result = self.step.solve(work)
        result = result or UnitResult({}, {})
        self.pair.adopt(result.layers, result.activations)
        self.pair.advance(unit, outputs=outputs)
        self.pair.fp.update(targets)
        self.pair.forget(unit)
        return result
