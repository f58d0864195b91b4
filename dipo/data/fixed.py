"""Inputs of the model that have one value for all samples, given with the job: a sampling rate, a threshold."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dipo.data.samples import InputSpec, Samples, SubsetDataset, shape_text
from dipo.errors import UserError


@dataclass(frozen=True, eq=False)
class WithFixedInputs:
    """A dataset of some of the model's inputs, with the values of the others."""

    dataset: SubsetDataset
    values: Mapping[str, NDArray[Any]]
    """The value of one sample, by name of the input."""

    def __len__(self) -> int:
        return len(self.dataset)

    def take(self, num: int) -> WithFixedInputs:
        """Return the dataset of `num` of the samples."""
        return dataclasses.replace(self, dataset=self.dataset.take(num))

    def read(self, start: int, stop: int) -> Samples:
        """Return samples `start` to `stop` (not included), see `Dataset.read`."""
        found = self.dataset.read(start, stop)
        fixed = {name: np.repeat(value[None], stop - start, axis=0) for name, value in self.values.items()}
        return Samples(found.inputs | fixed, found.labels)

    def digest(self) -> str:
        """Return the digest of the dataset and of the values."""
        values = [(name, value.dtype.str, value.tolist()) for name, value in sorted(self.values.items())]
        return hashlib.sha256(f"{self.dataset.digest()} {values}".encode()).hexdigest()

    def describe(self) -> str:
        """Return a short description."""
        values = ", ".join(
            f"{name} = {value.item() if value.size == 1 else shape_text(value.shape)}"
            for name, value in self.values.items()
        )
        return f"{self.dataset.describe()}; {values}"

    def pixels(self) -> str | None:
        """Say how images become the network's numbers; None where there are none."""
        return self.dataset.pixels()


def fixed_values(given: Mapping[str, Any], inputs: Sequence[InputSpec]) -> dict[str, NDArray[Any]]:
    """Return the values of inputs, as the model takes those of one sample.

    Args:
        given: Numbers, or lists of them, by name of the input; a number fills the input's shape.
        inputs: The model's inputs.

    Raises:
        UserError: There is no such input, or the numbers do not fit its shape.
    """
    specs = {spec.name: spec for spec in inputs}
    for name in given:
        if name not in specs:
            raise UserError(f"data.fixed.{name}: the model has no such input, choose from {', '.join(specs)}")
    if given and len(given) == len(specs):
        raise UserError("data.fixed has all inputs of the model, so no samples would differ: leave one to the samples")
    return {name: _value(value, specs[name]) for name, value in given.items()}


def _value(given: Any, spec: InputSpec) -> NDArray[Any]:
    array = np.asarray(given)
    shape = tuple(1 if size is None and not array.ndim else size for size in spec.sample_shape)
    same = len(shape) == array.ndim and all(a in (None, b) for a, b in zip(shape, array.shape, strict=True))
    if array.dtype.kind not in "biuf" or (array.ndim and not same):
        raise UserError(
            f"data.fixed.{spec.name}={given}: the input takes {shape_text(spec.sample_shape)}, give a number, or lists "
            "of numbers of that shape"
        )
    filled = np.broadcast_to(array, array.shape if array.ndim else [size or 1 for size in shape])
    return spec.as_taken(filled)
