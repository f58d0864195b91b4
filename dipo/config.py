"""The configuration of a job: frozen, typed, checked; the one home of every default."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from dipo.composition import STEPS, check_order, reconstruction_of
from dipo.errors import UserError
from dipo.section import Between, OneOf, Section, choose, options, show

ZOO = Path(__file__).parent / "zoo"
WIDTHS = Between(2, 16)
DATA_FREE = frozenset({"equalize", "bias_correction"})
"""Steps that need no samples."""
PLATFORMS = ("ort", "trt", "snpe", "qnn", "rv", "rk", "atlas", "ti", "imx", "magicmind", "stpu", "openvino")
NODE_SETTINGS = ("weight_bits", "act_bits", "weight_symmetric", "weight_per_channel", "weight_narrow", "weight_block")


@dataclass(frozen=True)
class ModelConfig(Section):
    """The float network."""

    name: str | None = None
    """Name in reports and in the run folder's name; null: the file's name."""
    path: str | None = None
    """ONNX file. `zoo:FILE` is one that comes with dipo."""


@dataclass(frozen=True)
class DataConfig(Section):
    """Calibration and evaluation samples."""

    path: str | None = None
    """Samples: an .npz or .npy file, a folder of images, or a folder of <input>/<n>.bin; which one is found out.
    `zoo:FILE` is one that comes with dipo."""
    eval_path: str | None = None
    """Evaluation samples, where they are not part of data.path."""
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

    def __post_init__(self) -> None:
        """Check each option, then mean against std."""
        super().__post_init__()
        lengths = {len(values) for values in (self.mean, self.std) if values is not None}
        if 0 in lengths or len(lengths - {1}) > 1:
            raise UserError(
                f"data.mean {show(self.mean)} and data.std {show(self.std)}: give one number, or one for each channel"
            )


@dataclass(frozen=True)
class AlgoConfig(Section):
    """What is done to the network after calibration."""

    name: str = "none"
    """Name in reports and in the run folder's name."""
    steps: Annotated[list[str], OneOf(tuple(STEPS))] = field(default_factory=list)
    """Steps, in their order; empty: calibrate and export."""
    unit: Annotated[str | None, OneOf(("layer", "block", "stage", "network"))] = None
    """What is reconstructed together; null: a layer by adaround, else a block."""
    iters: Annotated[int, Between(1)] = 320
    """Optimizer steps for each unit."""
    polish_iters: Annotated[int | None, Between(0)] = None
    """Of those steps, the last that cluster.schedule=parallel runs behind the quantized units before; null: 15 %."""
    polish_lr: Annotated[float, Between(0)] = 2.0
    """Factor on all learning rates in those steps: they are few, and biases and scales have all but come to rest."""
    batch_size: Annotated[int, Between(1)] = 32
    """Samples in an optimizer step."""
    loss: Annotated[str, OneOf(("error", "fisher"))] = "error"
    """What a unit's outputs are judged by: their error, or their error times the squared gradients of the network's
    likelihood (BRECQ's Fisher diagonal)."""
    loss_norm: Annotated[float, Between(1)] = 2.0
    """Exponent of the error in the loss."""
    inputs: Annotated[str, OneOf(("quantized", "float"))] = "quantized"
    """What a unit reads while it is reconstructed: what the quantized units before it give (asymmetric), or the float
    network's values (symmetric)."""
    fp_input_prob: Annotated[float | None, Between(0, 0.99)] = None
    """Probability, in steps of 1/256, that an element of an activation keeps its float value during reconstruction;
    null: 0.5 by qdrop, else 0."""
    rounding: Annotated[str, OneOf(("sigmoid", "straight_through"))] = "sigmoid"
    """How rounding is learned: up or down from each weight by a rectified sigmoid (AdaRound), or any code, with
    gradients that pass the rounding as if it were not there."""
    train_scale: bool = False
    """Train the weights' scales together with the rounding (Genie)."""
    lr_round: Annotated[float, Between(0)] = 1.5e-3
    """Learning rate of the rounding, for algo.reference_iters steps; multiplied by reference_iters / iters."""
    lr_bias: Annotated[float, Between(0)] = 1e-3
    """Learning rate of the biases, scaled like lr_round."""
    lr_act: Annotated[float, Between(0)] = 4e-4
    """Learning rate of the activation scales' logarithms, scaled like lr_round."""
    lr_scale: Annotated[float, Between(0)] = 5e-4
    """Learning rate of the weight scales' logarithms, scaled like lr_round (algo.train_scale, and tune)."""
    reference_iters: Annotated[int, Between(1)] = 2000
    """Optimizer steps for which the learning rates are quoted."""
    reg_strength: Annotated[float, Between(0)] = 0.01
    """Weight of the regulariser that drives the rounding to 0 or 1."""
    warmup: Annotated[float, Between(0, 1)] = 0.2
    """Fraction of the steps before the regulariser sets in."""
    beta_start: Annotated[float, Between(0, above=True)] = 20.0
    """Exponent of the regulariser as it sets in."""
    beta_end: Annotated[float, Between(0, above=True)] = 2.0
    """Exponent of the regulariser at the last step."""
    correct_bias: bool = True
    """Correct the biases after each unit; kept only where that lowers the error of the unit's output."""
    train_bias: bool = True
    """Train the biases together with the rounding."""
    tune_iters: Annotated[int, Between(1)] = 150
    """Optimizer steps of tune, on the whole network."""
    tune_lr: Annotated[float, Between(0)] = 1.0
    """Factor on lr_bias, lr_scale and lr_act in tune, where they are not scaled by reference_iters."""
    equalize_per_channel: bool = False
    """Equalize weights with a scale for each channel, too: they need it not, and activations get wider ranges."""
    absorb_bias: bool = True
    """Equalization moves what no activation cuts off from a layer's bias into the next one's."""
    bias_source: Annotated[str, OneOf(("auto", "data", "batchnorm"))] = "auto"
    """Where bias_correction takes a layer's mean input from: the samples, or the BatchNormalization before it; auto:
    the samples, where there are any."""
    sparsity: Annotated[float, Between(0, 0.99)] = 0.5
    """Part of a layer's weights that sparsify sets to zero (algo.sparsity_pattern=unstructured)."""
    sparsity_pattern: str = "unstructured"
    """`unstructured`, or N:M: of M weights in a row along the input channels N are kept at most."""
    sparsity_mask: Annotated[str, OneOf(("magnitude", "error"))] = "error"
    """Which weights go: the smallest, or those whose loss the others make up for best (optimal brain surgeon)."""
    sparsity_skip: list[str] = field(default_factory=list)
    """Name patterns of layers that sparsify leaves alone; the first and the last are left alone anyway."""

    def __post_init__(self) -> None:
        """Check each option, then the order of the steps."""
        super().__post_init__()
        check_order(self.steps)
        pattern = self.sparsity_pattern
        if pattern != "unstructured" and not (match := re.fullmatch(r"(\d+):(\d+)", pattern)):
            raise UserError(f"algo.sparsity_pattern {show(pattern)}: give unstructured, or N:M such as 2:4")
        if pattern != "unstructured" and match and not 0 < int(match[1]) < int(match[2]):
            raise UserError(f"algo.sparsity_pattern {show(pattern)}: of M weights 1 to M - 1 are kept, such as 2:4")

    def for_step(self, name: str) -> AlgoConfig:
        """The options with what a step takes where they leave it open."""
        step = STEPS[name]
        choosable = reconstruction_of([name]) is not None
        prob = self.fp_input_prob if choosable and self.fp_input_prob is not None else step.fp_input_prob
        unit = self.unit if choosable and self.unit is not None else step.unit
        return dataclasses.replace(self, unit=unit, fp_input_prob=prob)


