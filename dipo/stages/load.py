"""The model, the samples and the plan; and whether torch computes what ONNX Runtime does."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from dipo.algo.moments import input_moments, moments_of
from dipo.algo.step import FloatChange, FloatNetwork, FloatStep, Step
from dipo.config import Config, DataConfig, resolve_path
from dipo.data.dataset import Datasets, InputSpec, open_datasets
from dipo.data.noise import make_noise
from dipo.errors import UserError
from dipo.export.forms import Form
from dipo.export.runtime import run_model
from dipo.export.targets import TARGETS, check_options
from dipo.graph.accessors import name_of
from dipo.graph.load import load
from dipo.graph.plan import Plan, make_plan
from dipo.graph.torch_module import GraphModule, channels_last
from dipo.graph.wishes import fitting
from dipo.quant.gaussian import Moments

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
    """The float network, as the steps on it left it."""
    data: Datasets
    plan: Plan
    steps: list[Step]
    """Of the algorithm, in their order."""
    change: FloatChange
    """What the steps on the float network made of it."""
    has_samples: bool = True
    """Whether `data` holds the user's samples, not noise."""


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
    check_options([config.platform.name, *config.export.also], config.platform.given, form=form_of(config))
    steps = config.algo.make_steps()
    plan = plan_for(config.platform.name, config, model)
    for step in steps:
        step.check(plan)
    change = FloatChange(model)
    if plan.layers:
        network = FloatNetwork(
            model, plan, data.calib, has_samples, functools.partial(moments_of_model, model, config.data)
        )
        change = change_float(network, steps, config)
        model, plan = change.model, plan_for(config.platform.name, config, change.model)
    if not plan.layers:
        raise UserError(
            f"model.path={path}: no layer is left to quantize (Conv, ConvTranspose, Gemm or MatMul with constant "
            "weights, and not in precision.skip)"
        )
    plan = dataclasses.replace(plan, observed=_observed(config, model, plan))
    return Loaded(path, model, data, plan, steps, change, has_samples)


def change_float(
    network: FloatNetwork, steps: Sequence[Step], config: Config, *, record: Mapping[str, NDArray[Any]] | None = None
) -> FloatChange:
    """Run the steps on the float network, in their order.

    Args:
        network: As it was loaded.
        steps: All of the job.
        config: The job.
        record: What these steps kept for doing the same again; None: they are run for the first time.
    """
    done = FloatChange(network.model)
    for step in steps:
        if not isinstance(step, FloatStep):
            continue
        change = step.change(network, record=record)
        kept = (
            None if done.record is None and change.record is None else {**(done.record or {}), **(change.record or {})}
        )
        done = FloatChange(change.model, kept, [*done.chains, *change.chains], [*done.refusals, *change.refusals])
        network = dataclasses.replace(
            network,
            model=change.model,
            plan=plan_for(config.platform.name, config, change.model),
            moments=functools.partial(moments_of_model, change.model, config.data),
        )
    return done


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
    rules = TARGETS[target].spec
    return make_plan(model, rules, fitting(rules, config.precision) if fit else config.precision)


def form_of(config: Config) -> Form:
    """How `quantized.onnx` is to be written."""
    return Form(config.export.format, packed=config.export.weights == "packed")


def _observed(config: Config, model: ir.Model, plan: Plan) -> tuple[str, ...]:
    """Values that the target leaves float and another would quantize: its files can then be written from this run."""
    specs = {name: target.spec for name, target in TARGETS.items()}
    likes = {(s.operators, s.fuse_residual_add, s.quantize_outputs): name for name, s in specs.items()}
    found = {value: None for name in likes.values() for value in plan_for(name, config, model, fit=True).activations}
    return tuple(value for value in found if value not in plan.activations)


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
