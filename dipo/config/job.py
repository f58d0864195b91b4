"""The configuration of a job: frozen, typed, checked; the one home of every default."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from dipo.algo.step import Step
from dipo.algo.steps import STEPS, make_steps
from dipo.algo.steps.bias_correction import BiasCorrectionOptions
from dipo.algo.steps.equalize import EqualizeOptions
from dipo.algo.steps.gptq import GptqOptions
from dipo.algo.steps.sparsify import SparsifyOptions
from dipo.algo.steps.tune import TuneOptions
from dipo.errors import UserError
from dipo.export.targets import OWN_OPTIONS, TARGETS
from dipo.export.targets.qualcomm import EncodingsOptions
from dipo.export.targets.stpu import StpuOptions
from dipo.export.targets.trt import TensorRtOptions
from dipo.recipe import CalibConfig, PrecisionConfig
from dipo.section import Between, Called, OneOf, Section, show

if TYPE_CHECKING:
    from dipo.data.samples import Datasets, InputSpec

ZOO = Path(__file__).parents[1] / "zoo"
SOURCE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
"""package.module:function."""


@dataclass(frozen=True)
class ModelConfig(Section):
    """The float network."""

    name: str | None = None
    """Name in reports and in the run folder's name; null: the file's name."""
    path: str | None = None
    """ONNX file. `zoo:FILE` is one that comes with dipo."""
    op_library: str | None = None
    """Shared library with the operators of the network that are neither ONNX's nor ONNX Runtime's."""

    @property
    def title(self) -> str:
        """What reports call the network."""
        return self.name or Path((self.path or "model").removeprefix("zoo:")).stem


@dataclass(frozen=True)
class DataConfig(Section):
    """Calibration and evaluation samples."""

    path: str | None = None
    """Samples: an .npz or .npy file, a folder of .npy files, a folder of images, or a folder of <input>/<n>.bin; which
    one is found out. `zoo:FILE` is one that comes with dipo."""
    source: str | None = None
    """package.module:function that returns samples, an iterable (such as a DataLoader) or arrays by name, in place of
    data.path; each node calls it for itself."""
    eval_path: str | None = None
    """Evaluation samples, where they are not part of data.path."""
    eval_source: str | None = None
    """package.module:function that returns evaluation samples, in place of data.eval_path."""
    num: Annotated[int | None, Between(1)] = None
    """Calibration samples; null: all."""
    eval_num: Annotated[int | None, Between(1)] = None
    """Evaluation samples; null: all."""
    batch_size: Annotated[int, Between(1)] = 16
    """Samples in a forward batch. Batches are cut at fixed places, so that results do not depend on the workers."""
    mean: list[float] | None = None
    """Mean of each channel, or of all, on images after data.scale: (x * scale - mean) / std; null: 0."""
    std: Annotated[list[float] | None, Between(0, above=True)] = None
    """Standard deviation of each channel, or of all, on images after data.scale; null: 1."""
    scale: Annotated[float, Between(0, above=True)] = 1 / 255
    """Factor on the pixels of uint8 images."""
    size: Annotated[int | None, Between(1)] = None
    """Pixels to which an image's shorter side is resized before the centre is cropped; null: the model's height."""
    layout: Annotated[str, OneOf(("auto", "nchw", "nhwc"))] = "auto"
    """Order of the axes of stored arrays; auto: the one that fits the model's input."""
    fixed: Annotated[dict[str, Any], Called("a mapping such as {sr:16000}")] = field(default_factory=dict)
    """Values of inputs that are the same for all samples, by name of the input: a number, or lists of numbers."""
    class_axis: Annotated[dict[str, Any], Called("a mapping such as {logits:2}")] = field(default_factory=dict)
    """Axis of the classes of outputs, by name or pattern, on which top-1 agreement is told; 0, the samples' axis: none.
    It is found out for outputs that are not named (docs/report.md)."""

    def __post_init__(self) -> None:
        """Check each option, then mean against std."""
        super().__post_init__()
        lengths = {len(values) for values in (self.mean, self.std) if values is not None}
        if 0 in lengths or len(lengths - {1}) > 1:
            raise UserError(
                f"data.mean {show(self.mean)} and data.std {show(self.std)}: give one number, or one for each channel"
            )
        for output, axis in self.class_axis.items():
            if not isinstance(axis, int) or isinstance(axis, bool):
                raise UserError(f"data.class_axis {output!r}: {show(axis)}, give the number of an axis, 0 for none")
        for name in ("", "eval_"):
            path, source = getattr(self, f"{name}path"), getattr(self, f"{name}source")
            if source is not None and not SOURCE.fullmatch(source):
                raise UserError(f"data.{name}source {source!r}: give package.module:function")
            if source is not None and path is not None:
                raise UserError(f"data.{name}path and data.{name}source: give one of them, samples come from one place")

    @property
    def is_given(self) -> bool:
        """Whether there are samples of the user's."""
        return self.path is not None or self.source is not None

    def opened(self, inputs: Sequence[InputSpec]) -> Datasets:
        """Return the samples, for these inputs of the model; see `dipo.data.dataset.open_datasets`.

        Raises:
            UserError: There are none, their form is not known, or they do not fit the model or the settings.
        """
        from dipo.data.dataset import open_datasets

        return open_datasets(
            path=None if self.path is None else resolve_path(self.path),
            source=self.source,
            eval_path=None if self.eval_path is None else resolve_path(self.eval_path),
            eval_source=self.eval_source,
            inputs=inputs,
            num=self.num,
            eval_num=self.eval_num,
            mean=self.mean,
            std=self.std,
            scale=self.scale,
            size=self.size,
            layout=self.layout,
            fixed=self.fixed,
        )


