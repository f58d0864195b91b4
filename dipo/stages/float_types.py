"""Networks of float16, bfloat16 and double: the float32 form that is worked with, beside the user's file."""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from dipo.export.onnx_file import save_model
from dipo.export.runtime import run_model
from dipo.graph.load import in_single_precision
from dipo.graph.passes.interface import declared_types
from dipo.graph.passes.single_precision import converted_types
from dipo.report.report import Note
from dipo.stages.load import JobInputs

log = logging.getLogger("dipo")

SAMPLES = 4
LIMITS = {ir.DataType.FLOAT16: 0.02, ir.DataType.BFLOAT16: 0.1, ir.DataType.DOUBLE: 1e-3}
"""Largest difference of outputs, over the largest number of an output, that rounding to a type explains: some ten times
its precision, as errors of layers add up; of double, that of float32."""


@contextlib.contextmanager
def float32_file(loaded: JobInputs) -> Iterator[Path]:
    """Yield the user's file, or one that goes away with the same network in float32 where it holds other floats."""
    if not converted_types(loaded.model):
        yield loaded.path
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "float32.onnx"
        save_model(in_single_precision(loaded.path), path)
        yield path


def type_notes(loaded: JobInputs, *, threads: int) -> list[Note]:
    """Return a note where the network is worked in another type than its file's: how far that is from the file.

    The file in its own types is run in ONNX Runtime on a few samples, if that has kernels for them.

    Args:
        loaded: The job.
        threads: Number of CPU threads.
    """
    types = converted_types(loaded.model)
    named = " and ".join(sorted(dtype.name.lower() for dtype in types))
    limit = max((LIMITS[dtype] for dtype in types), default=0.0)
    if not declared_types(loaded.model) and limit <= LIMITS[ir.DataType.DOUBLE]:
        return []  # a constant here and there, in a network of float32
    ends = ", and inputs and outputs keep their types" if declared_types(loaded.model) else ""
    what = f"holds {named} and is worked in float32: what stays float is written in float32{ends}; "
    samples = loaded.data.calib.read(0, min(SAMPLES, len(loaded.data.calib))).inputs
    with float32_file(loaded) as path:
        expected = run_model(path, [samples], threads=threads, **loaded.as_run)
    try:
        own = run_model(loaded.path, [samples], threads=threads, **loaded.as_run)
    except Exception as error:  # noqa: BLE001 - whatever it lacks, the network in float32 is what is compared
        log.info("%s does not run in ONNX Runtime in its own types: %s", loaded.path, error)
        return [Note(loaded.path.name, f"{what}ONNX Runtime has no kernels to compare it in {named}")]
    worst = _difference(own, expected)
    what += f"the file's own outputs are {worst:.1e} of the largest from those in float32"
    if worst > limit:
        what += ", more than rounding explains: its numbers overflow or cancel in one of the two"
    return [Note(loaded.path.name, what)]


def as_given(model: ir.Model, outputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Return a network's outputs as what is written gives them: rounded to the types of the user's file.

    Args:
        model: The network.
        outputs: By name; floats in float32.
    """
    types = {name: dtype.numpy() for name, dtype in declared_types(model).items()}
    with np.errstate(over="ignore"):
        return {
            name: array.astype(types[name]).astype(array.dtype) if name in types else array
            for name, array in outputs.items()
        }


def _difference(own: Mapping[str, NDArray[Any]], expected: Mapping[str, NDArray[Any]]) -> float:
    """Return the largest difference of outputs of floats, over the largest number of that output; NaN counts as 1."""
    worst = 0.0
    for name, array in expected.items():
        if np.issubdtype(array.dtype, np.floating):
            finite = np.isfinite(array)
            difference = np.abs(own[name].astype(np.float64) - array)[finite]
            size = float(np.abs(array[finite]).max(initial=0.0)) or 1.0
            worst = max(worst, float(np.nan_to_num(difference / size, nan=1.0, posinf=1.0).max(initial=0.0)))
    return worst
