"""Running a model in ONNX Runtime as the consumers need it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from dipo.export.runtime import first_samples
from dipo.export.sessions import cast_ends, open_session, run_session
from dipo.graph.input_axes import InputAxes, find_input_axes, in_file
from dipo.graph.op_library import register
from dipo.verify.verdict import Arrays

FATAL = 4
"""The one severity of ONNX Runtime's log that is shown; what matters raises."""


_library: ContextVar[Path | None] = ContextVar("_library", default=None)


@contextlib.contextmanager
def with_operators_of(library: Path | None) -> Iterator[None]:
    """Let sessions of this module have the operators of a library of the user's."""
    token = _library.set(library)
    try:
        yield
    finally:
        _library.reset(token)


def options(*, threads: int, optimized: bool = True) -> ort.SessionOptions:
    """Return a session's options; without optimizations every node is computed as the file has it."""
    made = ort.SessionOptions()
    made.log_severity_level = FATAL
    made.intra_op_num_threads = threads
    register(made, _library.get())
    if not optimized:
        made.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return made


def session_of(file: Path, made: ort.SessionOptions) -> ort.InferenceSession:
    """Open a session on the CPU."""
    return open_session(file, made, providers=["CPUExecutionProvider"])


def session_of_model(model: onnx.ModelProto, made: ort.SessionOptions, *, folder: Path) -> ort.InferenceSession:
    """Open a session on the CPU with a model that is in no file; its external tensors lie in `folder`.

    Its inputs and outputs are made such as `dipo.export.sessions.open_session` has them, in place.
    """
    cast_ends(model.graph)
    made.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder.absolute()))
    return ort.InferenceSession(model.SerializeToString(), made, providers=["CPUExecutionProvider"])


def outputs_of(session: Any, inputs: Arrays, *, rows: int | None) -> dict[str, NDArray[Any]]:
    """Run all samples, `rows` at a time, and return all outputs by name."""
    names = [output.name for output in session.get_outputs()]
    axes = find_input_axes({value.name: tuple(value.shape) for value in session.get_inputs()})
    return in_rows(lambda some: run_session(session, names, some), inputs, rows=rows, axes=axes)


def in_rows(
    run: Callable[[Arrays], Arrays], inputs: Arrays, *, rows: int | None, axes: InputAxes = MappingProxyType({})
) -> dict[str, NDArray[Any]]:
    """Run all samples, `rows` at a time; the last batch is filled up with the first samples again.

    Args:
        run: Outputs of one batch, by name, [rows, ...].
        inputs: By name, [n, ...].
        rows: Samples of a batch; None: all at once.
        axes: Axes of the samples in the model's inputs, see `graph.input_axes`.

    Returns:
        The outputs by name, [n, ...].
    """
    num = len(next(iter(inputs.values())))
    size = rows or num
    parts = []
    for start in range(0, num, size):
        chosen = np.arange(start, start + size) % num
        made = run(in_file({name: array[chosen] for name, array in inputs.items()}, axes))
        parts.append({name: first_samples(np.asarray(each), num - start, batch=size) for name, each in made.items()})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
