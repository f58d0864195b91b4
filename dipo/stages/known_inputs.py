"""What is known of the numbers that enter the network: measured on the samples, or assumed where there are none."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from dipo.algo.activation_cache import cut
from dipo.algo.moments import input_moments, moments_of
from dipo.config import DataConfig
from dipo.data.samples import Dataset
from dipo.graph.accessors import name_of
from dipo.quant.gaussian import Moments
from dipo.report.report import Note

BATCH = 16
"""Samples that are read at a time."""


@dataclass(frozen=True, eq=False)
class KnownInputs:
    """The network's inputs without a pass of the samples through the network."""

    data: DataConfig
    """How samples are normalised, for what is assumed of them."""
    samples: Dataset | None = None
    """The user's calibration samples; None where there are none."""
    saved: Mapping[str, Moments] | None = None
    """What an earlier run measured, by name of the input; None where it measured nothing."""

    @functools.cached_property
    def measured(self) -> Mapping[str, Moments] | None:
        """Moments of each input's channels over all samples, by name; None where there is nothing to take them from.

        Inputs without channels or of integers are left out.
        """
        return self.saved if self.samples is None else measure(self.samples)

    @property
    def to_save(self) -> Mapping[str, Moments] | None:
        """What a later export needs: the moments, if this run has made use of them."""
        return self.measured if "measured" in vars(self) else None

    def inputs(self, model: ir.Model) -> dict[str, Moments]:
        """Return the moments of the network's inputs by name.

        Raises:
            UserError: Nothing is known of one.
        """
        measured = self.measured or {}
        if all(name_of(value) in measured for value in model.graph.inputs):
            return dict(measured)
        return assumed(model, self.data) | dict(measured)

    def moments(self, model: ir.Model) -> dict[str, Moments]:
        """Return the moments of every value of the network by name, from BatchNormalization's statistics.

        Raises:
            UserError: Those of one cannot be told.
        """
        return moments_of(model, self.inputs(model))

    def assumptions(self, model: ir.Model) -> list[Note]:
        """Return a note on each input whose numbers are only assumed."""
        measured = self.measured or {}
        return [
            Note(name, _sentence(found, self.data, has_samples=self.samples is not None))
            for name, found in self.inputs(model).items()
            if name not in measured
        ]


def measure(samples: Dataset) -> dict[str, Moments]:
    """Return mean, standard deviation and limits of each channel of each input that has channels and holds floats.

    Args:
        samples: At least one sample; all of them are read once.
    """
    sums: dict[str, list[NDArray[np.float64]]] = {}
    ranks: dict[str, int] = {}
    for batch in cut(len(samples), BATCH):
        for name, array in samples.read(batch.start, batch.stop).inputs.items():
            if array.ndim < 2 or not np.issubdtype(array.dtype, np.floating):
                continue
            rows = np.moveaxis(array, 1, 0).reshape(array.shape[1], -1).astype(np.float64)
            count = np.full(len(rows), rows.shape[1], np.float64)
            part = [count, rows.sum(axis=1), (rows**2).sum(axis=1), rows.min(axis=1), rows.max(axis=1)]
            sums[name] = part if name not in sums else _added(sums[name], part)
            ranks[name] = array.ndim
    found = {}
    for name, (count, total, square, low, high) in sums.items():
        mean = total / count
        std = np.sqrt(np.maximum(square / count - mean**2, 0.0))
        found[name] = Moments.of(mean, std, low=low, high=high, num_dims_behind=ranks[name] - 2)
    return found


def assumed(model: ir.Model, data: DataConfig) -> dict[str, Moments]:
    """Return the moments that the inputs are assumed to have, by name.

    Samples that are normalised by `data.mean` and `data.std` have mean 0 and standard deviation 1; others are taken for
    pixels, evenly distributed between 0 and 1.

    Raises:
        UserError: An input's number of channels is not known, or `data.mean` has another.
    """
    mean, std = (None if values is None else np.asarray(values) for values in (data.mean, data.std))
    low = (0.0 - (0.0 if mean is None else mean)) / (1.0 if std is None else std)
    high = (1.0 - (0.0 if mean is None else mean)) / (1.0 if std is None else std)
    spread = {"mean": (low + high) / 2, "std": (high - low) / math.sqrt(12)} if mean is None else {}
    return input_moments(model, low=low, high=high, **spread)


def _added(first: list[NDArray[np.float64]], second: list[NDArray[np.float64]]) -> list[NDArray[np.float64]]:
    *sums, low, high = zip(first, second, strict=True)
    return [*(a + b for a, b in sums), np.minimum(*low), np.maximum(*high)]


def _sentence(found: Moments, data: DataConfig, *, has_samples: bool) -> str:
    why = "its samples have no channels of floats" if has_samples else "there are no samples"
    pixels = "pixels from 0 to 1" + ("" if data.std is None else " over data.std")
    source = f"those of {pixels}" if data.mean is None else "those of pixels less data.mean, over data.std"
    low, high = found.low.min(), found.high.max()
    return (
        f"{why}, so numbers from {low:.3g} to {high:.3g} are assumed, {source}; "
        + ("take a calib that reads the samples" if has_samples else "give samples (data.path)")
        + ", or the data.mean and data.std that the network was trained with"
    )
