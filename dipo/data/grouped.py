"""Samples in groups, for networks that take a fixed number of them in a run and no other."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dipo.data.samples import Dataset, Samples
from dipo.errors import UserError


@dataclass(frozen=True)
class Grouped:
    """A dataset of which each sample is several of another one: all that a file takes in a run, without labels."""

    dataset: Dataset
    size: int
    """Samples in a group."""
    axes: Mapping[str, int | None]
    """Axis of the samples in the file's inputs; None for what is the same for all, which a group has once."""

    def __len__(self) -> int:
        return len(self.dataset) // self.size

    def read(self, start: int, stop: int) -> Samples:
        """Return groups `start` to `stop` (not included), [groups, ...] with the file's shape behind."""
        found = self.dataset.read(start * self.size, stop * self.size)
        return Samples({name: self._in_groups(array, self.axes[name]) for name, array in found.inputs.items()}, None)

    def digest(self) -> str:
        """Return the digest of the dataset and of the size."""
        return hashlib.sha256(f"{self.dataset.digest()} {self.size}".encode()).hexdigest()

    def describe(self) -> str:
        """Return a short description."""
        unread = "" if self.dataset.read(0, 1).labels is None else ", so labels are not read"
        return f"{self.dataset.describe()}, {self.size} at a time{unread}"

    def pixels(self) -> str | None:
        """Say how pixels are read, see `Dataset.pixels`."""
        return self.dataset.pixels()

    def _in_groups(self, array: NDArray[Any], axis: int | None) -> NDArray[Any]:
        if axis is None:
            return np.ascontiguousarray(array[:: self.size])
        groups = array.reshape(-1, self.size, *array.shape[1:])
        return np.ascontiguousarray(np.moveaxis(groups, 1, axis + 1))


def grouped(dataset: Dataset, size: int, axes: Mapping[str, int | None]) -> Grouped:
    """Return a dataset in groups.

    Raises:
        UserError: Samples are left over.
    """
    if len(dataset) % size:
        whole = len(dataset) // size * size
        raise UserError(
            f"data: the network runs on {size} samples at a time, and {len(dataset)} are not so many times over, give "
            f"{f'{whole} or ' if whole else ''}{whole + size} of them"
        )
    return Grouped(dataset, size, axes)
