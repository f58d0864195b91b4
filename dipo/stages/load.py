"""The model, the samples and the plan; and whether torch computes what ONNX Runtime does."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from dipo.algo.analytic import channel_reaches
from dipo.algo.captures import cut
from dipo.algo.equalize import Equalized, equalize
from dipo.algo.links import Refusal
from dipo.algo.moments import input_moments, moments_of
from dipo.config import Config, DataConfig, resolve_path
from dipo.data.dataset import Dataset, Datasets, InputSpec, open_datasets
from dipo.data.noise import make_noise
from dipo.errors import UserError
from dipo.export.forms import Form
from dipo.export.platforms import RULES, check_options
from dipo.export.runtime import run_model
from dipo.graph.load import layers_of, load, name_of, node_name
from dipo.graph.plan import Plan, make_plan
from dipo.graph.torch_module import GraphModule, channels_last
from dipo.graph.wishes import check_patterns, fitting
from dipo.quant.gaussian import Moments
from dipo.recipe import PrecisionConfig
from dipo.section import options

log = logging.getLogger("dipo")

ABSORPTION_SAMPLES, ABSORPTION_BATCH = 64, 16
"""Samples on which absorbed biases must leave the network's function as it is."""
NOISE_SAMPLES = 64
"""Samples of noise on which a job without others is checked."""
PARITY_SAMPLES = 4
PARITY_LIMIT = 1e-3
"""Largest difference between torch and ONNX Runtime on the float network, over the largest output, that is rounding."""


@dataclass(frozen=True)
class Loaded:
    """What a job begins with."""

    path: Path
    model: ir.Model
    """The float network; equalized, where that was asked for."""
    data: Datasets
    plan: Plan
    equalized: Equalized | None = None
    """What equalization did."""
    has_samples: bool = True
    """Whether `data` holds the user's samples, not noise."""
    least_outputs: dict[str, NDArray[np.float32]] | None = None
    """What equalization saw of the samples: by name of the layer, the least number [C] of its output."""


def load_job(config: Config) -> Loaded:
    """Reads the model, finds the samples, makes the plan.

    Raises:
        UserError: One of them is missing or wrong.
    """
    if config.model.path is None:
        raise UserError("no model: give +model=mobilenet or model.path=<file.onnx>")
    path = resolve_path(config.model.path)
    model = load(path)
    data = _samples(config, model, path)
    has_samples = config.data.path is not None
    check_options([config.platform.name, *config.export.also], cfg=config.platform, form=form_of(config))
    plan = plan_for(config.platform.name, config, model)
    check_patterns("algo.sparsity_skip", config.algo.sparsity_skip, list(plan.layers), list(plan.layers))
    equalized, least = None, None
    if "equalize" in config.algo.steps and plan.layers:
        if has_samples and config.algo.absorb_bias and not _leaves_channels(config, plan):
            least = _least_outputs(model, data.calib)
        equalized = equalized_model(config, model, plan, least)
        model = equalized.model
        plan = plan_for(config.platform.name, config, model)
    if not plan.layers:
        raise UserError(
            f"model.path={path}: no layer is left to quantize (Conv, ConvTranspose, Gemm or MatMul with constant "
            "weights, and not in precision.skip)"
        )
    plan = dataclasses.replace(plan, observed=_observed(config, model, plan))
    return Loaded(path, model, data, plan, equalized, has_samples, least)


def plan_for(target: str, config: Config, model: ir.Model, *, fit: bool = False) -> Plan:
    """What a target quantizes by the options of `precision`.

    Args:
        target: Its name.
        config: The job.
        model: The float network.
        fit: The options were meant for another target: what this one cannot do is left to it.

    Raises:
        UserError: The target cannot do what the options say, or they match nothing.
    """
    precision = config.precision
    wishes = {option.name: getattr(precision, option.name) for option in options(PrecisionConfig)}
    rules = RULES[target]
    return make_plan(model, rules=rules, **(fitting(rules, wishes) if fit else wishes))


