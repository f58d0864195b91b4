"""The steps that go from unit to unit: what the workers do with each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Protocol

from dipo.algo.calibrate import Calibration
from dipo.algo.reconstruct import Phase
from dipo.algo.sweep import UnitResult
from dipo.cluster.work import Work
from dipo.composition import STEPS
from dipo.graph.accessors import layers_of, node_name
from dipo.graph.batch_norm import batch_norm_of
from dipo.graph.plan import edge_layers
from dipo.graph.units import Unit
from dipo.stages.context import Context
from dipo.stages.seeds import unit_seed


@dataclass(frozen=True)
class Begun:
    """What the parallel schedule made of the units before they are polished in their order."""

    results: Mapping[int, UnitResult]
    """By index of the unit."""
    phase: Phase


class UnitStep(Protocol):
    """What one step does with each unit."""

    name: str
    title: str
    """What the terminal calls a unit."""
    method: str
    """Of `Worker`, that takes the next unit."""
    trains: bool
    num_steps: int
    """Optimizer steps of a unit."""

    def arguments(self, unit: Unit) -> tuple[Any, ...]:
        """What the method is told besides the unit."""
        ...


class TrainStep:
    """Rounding, or scales alone, are trained."""

    method, trains = "reconstruct", True

    def __init__(self, context: Context, name: str, begun: Begun | None) -> None:
        """`begun` is what an earlier phase made of the units."""
        self.name, self.begun = name, begun
        self.title = "unit" if begun is None else "polish unit"
        self.algo, self.seed = context.config.algo.for_step(name), context.config.seed
        whole = Phase(0, self.algo.tune_iters if name == "tune" else self.algo.iters)
        self.phase = whole if begun is None else begun.phase
        self.num_steps = len(self.phase)

    def arguments(self, unit: Unit) -> tuple[Any, ...]:
        """The training, and what was made of the unit before."""
        tunes = self.name == "tune"
        work = Work(
            self.algo,
            self.phase,
            correct_bias=self.algo.correct_bias and not tunes,
            seed=unit_seed(self.seed, unit, self.phase),
            tunes=tunes,
        )
        return work, None if self.begun is None else self.begun.results.get(unit.index)


class BiasStep:
    """Biases are corrected by what calibration saw of the float network."""

    name, title, method, trains, num_steps = "bias_correction", "unit", "correct_bias", False, 0

    def __init__(self, calibration: Calibration) -> None:
        self.means = calibration.channel_means

    def arguments(self, unit: Unit) -> tuple[Any, ...]:
        """Channel means of the unit's layer."""
        return ({name: self.means[name] for name in unit.layers if name in self.means},)


class NormStep:
    """BatchNorm is estimated again."""

    name, title, method, trains, num_steps = "update_bn", "unit", "update_bn", False, 0

    def __init__(self, context: Context) -> None:
        self.calib = context.config.calib
        self.norms = {node_name(node): batch_norm_of(node) for node in layers_of(context.loaded.model)}

    def arguments(self, unit: Unit) -> tuple[Any, ...]:
        """BatchNorm of the unit's layer."""
        return next((self.norms[name] for name in unit.layers), None), self.calib


class PruneStep:
    """Weights are pruned."""

    name, title, method, trains, num_steps = "sparsify", "unit", "prune", False, 0

    def __init__(self, context: Context) -> None:
        self.algo, self.calib = context.config.algo, context.config.calib
        self.edge = edge_layers(context.loaded.model)

    def arguments(self, unit: Unit) -> tuple[Any, ...]:
        """Whether the unit's layer is left alone, and how others are pruned."""
        spared = any(
            name in self.edge or any(fnmatchcase(name, pattern) for pattern in self.algo.sparsity_skip)
            for name in unit.layers
        )
        return None if spared else self.algo, self.calib


def unit_step(context: Context, name: str, calibration: Calibration, begun: Begun | None = None) -> UnitStep:
    """The step of that name."""
    if STEPS[name].trains:
        return TrainStep(context, name, begun)
    if name == "bias_correction":
        return BiasStep(calibration)
    return NormStep(context) if name == "update_bn" else PruneStep(context)