@dataclass(frozen=True)
class CalibConfig(Section):
    """How a range is chosen from what was seen."""

    method: Annotated[str, OneOf(("minmax", "percentile", "mse", "kl", "octav", "batchnorm"))] = "mse"
    """Range of an activation: all that was seen, a percentile of it, the least squared error (by a search or by OCTAV's
    iteration), the least divergence of the histograms (kl); or, without samples, what BatchNorm's statistics say."""
    sigmas: Annotated[float, Between(0, above=True)] = 6.0
    """Standard deviations on either side of the mean that a range covers (calib.method=batchnorm)."""
    percentile: Annotated[float, Between(50, 100)] = 99.99
    """Per cent of the values that a range keeps (calib.method=percentile)."""
    weights: Annotated[str, OneOf(("minmax", "mse", "percentile"))] = "mse"
    """Range of a weight, or of each of its channels: its extremes, the least error, or a percentile of it."""
    weight_percentile: Annotated[float, Between(50, 100)] = 99.99
    """Per cent of the weights, or of those of each channel, that a range keeps (calib.weights=percentile)."""


@dataclass(frozen=True)
class PrecisionConfig(Section):
    """Widths and grids."""

    weight_bits: Annotated[int, WIDTHS] = 8
    """Bits of a weight."""
    act_bits: Annotated[int, WIDTHS] = 8
    """Bits of an activation."""
    weight_per_channel: bool | None = None
    """One scale for each output channel of a weight; null: the platform decides."""
    weight_symmetric: bool | None = None
    """Weights with their zero point in the middle; null: the platform decides, and where it takes both, symmetric
    from 8 bits on, asymmetric below."""
    weight_narrow: bool | None = None
    """Weights without their smallest code (-127 .. 127); null: the platform decides, and where it takes both, with."""
    weight_block: Annotated[int | None, Between(2)] = None
    """So many weights in a row along the input axis share a scale, for each output channel; the last block may be
    shorter, and a layer with no more inputs than that has a scale for each channel; null: all of a channel."""
    act_signed: bool | None = None
    """Activations with codes on both sides of zero (-128 .. 127); null: the platform decides."""
    act_symmetric: bool | None = None
    """Activations with their zero point in the middle of the codes; null: the platform decides."""
    power_of_two: bool | None = None
    """Scales that are powers of two; null: the platform decides, and where it takes others, others."""
    placement: Annotated[str, OneOf(("input", "output"))] = "input"
    """Where activations are quantized: where the target's operators read them, or also behind each of these operators
    with the activation function that it is fused with, whoever reads it."""
    first_last_bits: Annotated[int | None, WIDTHS] = 8
    """Bits in the first and the last layer, where weight_bits or act_bits are below; null: as everywhere."""
    overrides: dict[str, dict[str, Any]] = field(default_factory=dict)
    """For the nodes whose name matches a pattern (`/features/*`): weight_bits, act_bits, weight_symmetric,
    weight_per_channel, weight_narrow or weight_block (null: none)."""
    skip: list[str] = field(default_factory=list)
    """Node-name patterns of what stays float."""

    def __post_init__(self) -> None:
        """Check each option, then the overrides.

        Raises:
            UserError: An override sets something else than a width or a grid, or sets it wrongly.
        """
        super().__post_init__()
        settings = {option.name: option for option in options(PrecisionConfig) if option.name in NODE_SETTINGS}
        for pattern, values in self.overrides.items():
            key = f"precision.overrides '{pattern}'"
            if not isinstance(values, dict):
                raise UserError(f"{key} {show(values)}: give settings such as {{weight_bits:4}}")
            for name, value in values.items():
                if name not in settings:
                    raise UserError(f"{key}: unknown setting '{name}': {choose(str(name), NODE_SETTINGS)}")
                optional = name == "weight_block"
                dataclasses.replace(settings[name], key=f"{key} {name}", optional=optional).read(value)


