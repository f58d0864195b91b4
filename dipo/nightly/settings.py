"""The options of a night, on its command line and in the jobs file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from dipo.section import Between, Section


@dataclass(frozen=True)
class GateConfig(Section):
    """What a job has to keep to; null: no such gate."""

    max_top1_drop: Annotated[float | None, Between(-100, 100)] = None
    """Points of top-1 that the deployed model may lose against FP32."""
    min_cosine: Annotated[float | None, Between(-1, 1)] = None
    """Least cosine of the deployed model's outputs with FP32's."""
    max_minutes: Annotated[float | None, Between(0, above=True)] = None
    """Minutes that a job may take."""
    timeout_minutes: Annotated[float | None, Between(0, above=True)] = None
    """Minutes after which a job is ended; null: twice max_minutes."""

    @property
    def timeout_seconds(self) -> float | None:
        """Seconds after which a job is ended; None: never."""
        if self.timeout_minutes is not None:
            return 60 * self.timeout_minutes
        return None if self.max_minutes is None else 120 * self.max_minutes


@dataclass(frozen=True)
class ClusterConfig(Section):
    """The Ray that all jobs of the night share."""

    address: str | None = None
    """Ray to join; null: a private one, where a job wants Ray at all."""
    cpus: Annotated[int | None, Between(1)] = None
    """CPUs to share out on this machine; null: all."""


@dataclass(frozen=True)
class Config(Section):
    """A night, as the command line has it."""

    gate: GateConfig = field(default_factory=GateConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    jobs: str | None = None
    """The jobs file."""
    out: str = "outputs/nightly"
    """Folder of the nights."""
    history: str | None = None
    """SQLite file or database URL; null: history.sqlite in `out`."""
    parallel: Annotated[int | None, Between(1)] = None
    """Jobs at a time; null: as many as fit."""


@dataclass(frozen=True)
class TrendConfig(Section):
    """The trend of a job, as the command line has it."""

    out: str = Config.out
    """Folder of the nights."""
    history: str | None = None
    """As for a night."""
    last: Annotated[int, Between(1)] = 14
    """Nights to show."""

    @classmethod
    def prefix(cls) -> str:
        """Return the prefix of its options: none."""
        return ""


def overlay(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Merge nested values; the later ones win."""
    merged: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
            merged[key] = overlay(merged[key], value) if both else value
    return merged