def form_of(config: Config) -> Form:
    """How `quantized.onnx` is to be written."""
    return Form(config.export.format, packed=config.export.weights == "packed")


def _observed(config: Config, model: ir.Model, plan: Plan) -> tuple[str, ...]:
    """Values that the target leaves float and another would quantize: its files can then be written from this run."""
    likes = {(r.operators, r.fuse_residual_add, r.quantize_outputs): name for name, r in RULES.items()}
    found = {value: None for name in likes.values() for value in plan_for(name, config, model, fit=True).activations}
    return tuple(value for value in found if value not in plan.activations)


def equalized_model(
    config: Config, model: ir.Model, plan: Plan, least_outputs: Mapping[str, NDArray[np.float32]] | None
) -> Equalized:
    """Balances the channels of layers with one scale for a weight.

    Args:
        config: The job.
        model: The float network.
        plan: What is quantized in it.
        least_outputs: By name of the layer, the least number [C] that its output had on samples.
    """
    algo = config.algo
    if _leaves_channels(config, plan):
        reason = "left out, all weights have a scale for each channel (algo.equalize_per_channel=true equalizes them)"
        return Equalized(model, [], [], [Refusal(next(iter(plan.layers)), reason)], 0, 0.0)
    try:
        reaches = channel_reaches(model, moments_of_model(model, config.data))
    except UserError as error:
        # Without them only the weights' ranges are balanced, as DFQ does.
        log.info("equalization looks at weights alone: %s", error)
        reaches = None
    return equalize(model, absorb_bias=algo.absorb_bias, seen_min=least_outputs, reaches=reaches)


def _leaves_channels(config: Config, plan: Plan) -> bool:
    """Whether equalization has nothing to do."""
    return all(layer.spec.per_channel for layer in plan.layers.values()) and not config.algo.equalize_per_channel


def _samples(config: Config, model: ir.Model, path: Path) -> Datasets:
    """The user's samples, or noise where nothing asks for any."""
    inputs = [_input_spec(value, path) for value in model.graph.inputs]
    data = config.data
    if data.path is None:
        if config.needs_samples:
            raise UserError("no samples: give data.path=<file or folder>, or take +algo=dfq, which needs none")
        noise = make_noise(inputs, num=NOISE_SAMPLES, seed=config.seed, mean=data.mean, std=data.std)
        return Datasets(calib=noise, eval=None)
    return open_datasets(
        path=resolve_path(data.path),
        eval_path=None if data.eval_path is None else resolve_path(data.eval_path),
        inputs=inputs,
        num=data.num,
        eval_num=data.eval_num,
        mean=data.mean,
        std=data.std,
        scale=data.scale,
        size=data.size,
        layout=data.layout,
    )


def _least_outputs(model: ir.Model, samples: Dataset) -> dict[str, NDArray[np.float32]]:
    """By name of the layer, the least number [C] of its output on some samples."""
    outputs = {name_of(node.outputs[0]): node for node in layers_of(model)}
    module = GraphModule(model, outputs=outputs).eval()
    found: dict[str, NDArray[np.float32]] = {}
    for batch in cut(min(ABSORPTION_SAMPLES, len(samples)), ABSORPTION_BATCH):
        arrays = samples.read(batch.start, batch.stop).inputs
        with torch.inference_mode():
            values = module({name: channels_last(torch.from_numpy(array)) for name, array in arrays.items()})
        for value, node in outputs.items():
            channel = -1 if node.op_type == "MatMul" else 1
            least = values[value].transpose(0, channel).flatten(1).amin(dim=1).numpy()
            found[node_name(node)] = np.minimum(found.get(node_name(node), least), least)
    return found


