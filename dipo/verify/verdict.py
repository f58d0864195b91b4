"""What a consumer made of a file."""

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

from dipo.report.measures import OutputError, output_error

Arrays = Mapping[str, NDArray[Any]]


class State(StrEnum):
    """What became of a tensor's numbers."""

    ACCEPTED = "accepted"
    """The consumer computes with the grid of the file."""
    IGNORED = "ignored"
    """The consumer leaves the tensor in float, or does not know it."""
    RECOMPUTED = "recomputed"
    """The consumer has a grid of its own for it."""


FAR_DB = 15.0
"""Below this the consumer does not compute the quantized network: other rounding alone leaves 20 dB and more."""


@dataclass(frozen=True)
class TensorOutcome:
    """One tensor of a file."""

    name: str
    state: State
    why: str = ""


@dataclass(frozen=True)
class Verdict:
    """What a consumer made of a file."""

    consumer: str
    """Its name and version."""
    file: Path
    tensors: Sequence[TensorOutcome] = field(default=())
    error: OutputError | None = None
    """Of the consumer's outputs against those of the quantized model; None where it was not run."""
    refused: str | None = None
    """The consumer's words where it does not take the file."""
    not_checked: str | None = None
    """Why nobody looked at the file."""
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
        """Tensors of this state."""
        return sum(fate.state is state for fate in self.tensors)


@dataclass(frozen=True)
class Probe:
    """What the consumers compute, and what should come out."""

    inputs: Arrays
    """By name, [samples, ...]."""
    outputs: Arrays
    """What the quantized model makes of them, by its plain definition; empty where there is none to compare with."""

    def error_of(self, outputs: Arrays) -> OutputError | None:
        """Distance of these outputs from what should come out; None where nothing is known of that.

        Raises:
            Refused: An output is missing or has another shape.
        """
        if not self.outputs:
            return None
        for name, array in self.outputs.items():
            if name not in outputs or np.asarray(outputs[name]).size != array.size:
                raise Refused(f"output {name!r} is missing or has another shape")
        return output_error(self.outputs, outputs)


class Refused(Exception):  # noqa: N818 - it is an answer, not an error
    """The consumer does not take the file; the message is in its words."""


class Unavailable(Exception):  # noqa: N818 - it is an answer, not an error
    """The consumer is not here; the message says how to get it."""


@contextlib.contextmanager
def asking() -> Iterator[None]:
    """Around a call of the consumer: whatever it raises is its answer.

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
    """The consumer's module.

    Args:
        module: Its name.
        get: How to install it.

    Raises:
        Unavailable: It is not installed, or its own parts do not load.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        if error.name == module.partition(".")[0]:
            raise Unavailable(f"{module} is not installed: {get}") from error
        raise Unavailable(
            f"{module} does not load here ({next(iter(str(error).splitlines()), 'no reason')})"
        ) from error


@contextlib.contextmanager
def silence(to: Path = Path(os.devnull)) -> Iterator[None]:
    """While libraries run that write to the standard streams: what they say goes to a file."""
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
