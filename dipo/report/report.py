"""`report.json`: a run's results, their cost, and its files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from dipo.report.analysis import AnalysisReport
from dipo.report.measures import OutputError, OutputFigures
from dipo.report.network_facts import NetworkFacts


@dataclass(frozen=True)
class LayerRow:
    """One layer: its output in the quantized network against the float one's, all errors before it included."""

    name: str
    cosine: float
    sqnr_db: float


@dataclass(frozen=True)
class OutputRow:
    """One output of the network, against the float network's."""

    name: str
    shape: list[int]
    """Shape of one sample."""
    type: str
    """Such as float32 or int64."""
    class_axis: int | None
    """Axis of its classes, that of the samples being 0; null where it has none."""
    simulated: OutputFigures
    deployed: OutputFigures | None
    """Null where the file was not run."""


@dataclass(frozen=True)
class ConcatRow:
    """One input of a Concat at which something is quantized, behind the Concat's grid, against the float network's.

    All errors before it are included.
    """

    name: str
    """Name of the input."""
    concat: str
    """Name of the node."""
    cosine: float
    sqnr_db: float
    steps: float | None
    """Its range on the calibration samples, in steps of the coarsest grid that it is put on; null where one of the two
    is not known."""


@dataclass(frozen=True)
class UnitRow:
    """One unit that an algorithm changed."""

    name: str
    step: str
    """The algorithm's step."""
    layers: list[str]
    inputs: list[str]
    outputs: list[str]
    steps: int
    """Optimizer steps."""
    loss: dict[str, float | None]
    """`first` and `last`: mean loss at either end of the training; null where nothing was trained."""
    bias_corrected: bool
    kept: bool | None
    """Whether the network has what the step made of the unit; null where nothing was judged."""
    gain_db: float | None
    """Fall of the error of the unit's outputs on held-out samples in dB, below zero where it rose; of bias correction,
    that of the channel means' error; null where nothing was judged."""
    seconds: float


@dataclass(frozen=True)
class EqualizedRow:
    """Layers whose channels were balanced against each other."""

    layers: list[str]
    min_scale: float
    max_scale: float
    """What channels between the layers were divided by."""
    num_zero: int
    """Channels without any weight, which were left alone."""


@dataclass(frozen=True)
class Note:
    """A sentence to the user on a layer or a value."""

    name: str
    what: str


@dataclass(frozen=True)
class TargetRow:
    """The files for another target, and how its network differs from the run's."""

    name: str
    differences: list[str]
    """Differences of its scheme from that of the run's target, in words."""
    weights: dict[str, float]
    """SQNR in dB of weights that were rounded once more, against those before, by name of the layer."""
    activations: dict[str, int]
    """Number of values by what became of their ranges: `kept` as they are, `range` kept on another grid, `statistics`:
    from what calibration saw."""
    error: OutputError | None
    """Error of the simulation of this target against the float network; null without samples."""
    notes: list[str]
    """What the user should know of the files."""
    files: dict[str, int]
    """Bytes of each file."""
    outputs: list[OutputRow] = field(default_factory=list)
    """Each output of the simulation of this target; empty without samples."""

    def with_notes(self, notes: Sequence[str]) -> TargetRow:
        """Return the row with more notes."""
        return replace(self, notes=[*self.notes, *notes])


@dataclass(frozen=True)
class Report:
    """The content of `report.json`."""

    model: str
    algo: str
    platform: str
    precision: str
    """Such as w4a8."""
    samples: dict[str, int]
    """`calibration` and `evaluation`."""
    evaluated_on: str
    """`evaluation` samples, or `calibration` samples where there are no others."""
    parity: float
    """Largest difference between torch and ONNX Runtime on the float network, over the largest output."""
    accuracy: dict[str, float | None]
    """`fp32`, `simulated`, `deployed` in per cent; null without labels."""
    error: dict[str, OutputError]
    """`simulated_vs_fp32`, `deployed_vs_fp32`, `deployed_vs_simulated`."""
    outputs: list[OutputRow]
    """Each output of the network."""
    layers: list[LayerRow]
    concats: list[ConcatRow]
    """Each input of a Concat at which something is quantized."""
    units: list[UnitRow]
    not_reconstructed: list[str]
    """Layers that stay float."""
    analysis: AnalysisReport | None
    """Per layer what its weights and its activations lose; null where no analysis was asked for."""
    equalized: list[EqualizedRow]
    """The groups of layers whose channels were balanced."""
    notes: list[Note]
    """What is odd about the network, and what was left undone."""
    files: dict[str, int]
    """Bytes of each file for the target, and of the float model as `float`, its files of tensors included."""
    seconds: dict[str, float]
    peak_rss_mb: dict[str, float]
    """Peak memory by process: `driver`, `worker 0`, ..."""
    workers: dict[str, Any]
    """Number, kind, device, threads, and pieces of a step."""
    versions: dict[str, str]
    targets: list[TargetRow] = field(default_factory=list)
    """The other targets whose files were written."""
    network: NetworkFacts | None = None
    """What the network is made of, what ONNX Runtime computes of it, and what stays float and why."""

    def to_plain(self) -> dict[str, Any]:
        """Return nested dictionaries and lists."""
        return asdict(self)

    def model_size(self, name: str) -> int:
        """Return the bytes of a written model, including its file of tensors."""
        return self.files[name] + self.files.get(f"{name}.data", 0)

    def worst_layers(self, count: int) -> list[LayerRow | ConcatRow]:
        """Return the layers and inputs of Concats with the lowest SQNR."""
        rows: list[LayerRow | ConcatRow] = [*self.layers, *self.concats]
        return sorted(rows, key=lambda row: row.sqnr_db)[:count]


def worst_output(rows: Sequence[OutputRow], *, deployed: bool = True) -> tuple[str, float] | None:
    """Return the name and the SQNR in dB of the worst of several outputs that hold floats; None where there is but one.

    Args:
        rows: The outputs.
        deployed: Of the written file, else of the simulation.
    """
    figures = {row.name: row.deployed if deployed else row.simulated for row in rows}
    known = {name: each.sqnr_db for name, each in figures.items() if each is not None and each.sqnr_db is not None}
    if len(known) < 2:
        return None
    name = min(known, key=known.__getitem__)
    return name, known[name]
