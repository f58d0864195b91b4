"""Inference with written models in ONNX Runtime."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

FATAL = 4
"""Severity from which ONNX Runtime's log is shown; errors raise exceptions."""


def run_model(
    path: Path,
    batches: Iterable[Mapping[str, NDArray[Any]]],
    *,
    threads: int,
    cuda: bool = False,
    float_biases: bool = False,
) -> dict[str, NDArray[np.float32]]:
    """Return all outputs of a model, by name, for batches of its inputs; a scalar output has one number per batch.

    A model with a fixed batch size gets pieces of that size; the last is filled up with repeated samples, whose outputs
    are dropped.

    Args:
        path: The ONNX file.
        batches: Inputs by name, [n, ...].
        threads: Number of CPU threads.
        cuda: Whether to use the GPU if ONNX Runtime can.
        float_biases: Whether to keep float biases beside integer weights, which ONNX Runtime would round.
    """
    options = ort.SessionOptions()
    options.log_severity_level = FATAL
    options.intra_op_num_threads = threads
    disabled = ["WeightBiasQuantization"] if float_biases else []
    session = ort.InferenceSession(str(path), options, providers=providers(cuda=cuda), disabled_optimizers=disabled)
    names = [output.name for output in session.get_outputs()]
    sizes = {value.shape[0] for value in session.get_inputs() if value.shape}
    fixed = sizes.pop() if len(sizes) == 1 else None
    parts: list[list[NDArray[Any]]] = []
    for batch in batches:
        if not isinstance(fixed, int):
            parts.append(session.run(names, dict(batch)))
            continue
        num_samples = len(next(iter(batch.values())))
        for start in range(0, num_samples, fixed):
            rows = np.arange(start, start + fixed) % num_samples
            made = session.run(names, {name: array[rows] for name, array in batch.items()})
            parts.append([output[: num_samples - start] for output in made])
    return {name: np.concatenate([np.atleast_1d(part[i]) for part in parts]) for i, name in enumerate(names)}


def providers(*, cuda: bool) -> list[str]:
    """Return the CPU provider, after CUDA if wanted and loadable: a provider that cannot load only logs errors."""
    usable = (
        cuda
        and "CUDAExecutionProvider" in ort.get_available_providers()
        and _loads("libcuda.so.1")
        and _loads("libcudnn.so.9")
    )
    return ["CUDAExecutionProvider", "CPUExecutionProvider"] if usable else ["CPUExecutionProvider"]


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True
