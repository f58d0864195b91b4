"""Results of an analysis: sums that add up over batches and merge exactly over workers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dipo.algo.granularity import WeightSums
from dipo.quant.error_sums import ErrorSums


@dataclass(frozen=True)
class Analysis:
    """One worker's sums; they merge exactly with the others'."""

    parts: dict[str, dict[str, dict[int, tuple[ErrorSums, ...]]]]
    """By question, name of the layer, and index of the batch: one for the layer's output, or for `sensitivity` one for
    each output of the network. A layer whose input stays float has none for `activation`."""
    shifts: dict[str, dict[int, NDArray[np.float64]]]
    """By name of a layer with a bias and index of the batch: sums [C] of the output's differences in `both`."""

    def merge(self, other: Analysis) -> Analysis:
        """Return the sums of both."""
        return Analysis(
            {
                question: {name: mine | other.parts[question][name] for name, mine in layers.items()}
                for question, layers in self.parts.items()
            },
            {name: mine | other.shifts[name] for name, mine in self.shifts.items()},
        )

    def totals(self) -> dict[str, dict[str, tuple[ErrorSums, ...]]]:
        """Sums over all batches, by question and layer; added in the batches' order, whoever ran them."""
        return {
            question: {name: _added(batches) for name, batches in layers.items() if batches}
            for question, layers in self.parts.items()
        }

    def shift_shares(self) -> dict[str, float]:
        """Share of the noise of `both` that a corrected bias takes away, 0 to 1; by name of a layer with a bias.

        That is sum_c n m_c^2 over the noise, with m_c the mean difference of channel c over its n elements.
        """
        shares = {}
        for name, batches in self.shifts.items():
            sums = np.sum([batches[index] for index in sorted(batches)], axis=0)
            both = _added(self.parts["both"][name])[0] if batches else None
            if both is not None:
                constant = float(np.square(sums).sum()) / max(1, both.count // sums.size)
                shares[name] = min(1.0, constant / both.noise) if 0 < both.noise < math.inf else 0.0
        return shares


@dataclass(frozen=True)
class NetworkAnalysis:
    """The sums of all workers, for the report."""

    totals: dict[str, dict[str, tuple[ErrorSums, ...]]]
    """Sums over all batches, by question and layer."""
    weights: dict[str, WeightSums]
    """By layer: its weight with one scale and with one for each channel."""
    shift_shares: dict[str, float]
    """By layer with a bias: the share of its noise that a corrected bias takes away, 0 to 1."""
    samples: int
    """Number of samples that were looked at."""
    sensitivity_samples: int
    """How many of them were used for `sensitivity`."""


def _added(batches: Mapping[int, tuple[ErrorSums, ...]]) -> tuple[ErrorSums, ...]:
    first, *rest = (batches[index] for index in sorted(batches))
    for sums in rest:
        first = tuple(a + b for a, b in zip(first, sums, strict=True))
    return first