def moments_of_model(model: ir.Model, data: DataConfig) -> dict[str, Moments]:
    """What every value of the network is like, by BatchNorm's statistics.

    Samples that are normalised by `data.mean` and `data.std` have mean 0 and standard deviation 1; pixels between 0 and
    1 that are not are taken to be spread evenly.
    """
    mean, std = (None if values is None else np.asarray(values) for values in (data.mean, data.std))
    low = (0.0 - (0.0 if mean is None else mean)) / (1.0 if std is None else std)
    high = (1.0 - (0.0 if mean is None else mean)) / (1.0 if std is None else std)
    spread = {"mean": (low + high) / 2, "std": (high - low) / math.sqrt(12)} if mean is None else {}
    return moments_of(model, input_moments(model, low=low, high=high, **spread))


def _input_spec(value: ir.Value, path: Path) -> InputSpec:
    if value.shape is None or value.dtype is None:
        raise UserError(f"model.path={path}: input {value.name!r} has no declared shape and type, export it with both")
    shape = tuple(size if isinstance(size, int) else None for size in value.shape)
    return InputSpec(name=name_of(value), shape=shape, dtype=value.dtype.numpy())


def check_parity(loaded: Loaded, *, threads: int) -> float:
    """Runs a few samples through the float network in torch and, from the file as it is, in ONNX Runtime.

    Returns:
        The largest difference, over the largest output.

    Raises:
        UserError: One of the two cannot run it, they differ by more than rounding does, or labels name no class.
    """
    samples = loaded.data.calib.read(0, min(PARITY_SAMPLES, len(loaded.data.calib))).inputs
    names = [name_of(value) for value in loaded.model.graph.outputs]
    module = GraphModule(loaded.model, outputs=names).eval()
    try:
        expected = run_model(loaded.path, [samples], threads=threads)
    except Exception as error:
        raise _cannot_run("ONNX Runtime", error, loaded.path) from error
    try:
        with torch.inference_mode():
            found = module({name: channels_last(torch.from_numpy(array)) for name, array in samples.items()})
    except (RuntimeError, IndexError) as error:
        raise _cannot_run("torch", error, loaded.path) from error
    num_samples = len(next(iter(samples.values())))
    for name, array in expected.items():
        if not array.ndim or len(array) != num_samples or array.shape != tuple(found[name].shape):
            raise UserError(
                f"model.path={loaded.path}: output {name!r} has the shape {list(found[name].shape)} for {num_samples} "
                "samples, export the model with one row of every output for each sample"
            )
    _check_labels(loaded, classes=next(iter(expected.values()))[0].size)
    worst = max(_difference(found[name].numpy(), array) for name, array in expected.items())
    if worst > PARITY_LIMIT:
        raise UserError(
            f"model.path={loaded.path}: torch and ONNX Runtime differ by {worst:.2g} of the largest output on the "
            "float network, so nothing derived from it would hold; please report the model"
        )
    return worst


def _check_labels(loaded: Loaded, *, classes: int) -> None:
    """Looks at both ends, where the largest label of sorted samples is; the others are checked when all are read."""
    dataset = loaded.data.eval or loaded.data.calib
    some = min(PARITY_SAMPLES, len(dataset))
    for start in (0, len(dataset) - some):
        labels = dataset.read(start, start + some).labels
        if labels is not None and (labels.min() < 0 or labels.max() >= classes):
            raise UserError(
                f"data.path: samples {start} to {start + some - 1} have labels {labels.min()} to {labels.max()}, the "
                f"network has {classes} classes, give labels that fit it"
            )


def _difference(found: NDArray[Any], expected: NDArray[Any]) -> float:
    """Largest difference over the largest expected number; infinite where just one of the two is NaN."""
    if not np.array_equal(np.isfinite(found), np.isfinite(expected)):
        return math.inf
    finite = np.isfinite(expected)
    a, b = found[finite].astype(np.float64), expected[finite].astype(np.float64)
    return float(np.abs(a - b).max(initial=0.0) / np.abs(b).max(initial=1e-30))


def _cannot_run(who: str, error: Exception, path: Path) -> UserError:
    reason = next(iter(str(error).splitlines()), type(error).__name__)
    return UserError(f"model.path={path}: {who} cannot run the float network on the samples: {reason}")
