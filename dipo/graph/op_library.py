"""A library with the user's own operators for ONNX Runtime, which a network may need."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import onnxruntime as ort

from dipo.errors import UserError

_KEY = "dipo.op_library"
"""Entry of a model's metadata, which goes to workers with it; no written file has it."""


def set_library(model: ir.Model, path: Path | None) -> None:
    """Record the library whose operators a model has; in place."""
    model.metadata_props.pop(_KEY, None)
    if path is not None:
        model.metadata_props[_KEY] = str(path.absolute())


def library_of(model: ir.Model) -> Path | None:
    """Return the library whose operators a model has; None for one without."""
    text = model.metadata_props.get(_KEY)
    return None if text is None else Path(text)


def register(options: ort.SessionOptions, library: Path | None) -> None:
    """Let a session with these options have a library's operators.

    Raises:
        UserError: ONNX Runtime cannot load it.
    """
    if library is None:
        return
    try:
        options.register_custom_ops_library(str(library))
    except Exception as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(
            f"model.op_library={library}: ONNX Runtime cannot load it ({reason}), give a shared library of custom "
            "operators that is built for this version of ONNX Runtime"
        ) from error
