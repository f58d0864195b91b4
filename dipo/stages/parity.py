"""The check that torch computes the float network as its file does in ONNX Runtime."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dipo.errors import UserError
from dipo.export.runtime import run_model
from dipo.graph import operators
from dipo.graph.accessors import name_of
from dipo.graph.torch_module import GraphModule, channels_last
from dipo.stages.float_types import float32_file
from dipo.stages.load import JobInputs

RUNTIME = "ONNX Runtime"
PARITY_SAMPLES = 4
PARITY_LIMIT = 1e-3
"""Largest difference between torch and ONNX Runtime on the float network, over the largest output, from rounding."""
SMALL_OUTPUT = 1e-3
"""An output that is nowhere larger counts as this large: a detector that sees nothing gives numbers near zero, whose
exponentials differ between implementations."""
INTEGER_PARITY_LIMIT = 0.01
"""Largest part of the elements of an output of integers in which the two may differ."""


def check_parity(loaded: JobInputs, *, threads: int) -> float:
    """Compare the float network in torch with its file in ONNX Runtime, on a few samples together and on one alone.

    A file that holds other floats than float32 is compared in float32 (`stages.float_types`).

    Returns:
        The largest difference of all outputs, over the largest number of that output.

    Raises:
        UserError: One of the two cannot run it, they differ by more than rounding does, an output does not tell the
            samples apart, or labels name no class.
    """
    samples = loaded.data.calib.read(0, min(PARITY_SAMPLES, len(loaded.data.calib))).inputs
    num_samples = len(next(iter(samples.values())))
    made = _in_torch(loaded, samples, threads=threads)
    alone = {name: array[:1] for name, array in samples.items()}
    mixed = [name for name in made if name in loaded.samples.mixed]
    random = next((node for node in loaded.model.graph if operators.of(node).random), None)
    if mixed and random is not None:
        raise UserError(
            f"model.path={loaded.path}: node {random.name!r} ({random.op_type}) draws random numbers, which output "
            f"{', '.join(map(repr, mixed))} depends on: export the model for inference, or with these numbers as an "
            "input"
        )
    if mixed or not made:
        raise UserError(
            f"model.path={loaded.path}: output {', '.join(map(repr, mixed)) or 'of varying size'}, for {num_samples} "
            "samples, mixes samples: export the model with one row of every output for each sample, made from it "
            "alone, or for a fixed batch of 1"
        )
    expected = _in_onnx_runtime(loaded, [samples, alone], threads=threads)
    _check_labels(loaded, classes=next(iter(expected.values()))[0].size)
    worst = 0.0
    for name, array in made.items():
        found = loaded.samples.by_sample(name, array, num_samples)
        together, first = expected[name][:num_samples], expected[name][num_samples:]
        worst = max(worst, _distance(found, together, f"{name!r}: torch and ONNX Runtime", loaded))
        _distance(first, together[:1], f"{name!r}: one sample alone and among others", loaded)
    return worst


def _in_torch(loaded: JobInputs, samples: Mapping[str, NDArray[Any]], *, threads: int) -> dict[str, NDArray[Any]]:
    """Return the float network's outputs in torch."""
    names = [name_of(value) for value in loaded.model.graph.outputs]
    module = GraphModule(loaded.model, outputs=names).eval()
    try:
        with torch.inference_mode():
            outputs = module({name: channels_last(torch.from_numpy(array)) for name, array in samples.items()})
    except UserError:
        raise
    except Exception as error:
        # What the file itself does not take, samples or attributes, is told in ONNX Runtime's words. What that raises
        # in a region has no common class.
        _in_onnx_runtime(loaded, [samples], threads=threads)
        raise _cannot_run("torch", error, loaded.path) from error
    return {name: value.numpy() for name, value in outputs.items()}


def _in_onnx_runtime(
    loaded: JobInputs, batches: Sequence[Mapping[str, NDArray[Any]]], *, threads: int
) -> dict[str, NDArray[Any]]:
    try:
        with float32_file(loaded) as path:
            return run_model(path, batches, threads=threads, **loaded.as_run)
    except Exception as error:
        raise _cannot_run(RUNTIME, error, loaded.path) from error


def _check_labels(loaded: JobInputs, *, classes: int) -> None:
    """Check the first and last labels, one of them the largest of sorted samples; the rest are checked when read."""
    dataset = loaded.data.eval or loaded.data.calib
    some = min(PARITY_SAMPLES, len(dataset))
    for start in (0, len(dataset) - some):
        labels = dataset.read(start, start + some).labels
        if labels is not None and (labels.min() < 0 or labels.max() >= classes):
            raise UserError(
                f"data.path: samples {start} to {start + some - 1} have labels {labels.min()} to {labels.max()}, the "
                f"network has {classes} classes, give labels that fit it"
            )


def _distance(found: NDArray[Any], expected: NDArray[Any], what: str, loaded: JobInputs) -> float:
    """Return the difference of two outputs, 0 for those that are no floats.

    Raises:
        UserError: They differ by more than rounding does.
    """
    if found.shape != expected.shape:
        raise _differ(what, f"in shape, {list(found.shape)} and {list(expected.shape)},", loaded)
    if not np.issubdtype(expected.dtype, np.floating):
        # Rounding may turn a comparison of numbers that are as good as equal.
        other = int((found != expected).sum())
        if other > max(1, INTEGER_PARITY_LIMIT * expected.size):
            raise _differ(what, f"in {other} of {expected.size} elements", loaded)
        return 0.0
    difference = _difference(found, expected)
    if difference > PARITY_LIMIT:
        raise _differ(what, f"by {difference:.2g} of the largest output", loaded)
    return difference


def _differ(what: str, how: str, loaded: JobInputs) -> UserError:
    return UserError(
        f"model.path={loaded.path}: output {what} differ {how} on the float network, so nothing derived from it would "
        "hold: take the nodes that make it out of the model, find them by ending it earlier, and report the model"
    )


def _difference(found: NDArray[Any], expected: NDArray[Any]) -> float:
    """Return the largest difference over the largest expected number; infinite where just one of the two is NaN."""
    if not np.array_equal(np.isfinite(found), np.isfinite(expected)):
        return math.inf
    finite = np.isfinite(expected)
    a, b = found[finite].astype(np.float64), expected[finite].astype(np.float64)
    return float(np.abs(a - b).max(initial=0.0) / max(float(np.abs(b).max(initial=0.0)), SMALL_OUTPUT))


def _cannot_run(who: str, error: Exception, path: Path) -> UserError:
    if isinstance(error, UserError):
        return error
    reason = next(iter(str(error).splitlines()), type(error).__name__)
    if who != RUNTIME:
        remedy = f"though {RUNTIME} can, end the model in front of what it names, or report it"
    elif _UNREGISTERED in reason:
        remedy = "give the shared library that has this operator as model.op_library, and its domain as it has it"
    else:
        remedy = "see that the file and the samples are ones that it runs"
    return UserError(f"model.path={path}: {who} cannot run the float network on the samples ({reason}), {remedy}")


_UNREGISTERED = "is not a registered function/op"
"""What ONNX Runtime says of an operator that it does not know."""
