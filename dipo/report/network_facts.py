"""What a network is made of, and what a job on it will cost: known before any work."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class RegionRow:
    """Nodes that torch does not compute, and that ONNX Runtime runs together as one step."""

    nodes: list[str]
    """Their names, in topological order."""
    operators: dict[str, int]
    """Number of nodes by operator."""
    share: float
    """Part of the network's multiplications, 0 to 1."""
    weights: dict[str, str] = field(default_factory=dict)
    """By name of those that are recurrent: in which form their weights are stored, and why, such as `its weights are
    stored in 8 bits`."""


@dataclass(frozen=True)
class FloatRow:
    """A product that stays float."""

    name: str
    """Name of the node."""
    operator: str
    why: str
    share: float
    """Part of the network's multiplications, 0 to 1."""


@dataclass(frozen=True)
class NetworkFacts:
    """The composition of a network."""

    operators: dict[str, int]
    """Number of nodes by operator, of those that torch computes; the most frequent first."""
    regions: list[RegionRow]
    """What ONNX Runtime computes in its place."""
    layers: int
    """Number of layers."""
    quantized: int
    """Number of layers that are quantized."""
    stays_float: list[FloatRow]
    """Products that are not, those with most multiplications first."""
    units: int | None
    """Number of units that a step solves one after the other; null where no step does."""
    parameters: int
    multiplications: int
    """Those of one sample."""
    quantized_share: float
    """Part of the multiplications that has integer weights, or integers on both sides."""

    @property
    def runtime_share(self) -> float:
        """Part of the multiplications that ONNX Runtime computes in the place of torch."""
        return sum(region.share for region in self.regions)

    @property
    def float_share(self) -> float:
        """Part of the multiplications that stays float, in torch or in ONNX Runtime."""
        return sum(row.share for row in self.stays_float)


@dataclass(frozen=True)
class Estimate:
    """The cost of a job, extrapolated from a few timed passes of its network."""

    seconds: dict[str, float]
    """By stage or step."""
    unknown: list[str]
    """Steps whose cost is not known beforehand."""
    workers: int
    """Number of workers."""
    worker_mb: float
    """Memory of a worker, MB."""


@dataclass(frozen=True)
class Preflight:
    """What a user should know before the work."""

    title: str
    facts: NetworkFacts
    samples: dict[str, str]
    """How samples are read, by what they are for."""
    estimate: Estimate | None = field(default=None)