@dataclass(frozen=True)
class TargetName(Section, prefix="platform"):
    """Which target."""

    name: Annotated[str, OneOf(TARGETS)] = "ort"
    """Whose rules are followed and whose files are written."""


@dataclass(frozen=True)
class PlatformConfig(StpuOptions, EncodingsOptions, TensorRtOptions, TargetName):
    """The deploy target."""

    options: dict[str, Any] = field(default_factory=dict)
    """Options of a target that another package brings, such as {strength:3}."""

    def __post_init__(self) -> None:
        """Check each option, and where it is given.

        Raises:
            UserError: One is wrong, or one of dipo's own targets is given among those of another package's.
        """
        super().__post_init__()
        for name in self.options:
            if name in OWN_OPTIONS:
                raise UserError(f"platform.options.{name}: it is an option of dipo's, set platform.{name}")

    @property
    def given(self) -> dict[str, Any]:
        """The targets' options that are set, of all targets, by name."""
        fields = {each.name: each.default for each in dataclasses.fields(self) if each.name in OWN_OPTIONS}
        own = {name: getattr(self, name) for name, default in fields.items()}
        return {name: value for name, value in own.items() if value != fields[name]} | self.options


@dataclass(frozen=True)
class ExportConfig(Section):
    """The written files."""

    format: Annotated[str, OneOf(("qdq", "qop"))] = "qdq"
    """Form of quantized.onnx: QuantizeLinear and DequantizeLinear around float operators, or integer operators."""
    weights: Annotated[str, OneOf(("kernels", "packed"))] = "kernels"
    """Weights in the types that integer kernels read, or those below 8 bits packed, two 4-bit codes to a byte."""
    also: Annotated[list[str], OneOf(TARGETS)] = field(default_factory=list)
    """Other targets whose files are written from the same run, each into a folder of its name."""


@dataclass(frozen=True)
class StepsConfig(Section):
    """Which steps."""

    name: str = "none"
    """Name in reports and in the run folder's name."""
    steps: Annotated[list[str | dict[str, Any]], OneOf(STEPS)] = field(default_factory=list)
    """Steps, in their order, each a name or {NAME:{OPTION:VALUE}} with options for it alone; empty: calibrate and
    export."""


@dataclass(frozen=True)
class AlgoConfig(SparsifyOptions, BiasCorrectionOptions, EqualizeOptions, GptqOptions, TuneOptions, StepsConfig):
    """What is done to the network: before calibration (equalize) and after it."""

    def __post_init__(self) -> None:
        """Check each option, then the steps."""
        super().__post_init__()
        self.make_steps()

    def make_steps(self) -> list[Step]:
        """Make the steps, in their order.

        Raises:
            UserError: Their order makes no sense, or an entry of the list has a wrong option.
        """
        return make_steps(self.steps, self)


