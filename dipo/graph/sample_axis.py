"""The axis of a value on which the samples lie, for every value of a network.

A network's inputs count samples on their first axis, but what is computed from them need not: in front of a Gemm, where
windows are cut or heads are split, an axis has several rows for each sample; behind a Transpose it is another axis.
Whatever keeps values by sample asks here how they lie. Nothing is read off the operators: the network runs on two
samples apart and together, and a value's axis is the one along which the two results, put together, give the joint one.
That torch computes what the file computes, with both sizes of the batch, is checked against ONNX Runtime.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dipo.quant.rounding import flat, unflat


@dataclass(frozen=True)
class SampleAxis:
    """The axis of the samples: of size outer x samples x inner, its rows in this order."""

    axis: int = 0
    outer: int = 1
    """Rows that lie outside of the samples: time steps, say, where time and batch became one axis."""
    inner: int = 1
    """Rows of one sample that lie together."""

    @property
    def is_first(self) -> bool:
        """Whether the samples, of one or several rows each, lie one behind the other in memory."""
        return self.axis == 0 and self.outer == 1

    @property
    def rows(self) -> int:
        """Number of rows of each sample."""
        return self.outer * self.inner

    def count(self, value: torch.Tensor) -> int:
        """Return the number of samples in a value."""
        return value.shape[self.axis] // self.rows

    def to_rows(self, value: torch.Tensor) -> torch.Tensor:
        """Return a value's elements as [samples, elements], in the order of memory where samples lie first."""
        if self.is_first:
            return flat(value).view(self.count(value), -1)
        return self._apart(value).reshape(self.count(value), -1)

    def from_rows(self, numbers: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        """Return the inverse of `to_rows`.

        Args:
            numbers: Elements of any number of samples, in the order of `to_rows`.
            shape: Shape of the value without the axis of its samples.
        """
        rows = numbers.numel() // max(1, math.prod(shape))
        if self.is_first:
            return unflat(numbers.reshape(-1), (rows, *shape))
        before, behind = shape[: self.axis], shape[self.axis :]
        apart = numbers.reshape(-1, *before, self.outer, self.inner, *behind)
        return apart.movedim(0, self.axis + 1).flatten(self.axis, self.axis + 2)

    def take(self, value: torch.Tensor, places: Sequence[int]) -> torch.Tensor:
        """Return the value of some of its samples, by their places among them."""
        shape = (*value.shape[: self.axis], *value.shape[self.axis + 1 :])
        return self.from_rows(self.to_rows(value)[list(places)], shape)

    def by_sample(self, value: NDArray[Any]) -> NDArray[Any]:
        """Return a value as [samples, ...], the axis without its samples kept where it has several rows for each."""
        value = np.atleast_1d(value)  # a number for each sample, of one sample
        before, behind = value.shape[: self.axis], value.shape[self.axis + 1 :]
        apart = np.moveaxis(value.reshape(*before, self.outer, -1, self.inner, *behind), self.axis + 1, 0)
        return apart.reshape(len(apart), *before, *(size for size in (self.outer, self.inner) if size > 1), *behind)

    def moved(self, axis: int) -> int | None:
        """Return where another axis of a value is in the result of `by_sample`; None for that of the samples."""
        if axis == self.axis:
            return None
        return axis + 1 if axis < self.axis else axis + sum(size > 1 for size in (self.outer, self.inner))

    def from_samples(self, value: NDArray[Any], shape: Sequence[int]) -> NDArray[Any]:
        """Return the inverse of `by_sample`, for a value of that shape."""
        before, behind = shape[: self.axis], shape[self.axis + 1 :]
        apart = value.reshape(len(value), *before, self.outer, self.inner, *behind)
        return np.moveaxis(apart, 0, self.axis + 1).reshape(shape)

    def _apart(self, value: torch.Tensor) -> torch.Tensor:
        return split(value, self.axis, self.outer, self.count(value)).movedim(self.axis + 1, 0)


FIRST = SampleAxis()
"""One row for each sample, on the first axis."""


@dataclass(frozen=True, eq=False)
class CountedValue:
    """Integers or booleans that follow from the number of samples: shapes and what is computed from them."""

    at_one: NDArray[Any]
    """The value for one sample."""
    step: NDArray[Any]
    """What each further sample adds."""

    def of(self, num_samples: int, device: torch.device) -> torch.Tensor:
        """Return the value for a number of samples."""
        return torch.from_numpy(np.asarray(self.at_one + self.step * (num_samples - 1), self.at_one.dtype)).to(device)

    @staticmethod
    def between(one: torch.Tensor, two: torch.Tensor) -> CountedValue | None:
        """Return what runs through the values for one and for two samples; None if nothing does."""
        if one.shape != two.shape or one.dtype != two.dtype or one.is_floating_point():
            return None
        first, second = one.numpy(), two.numpy()
        if one.dtype == torch.bool:
            return CountedValue(first, np.zeros_like(first, np.int64)) if np.array_equal(first, second) else None
        return CountedValue(first, np.asarray(second - first))


@dataclass(frozen=True)
class SampleAxes:
    """Where the samples lie in a network's values. Values that are not named have them on their first axis."""

    odd: Mapping[str, SampleAxis] = field(default_factory=dict)
    """Other axes, by name of the value."""
    same: frozenset[str] = frozenset()
    """Values that are the same for all samples: anchors, shapes, whatever follows from the batch's size alone."""
    mixed: frozenset[str] = frozenset()
    """Values in which samples cannot be told apart."""
    counted: Mapping[str, CountedValue] = field(default_factory=dict)
    """Those of `same` that hold sizes, or what is computed from sizes alone: known without running anything."""

    def of(self, name: str) -> SampleAxis:
        """Return a value's axis; it must have one."""
        assert name not in self.same and name not in self.mixed, name
        return self.odd.get(name, FIRST)

    def get(self, name: str) -> SampleAxis | None:
        """Return a value's axis; None where it has none."""
        return None if name in self.same or name in self.mixed else self.of(name)

    def by_sample(self, name: str, value: NDArray[Any], num_samples: int) -> NDArray[Any]:
        """Return a value as [samples, ...]; one that is the same for all samples is repeated."""
        if name in self.same:
            return np.broadcast_to(value, (num_samples, *value.shape))
        return self.of(name).by_sample(value)

    def moved(self, name: str, axis: int) -> int | None:
        """Return where an axis of a value is in the result of `by_sample`; None for that of the samples."""
        return axis + 1 if name in self.same else self.of(name).moved(axis)


def split(value: torch.Tensor, axis: int, outer: int, samples: int) -> torch.Tensor:
    """Return a value with an axis split into outer rows, samples and inner rows."""
    return value.reshape(*value.shape[:axis], outer, samples, -1, *value.shape[axis + 1 :])
