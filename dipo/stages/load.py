"""The model, the samples and the plan; and whether torch computes what ONNX Runtime does."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from dipo.config import Config, resolve_path
from dipo.data.dataset import Datasets, InputSpec, open_datasets
from dipo.errors import UserError
from dipo.export.platforms import RULES
from dipo.export.runtime import run_model
from dipo.graph.load import load, name_of
from dipo.graph.plan import Plan, make_plan
from dipo.graph.torch_module import GraphModule, channels_last

PARITY_SAMPLES = 4
PARITY_LIMIT = 1e-3
"""Largest difference between torch and ONNX Runtime on the float network, over the largest output, that is rounding."""


@dataclass(frozen=True)
class Loaded:
    """What a job begins with."""

    path: Path
    model: ir.Model
    data: Datasets
    plan: Plan


def load_job(config: Config) -> Loaded:
    """Reads the model, finds the samples, makes the plan.

    Raises:
        UserError: One of them is missing or wrong.
    """
    if config.model.path is None:
        raise UserError("no model: give +model=mobilenet or model.path=<file.onnx>")
    if config.data.path is None:
        raise UserError("no samples: give data.path=<file or folder>")
    path = resolve_path(config.model.path)
    model = load(path)
    data = open_datasets(
        path=resolve_path(config.data.path),
        eval_path=None if config.data.eval_path is None else resolve_path(config.data.eval_path),
        inputs=[_input_spec(value, path) for value in model.graph.inputs],
        num=config.data.num,
        eval_num=config.data.eval_num,
        mean=config.data.mean,
        std=config.data.std,
        scale=config.data.scale,
        size=config.data.size,
        layout=config.data.layout,
    )
    precision = config.precision
    plan = make_plan(
        model,
        rules=RULES[config.platform.name],
        weight_bits=precision.weight_bits,
        act_bits=precision.act_bits,
        weight_per_channel=precision.weight_per_channel,
        weight_symmetric=precision.weight_symmetric,
        first_last_bits=precision.first_last_bits,
        overrides=precision.overrides,
        skip=precision.skip,
    )
    if not plan.layers:
        raise UserError(
            f"model.path={path}: no layer is left to quantize (Conv, ConvTranspose, Gemm or MatMul with constant "
            "weights, and not in precision.skip)"
        )
    return Loaded(path, model, data, plan)


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
