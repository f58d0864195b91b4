"""Messages of the driver to workers, and their shards of the samples."""

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
from dipo.graph.sample_axis import SampleAxes
from dipo.graph.target_spec import TargetSpec
from dipo.graph.units import Unit


@dataclass(frozen=True)
class Job:
    """The message to every worker at its start: the data and settings that are the same for all."""

    plan: Plan
    samples: SampleAxes
    """Where the samples lie in each of the network's values."""
    rules: TargetSpec
    calib: Dataset
    device: str
    """`cpu` or `cuda`."""
    threads: int
    """Number of CPU threads."""
    compile: bool
    """Whether kernels of reconstruction are compiled."""
    run: str = ""
    """Name of the run, for metrics."""


@dataclass(frozen=True)
class Shard:
    """A worker's share of the samples in a pass through the units."""

    batches: Sequence[Batch]
    owners: Sequence[int]
    """The worker that holds each of the run's batches."""
    pieces: Sequence[GradShard]
    shard_ranks: Sequence[int]
    """The worker that holds each of the run's gradient shards."""
    held_out: Sequence[int] = ()
    """Indices of the run's samples that the step must not be fitted to, rising."""


@dataclass(frozen=True, eq=False)
class Begin:
    """The message to read the samples and stand in front of the first unit."""

    step: UnitStep
    units: Sequence[Unit]
    """All units of the network, in order."""
    quantized: Shared[QuantizedModel]
    """The network after the step before."""
    shard: Shard


@dataclass(frozen=True, eq=False)
class Solve:
    """The message to solve the next unit together with the other workers."""

    unit: Unit
    warm_start: UnitResult | None = None
    """The unit's result after an earlier phase; None where there was none."""


@dataclass(frozen=True, eq=False)
class Replay:
    """The message to apply earlier results of the next units."""

    units: Sequence[Unit]
    results: Sequence[UnitResult]
