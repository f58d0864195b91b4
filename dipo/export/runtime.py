"""Inference with written models in ONNX Runtime."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from dipo.export.sessions import open_session, run_session
from dipo.graph.input_axes import InputAxes, in_file
from dipo.graph.op_library import register

BySample = Callable[[str, NDArray[Any], int], NDArray[Any]]
"""Function of an output's name, the output and the number of samples that returns it as [samples, ...]."""
FATAL = 4
"""Severity from which ONNX Runtime's log is shown; errors raise exceptions."""


def run_model(
    path: Path,
    batches: Iterable[Mapping[str, NDArray[Any]]],
    *,
    threads: int,
    cuda: bool = False,
    float_biases: bool = False,
    by_sample: BySample | None = None,
    axes: InputAxes = MappingProxyType({}),
    takes_one: bool = False,
    outputs: Sequence[str] | None = None,
    library: Path | None = None,
) -> dict[str, NDArray[Any]]:
    """Return all outputs of a model, by name, for batches of its inputs; floats are float32, whatever the file has.

    A model with a fixed batch size gets pieces of that size; the last is filled up with repeated samples, whose outputs
    are dropped.

    Args:
        path: The ONNX file.
        batches: Inputs by name, [n, ...].
        threads: Number of CPU threads.
        cuda: Whether to use the GPU if ONNX Runtime can.
        float_biases: Whether to keep float biases beside integer weights, which ONNX Runtime would round.
        by_sample: Brings an output into the form [n, ...] in which batches are put together; None: it is in that
            form, and a scalar output has one number per batch.
        axes: Axes of the samples in the file's inputs, see `graph.input_axes`.
        takes_one: Whether samples run one at a time, whatever sizes the file takes.
        outputs: Names of the values to return, of which some may lie within the network; None: its outputs.
        library: Shared library with further operators.
    """
    options = ort.SessionOptions()
    options.log_severity_level = FATAL
    options.intra_op_num_threads = threads
    register(options, library)
    disabled = ["WeightBiasQuantization"] if float_biases else []
    names = outputs and list(outputs)
    session = open_session(path, options, outputs=names, providers=providers(cuda=cuda), disabled_optimizers=disabled)
    names = names or [output.name for output in session.get_outputs()]
    inputs = {value.name: value.shape for value in session.get_inputs()}
    sizes = {shape[axis] for name, shape in inputs.items() if shape and (axis := axes.get(name, 0)) is not None}
    fixed = 1 if takes_one else sizes.pop() if len(sizes) == 1 else None
    parts: dict[str, list[NDArray[Any]]] = {name: [] for name in names}
    for batch in batches:
        num_samples = len(next(iter(batch.values())))
        size = fixed if isinstance(fixed, int) else num_samples
        for start in range(0, num_samples, size):
            rows = np.arange(start, start + size) % num_samples
            made = run_session(session, names, in_file({name: array[rows] for name, array in batch.items()}, axes))
            wanted = num_samples - start
            for name, output in made.items():
                whole = np.atleast_1d(output) if by_sample is None else by_sample(name, output, size)
                parts[name].append(first_samples(whole, wanted, batch=size))
    return {name: np.concatenate(arrays) for name, arrays in parts.items()}


def first_samples(output: NDArray[Any], wanted: int, *, batch: int) -> NDArray[Any]:
    """Return the rows of the first samples of a batch; a sample may have several, as behind a Reshape that joins axes.

    Args:
        output: Rows of the whole batch, [batch * n, ...].
        wanted: Number of samples; from `batch` on all rows are returned, whatever they belong to.
        batch: Number of samples of the batch.
    """
    return output if wanted >= batch else output[: wanted * max(1, len(output) // batch)]


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
