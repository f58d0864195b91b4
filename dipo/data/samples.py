"""Samples, and the datasets that hold them: what the readers give and the rest of dipo takes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dipo.errors import UserError


@dataclass(frozen=True)
class InputSpec:
    """One of the model's inputs."""

    name: str
    shape: tuple[int | None, ...]
    """The batch comes first; None where a dimension is dynamic."""
    dtype: np.dtype[Any]

    @property
    def sample_shape(self) -> tuple[int | None, ...]:
        """Shape of one sample: without the batch."""
        return self.shape[1:]


@dataclass(frozen=True, eq=False)
class Samples:
    """Contiguous samples of a dataset, ready for the model."""

    inputs: dict[str, NDArray[Any]]
    """By name of the input: [n, ...] of the input's dtype, C-contiguous, owned by the reader of it."""
    labels: NDArray[np.int64] | None
    """Class indices, [n]; None where the data has no labels."""


class Dataset(Protocol):
    """Samples on disk, read on demand: it holds paths, pickles small, and each process that has it reads for itself."""

    def __len__(self) -> int:
        """Return the number of samples."""
        ...

    def read(self, start: int, stop: int) -> Samples:
        """Give samples `start` to `stop` (not included), preprocessed.

        Raises:
            UserError: A file cannot be read, or a sample has NaN or Inf.
        """
        ...

    def digest(self) -> str:
        """Return SHA-256 of the samples as they are stored: what a run was made from.

        Raises:
            UserError: A file cannot be read.
        """
        ...

    def describe(self) -> str:
        """Say in a few words what this is, for the log."""
        ...


class SubsetDataset(Dataset, Protocol):
    """A dataset that can be cut down."""

    def take(self, num: int) -> SubsetDataset:
        """Give a dataset of `num` of these samples, `num` being at most their number.

        They are the first ones, or evenly spaced ones where the samples are sorted by class.
        """
        ...


@dataclass(frozen=True)
class Parts:
    """What one path holds, before it is cut down to the numbers asked for."""

    calib: SubsetDataset
    eval: SubsetDataset | None


@dataclass(frozen=True)
class Datasets:
    """The two datasets of a job."""

    calib: Dataset
    eval: Dataset | None
    """None where the data has no separate part for evaluation."""


def shape_text(shape: tuple[int | None, ...]) -> str:
    """Write a shape as messages and the log do: `3x32x32`, `?` where a dimension is dynamic."""
    return "x".join("?" if dim is None else str(dim) for dim in shape) or "a single number"


def stored_name(name: str, stored: set[str]) -> str | None:
    """Find an input's name among stored ones: as it is, or with `_` for the `/` that no file name can hold."""
    return next((choice for choice in (name, name.replace("/", "_")) if choice in stored), None)


def digest_files(files: Iterable[Path]) -> str:
    """Return SHA-256 of the files' contents, one after the other, whatever their names.

    Raises:
        UserError: A file cannot be read.
    """
    digest = hashlib.sha256()
    for path in files:
        try:
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror}), see that the samples stay in place") from error
    return digest.hexdigest()
