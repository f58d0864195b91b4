"""The verdict of a consumer on a file, and the ways to ask for it."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dipo.report.measures import OutputError, worst_error

Arrays = Mapping[str, NDArray[Any]]


class State(StrEnum):
    """The outcome of a tensor's grid at a consumer."""

    ACCEPTED = "accepted"
    """The consumer computes with the grid of the file."""
    IGNORED = "ignored"
    """The consumer leaves the tensor in float, or does not know it."""
    RECOMPUTED = "recomputed"
    """The consumer uses a grid of its own for the tensor."""


FAR_DB = 15.0
"""Below this the consumer does not compute the quantized network: other rounding alone leaves 20 dB and more."""


@dataclass(frozen=True)
class TensorOutcome:
    """The outcome of one tensor of a file."""

    name: str
    state: State
    why: str = ""


@dataclass(frozen=True)
class Verdict:
    """The verdict of a consumer on a file."""

    consumer: str
    """Its name and version."""
    file: Path
    tensors: Sequence[TensorOutcome] = field(default=())
    error: OutputError | None = None
    """Error of the consumer's worst output against the quantized model's; None where it was not run."""
    refused: str | None = None
    """The consumer's reason where it rejects the file."""
    not_checked: str | None = None
    """The reason why no program checked the file."""
    notes: Sequence[str] = field(default=())

    @property
    def failed(self) -> bool:
        """Whether the file was refused, a tensor of it ignored, or something else computed."""
        return self.refused is not None or self.far or any(fate.state is State.IGNORED for fate in self.tensors)

    @property
    def far(self) -> bool:
        """Whether the consumer's outputs are those of another network; `deploy.onnx` is one, without the grids."""
        return self.error is not None and self.error.sqnr_db < FAR_DB and self.file.name != "deploy.onnx"

    def count(self, state: State) -> int:
        """Count the tensors of this state."""
        return sum(fate.state is state for fate in self.tensors)


@dataclass(frozen=True)
class Probe:
    """Samples for the consumers, and the outputs to compare theirs with."""

    inputs: Arrays
    """Samples by name, [samples, ...]."""
    outputs: Arrays
    """Outputs of the quantized model without optimizations; empty where there is no such model."""

    def error_of(self, outputs: Arrays) -> OutputError | None:
        """Return the error of these outputs against the expected ones, in the worst; None where none are known.

        Raises:
            Refused: An output is missing or has another shape.
        """
        if not self.outputs:
            return None
        for name, array in self.outputs.items():
            if name not in outputs or np.asarray(outputs[name]).size != array.size:
                raise Refused(f"output {name!r} is missing or has another shape")
        return worst_error(self.outputs, outputs)


class Refused(Exception):  # noqa: N818 - it is an answer, not an error
    """The consumer's answer that it rejects the file; the message is in its words."""


class Unavailable(Exception):  # noqa: N818 - it is an answer, not an error
    """The answer that the consumer is not installed; the message says how to get it."""


@contextlib.contextmanager
def asking() -> Iterator[None]:
    """Turn whatever a call of the consumer raises into its answer.

    Raises:
        Refused: The call raised something.
    """
    try:
        yield
    except Refused:
        raise
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise Refused(f"{type(error).__name__}: {' '.join(lines[:3]) or 'no more is known'}") from error


def require(module: str, *, get: str) -> Any:
    """Import the consumer's module.

    Args:
        module: Its name.
        get: How to install it.

    Raises:
        Unavailable: It is not installed, or its own parts do not load.
    """
    try:
        found = importlib.import_module(module)
    except ImportError as error:
        if error.name == module.partition(".")[0]:
            raise Unavailable(f"{module} is not installed: {get}") from error
        raise Unavailable(
            f"{module} does not load here ({next(iter(str(error).splitlines()), 'no reason')})"
        ) from error
    if getattr(found, "__file__", None) is None:
        # A folder of the same name in the working folder, such as a target's in that of a run, is importable.
        raise Unavailable(f"{module} is not installed: {get}")
    return found


@contextlib.contextmanager
def silence(to: Path = Path(os.devnull)) -> Iterator[None]:
    """Redirect the standard streams to a file, also for libraries in C that write to them."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(number) for number in (1, 2)]
    with to.open("w") as elsewhere:
        try:
            for number in (1, 2):
                os.dup2(elsewhere.fileno(), number)
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            # What libraries in C have said, too, before the streams are the user's again.
            ctypes.CDLL(None).fflush(None)
            for number, copy in zip((1, 2), kept, strict=True):
                os.dup2(copy, number)
                os.close(copy)