@dataclass(frozen=True)
class ClusterConfig(Section):
    """Who does the work."""

    DECISIVE: ClassVar = ("schedule", "threads", "compile", "grad_shards")
    """Options that results depend on; the workers are not among them."""

    kind: Annotated[str, OneOf(("ray", "inline"))] = "ray"
    """Ray's workers, or this process."""
    workers: Annotated[int | None, Between(1)] = None
    """Number of workers; null: one for each GPU, 2 without GPUs, 1 inline."""
    threads: Annotated[int, Between(1)] = 1
    """CPU threads of a worker."""
    schedule: Annotated[str, OneOf(("sequential", "parallel"))] = "sequential"
    """How units are reconstructed: one after the other, the workers sharing each; or all at the same time, a worker
    each, and then polished one after the other."""
    grad_shards: Annotated[int, Between(1)] = 4
    """Pieces into which an optimizer step's batch is cut: results depend on it, not on the workers. So many workers at
    most share a unit."""
    placement: Annotated[str, OneOf(("pack", "spread"))] = "pack"
    """Workers on as few nodes as possible, or on as many."""
    gpus_per_worker: Annotated[float | None, Between(0, above=True)] = None
    """GPUs of a worker, 0.5 for two on one; null: 1, or less where there are more workers than GPUs."""
    address: str | None = None
    """Ray to join: `auto` or `ray://HOST:PORT`; null or `local`: a private one, on the loopback interface, is
    started."""
    dashboard: bool = False
    """Start Ray's dashboard with the private Ray, on the loopback interface."""
    retries: Annotated[int, Between(0)] = 3
    """How often a piece of work is done again whose worker died."""
    start_minutes: Annotated[float, Between(0, above=True)] = 10
    """How long to wait for room and for the workers' start."""
    replace_seconds: Annotated[float, Between(0)] = 60
    """How long the others wait for the successor of a worker that died, before they go on without it."""
    captures_gb: Annotated[float | None, Between(0, above=True)] = None
    """Gigabytes of captured values that cluster.schedule=parallel keeps at a time; null: 30 % of Ray's object store,
    2 inline."""
    object_store_gb: Annotated[float | None, Between(0.08)] = None
    """Gigabytes of memory for the object store of the private Ray; null: Ray decides."""
    spill_dir: str | None = None
    """Folder for what the private Ray's object store has no room for; null: Ray's temporary folder."""
    device: Annotated[str, OneOf(("auto", "cpu", "cuda"))] = "auto"
    """Where tensors live; auto: the GPU where there is one."""
    compile: bool = True
    """Compiled kernels (torch.compile); false: eager ones."""

    def __post_init__(self) -> None:
        """Check each option, then workers against kind."""
        super().__post_init__()
        if self.kind == "inline" and self.workers not in (None, 1):
            raise UserError(
                f"cluster.workers {self.workers}: cluster=inline is one process, leave it 1 or take cluster=ray"
            )


@dataclass(frozen=True)
class RunConfig(Section):
    """The folder of a run."""

    dir: str | None = None
    """Folder for all that the run writes; null: outputs/<date>/<time>-<model>-<algo>."""
    resume: str | None = None
    """Folder of a run to go on with, from its last finished unit; its configuration is the one to start from."""
    track: Annotated[list[str], OneOf(("tensorboard", "mlflow"))] = field(default_factory=list)
    """Where the run's events go besides events.jsonl; needs the extra `tracking`."""

    def __post_init__(self) -> None:
        """Check each option, then the two folders against each other."""
        super().__post_init__()
        if self.resume is not None and self.dir is not None and Path(self.resume) != Path(self.dir):
            raise UserError(f"run.dir={self.dir}: a resumed run stays in its folder, {self.resume}, leave run.dir out")


@dataclass(frozen=True)
class Config(Section):
    """One job."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    algo: AlgoConfig = field(default_factory=AlgoConfig)
    calib: CalibConfig = field(default_factory=CalibConfig)
    precision: PrecisionConfig = field(default_factory=PrecisionConfig)
    platform: PlatformConfig = field(default_factory=PlatformConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    run: RunConfig = field(default_factory=RunConfig)
    seed: Annotated[int, Between(0, 2**32 - 1)] = 0
    """Seed of everything random."""
    dry_run: bool = False
    """Load, plan and check everything, print what would be done, do none of it."""

    @property
    def needs_samples(self) -> bool:
        """Whether anything asks for calibration samples."""
        return self.calib.reads_statistics or any(step.needs_samples for step in self.algo.make_steps())


def to_plain(config: Config) -> dict[str, Any]:
    """Return the configuration as nested dictionaries of plain values, for config.yaml."""
    return dataclasses.asdict(config)


def resolve_path(path: str) -> Path:
    """Return the file or folder that `path` means: one of dipo's own after `zoo:`, else a path with `~` expanded.

    Raises:
        UserError: dipo has no such file of its own.
    """
    if not path.startswith("zoo:"):
        return Path(path).expanduser()
    found = ZOO / path.removeprefix("zoo:")
    if not found.is_file():
        names = sorted(file.name for file in ZOO.glob("*") if file.suffix in {".onnx", ".npz"})
        raise UserError(f"{path}: no such file comes with dipo, choose from {', '.join(names)}")
    return found
