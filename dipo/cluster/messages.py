"""What the driver tells workers, and how the samples are shared out among them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dipo.algo.activation_cache import Batch
from dipo.algo.bench import Shared
from dipo.algo.step import UnitStep
from dipo.algo.trainer import GradShard
from dipo.algo.unit_solver import UnitResult
from dipo.data.samples import Dataset
from dipo.graph.plan import Plan, QuantizedModel
from dipo.graph.target_spec import TargetSpec
from dipo.graph.units import Unit


@dataclass(frozen=True)
class Job:
    """What every worker is told at its start."""

    plan: Plan
    rules: TargetSpec
    calib: Dataset
    device: str
    """`cpu` or `cuda`."""
    threads: int
    """CPU threads."""
    compile: bool
    """Compiled kernels for reconstruction."""
    run: str = ""
    """Name of the run, for metrics."""


@dataclass(frozen=True)
class Shard:
    """A worker's part in a walk through the units."""

    batches: Sequence[Batch]
    owners: Sequence[int]
    """The worker that holds each of the run's batches."""
    pieces: Sequence[GradShard]
    shard_ranks: Sequence[int]
    """The worker that holds each of the run's pieces."""


@dataclass(frozen=True, eq=False)
class Begin:
    """Read the samples and stand in front of the first unit."""

    step: UnitStep
    units: Sequence[Unit]
    """All of the network."""
    quantized: Shared[QuantizedModel]
    """The network as the step before left it."""
    shard: Shard


@dataclass(frozen=True, eq=False)
class Solve:
    """Solve the next unit together with the other workers."""

    unit: Unit
    warm_start: UnitResult | None = None
    """What an earlier phase made of it."""


@dataclass(frozen=True, eq=False)
class Replay:
    """Take what was found for the next units before."""

    units: Sequence[Unit]
    results: Sequence[UnitResult]
