"""What the driver asks of workers, and what it gets back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dipo.algo.captures import Batch
from dipo.algo.reconstruct import Phase
from dipo.algo.sweep import UnitResult
from dipo.algo.trainer import Piece
from dipo.data.samples import Dataset
from dipo.graph.plan import Plan
from dipo.graph.target_spec import TargetSpec
from dipo.graph.units import Unit
from dipo.recipe import AlgoConfig


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
    """A worker's part in a sweep."""

    batches: Sequence[Batch]
    owners: Sequence[int]
    """The worker that holds each of the run's batches."""
    pieces: Sequence[Piece]
    piece_owners: Sequence[int]
    """The worker that holds each of the run's pieces."""


@dataclass(frozen=True)
class Work:
    """A unit's training, as the driver asks for it."""

    cfg: AlgoConfig
    phase: Phase
    correct_bias: bool
    """Correct the biases behind the training, where that helps."""
    seed: int
    tunes: bool = False
    """Codes stay; biases and scales are trained."""


@dataclass(frozen=True)
class AloneWork:
    """A unit that one worker solves by itself."""

    unit: Unit
    batches: Sequence[Batch]
    """All of the run."""
    work: Work
    begun: UnitResult | None
    """What an earlier phase made of it."""


@dataclass(frozen=True)
class UnitCost:
    """What a unit takes of a worker."""

    seconds: float
    """Of a forward pass: the training's are in proportion."""
    input_bytes: dict[str, int]
    """By name of a value that it reads: bytes of one sample's captures, of the float and of the quantized network."""


@dataclass(frozen=True)
class TimedResult:
    """A unit's result and what it cost."""

    result: UnitResult
    seconds: float