@dataclass(frozen=True)
class PlatformConfig(Section):
    """The deploy target."""

    name: Annotated[str, OneOf(PLATFORMS)] = "ort"
    """Whose rules are followed and whose files are written."""
    version: str | None = None
    """Version of the target's toolchain, such as 8.6.1, 10.13.0 or 11 (trt, whose versions from 11 on read no range
    files); null: 10.0.0."""
    schema: Annotated[str | None, OneOf(("0.6.1", "1.0.0", "2.0.0"))] = None
    """Schema of the encodings file (snpe, qnn); null: 0.6.1 for snpe, 1.0.0 for qnn."""
    winograd: bool = False
    """Convolutions of 3x3 run as Winograd's (stpu)."""


@dataclass(frozen=True)
class ExportConfig(Section):
    """The written files."""

    format: Annotated[str, OneOf(("qdq", "qop"))] = "qdq"
    """Form of quantized.onnx: QuantizeLinear and DequantizeLinear around float operators, or integer operators."""
    weights: Annotated[str, OneOf(("kernels", "packed"))] = "kernels"
    """Weights in the types that integer kernels read, or those below 8 bits packed, two 4-bit codes to a byte."""
    also: Annotated[list[str], OneOf(PLATFORMS)] = field(default_factory=list)
    """Other targets whose files are written from the same run, each into a folder of its name."""


@dataclass(frozen=True)
class ClusterConfig(Section):
    """Who does the work."""

    kind: Annotated[str, OneOf(("ray", "inline"))] = "ray"
    """Ray's workers, or this process."""
    workers: Annotated[int | None, Between(1)] = None
    """Number of workers; null: one for each GPU, 2 without GPUs, 1 inline."""
    threads: Annotated[int, Between(1)] = 1
    """CPU threads of a worker."""
    schedule: Annotated[str, OneOf(("sequential", "parallel"))] = "sequential"
    """How units are reconstructed: one after the other, the workers sharing each; or all at the same time, a worker
    each, and then polished one after the other."""
    grad_shards: Annotated[int | None, Between(1)] = None
    """Pieces into which an optimizer step's batch is cut: results depend on it, not on the workers; null: the number
    of workers, 4 with cluster.schedule=parallel."""
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
        by_data = "bias_correction" in self.algo.steps and self.algo.bias_source == "data"
        return self.calib.method != "batchnorm" or by_data or not set(self.algo.steps) <= DATA_FREE


def to_plain(config: Config) -> dict[str, Any]:
    """The configuration as nested dictionaries of plain values, for config.yaml."""
    return dataclasses.asdict(config)


def resolve_path(path: str) -> Path:
    """The file or folder that `path` means: one of dipo's own after `zoo:`, else a path with `~` expanded.

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
