"""Samples, and the interface of datasets between the readers and the rest of dipo."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
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
    """Shape with the batch first; None for dynamic dimensions."""
    dtype: np.dtype[Any]
    """Type of the numbers that the network is worked with."""
    in_file: np.dtype[Any] | None = None
    """Type that the user's file takes, to which samples are rounded; None: `dtype`."""
    axis: int | None = 0
    """Axis of the samples in the model's file; None: it has none, one value holds for all samples."""

    @property
    def sample_shape(self) -> tuple[int | None, ...]:
        """Shape of one sample, without the batch."""
        return self.shape[1:]

    def is_in_file_form(self, shape: tuple[int, ...]) -> bool:
        """Return whether an array of that shape is this input as the model's file takes it, for all samples at once."""
        if self.axis == 0 or len(shape) != len(self.shape) - (self.axis is None):
            return False
        own = shape if self.axis is None else (*shape[: self.axis], *shape[self.axis + 1 :])
        return all(wanted in (None, size) for wanted, size in zip(self.sample_shape, own, strict=True))

    @property
    def stored(self) -> np.dtype[Any]:
        """Type in which the user's file takes samples."""
        return self.dtype if self.in_file is None else self.in_file

    def as_taken(self, array: NDArray[Any], *, copy: bool = True) -> NDArray[Any]:
        """Return numbers as the network gets them: of `dtype`, rounded as the type of the file does, C-contiguous.

        Args:
            array: The numbers.
            copy: Whether the result may not be `array` itself.
        """
        with np.errstate(over="ignore"):  # numbers that overflow become Inf, which readers refuse
            rounded = array if self.in_file is None else array.astype(self.in_file)
            return np.array(rounded, dtype=self.dtype, order="C", copy=True if copy else None)


@dataclass(frozen=True, eq=False)
class Samples:
    """Contiguous samples of a dataset, ready for the model."""

    inputs: dict[str, NDArray[Any]]
    """Arrays [n, ...] by name of the input, of its dtype, C-contiguous, owned by the caller that read them."""
    labels: NDArray[np.int64] | None
    """Class indices, [n]; None without labels."""


class Dataset(Protocol):
    """Samples that are read on demand; it pickles without them, and each process reads its own copy."""

    def __len__(self) -> int:
        """Return the number of samples."""
        ...

    def read(self, start: int, stop: int) -> Samples:
        """Return samples `start` to `stop` (not included), preprocessed.

        Raises:
            UserError: A file cannot be read, or a sample has NaN or Inf.
        """
        ...

    def digest(self) -> str:
        """Return the SHA-256 of the stored samples, by which a run knows its data.

        Raises:
            UserError: A file cannot be read.
        """
        ...

    def describe(self) -> str:
        """Return a short description for the log."""
        ...

    def pixels(self) -> str | None:
        """Say how pixels become the network's numbers; None where none are read."""
        ...


@dataclass(frozen=True)
class Picked:
    """Some samples of a dataset, as a dataset of their own."""

    dataset: Dataset
    indices: Sequence[int]

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, start: int, stop: int) -> Samples:
        """Return some of the samples, see `Dataset.read`; each is read by itself."""
        parts = [self.dataset.read(index, index + 1) for index in self.indices[start:stop]]
        labels = [part.labels for part in parts if part.labels is not None]
        return Samples(
            {name: np.concatenate([part.inputs[name] for part in parts]) for name in parts[0].inputs},
            np.concatenate(labels) if labels else None,
        )

    def digest(self) -> str:
        """Return the digest of the dataset and of which of its samples these are."""
        return hashlib.sha256(f"{self.dataset.digest()} {list(self.indices)}".encode()).hexdigest()

    def describe(self) -> str:
        """Return a short description."""
        return f"{len(self)} of {self.dataset.describe()}"

    def pixels(self) -> str | None:
        """Say how pixels are read, see `Dataset.pixels`."""
        return self.dataset.pixels()


class SubsetDataset(Dataset, Protocol):
    """A dataset of which a subset can be taken."""

    def take(self, num: int) -> SubsetDataset:
        """Return a dataset of `num` of the samples, at most all of them.

        They are the first ones, or evenly spaced ones if the samples are sorted by class.
        """
        ...


@dataclass(frozen=True)
class Parts:
    """All samples of one path, of which the job takes as many as asked for."""

    calib: SubsetDataset
    eval: SubsetDataset | None


@dataclass(frozen=True)
class Datasets:
    """The two datasets of a job."""

    calib: Dataset
    eval: Dataset | None
    """Samples for evaluation; None without a separate part for it."""


def shape_text(shape: tuple[int | None, ...]) -> str:
    """Return a shape as text, such as `3x32x32`, with `?` for dynamic dimensions."""
    return "x".join("?" if dim is None else str(dim) for dim in shape) or "a single number"


def stored_name(name: str, stored: set[str]) -> str | None:
    """Return an input's name among stored ones, as it is or with `_` for `/`; None if it is not there."""
    return next((choice for choice in (name, name.replace("/", "_")) if choice in stored), None)


def digest_files(files: Iterable[Path]) -> str:
    """Return the SHA-256 of the files' concatenated contents, without their names.

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
