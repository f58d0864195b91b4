"""Whether a step made a value better: its error before and after, on samples that the step was not fitted to."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

MOST_DB = 200.0
"""Largest gain or loss in dB: that of an error that comes or goes altogether."""
TOLERATED_DB = 0.2
"""Loss in dB of a single output that is put up with where the outputs gain on the average."""


@dataclass(frozen=True)
class Judgement:
    """The verdict on what a step made."""

    gain_db: float
    """Fall of the error in dB, the mean of all outputs; below zero where it rose."""
    kept: bool
    """Whether what the step made is kept; else it is as it was before."""

    @staticmethod
    def of(before: Mapping[str, float], after: Mapping[str, float]) -> Judgement:
        """Judge by the squared errors of each output.

        Each output counts by the ratio of its errors, whatever its size: none hides behind another. What gains on the
        average is kept, unless an output loses more than it may.

        Args:
            before: Sum of the squared errors by name of the output, before the step.
            after: The same behind it, over the same samples.
        """
        gains = [_gain_db(before[name], error) for name, error in after.items()]
        mean = sum(gains) / len(gains)
        return Judgement(mean, kept=mean > 0 and min(gains) >= -TOLERATED_DB)


def squared_error(fp: NDArray[Any], q: NDArray[Any]) -> float:
    """Return the sum of the squared differences of two arrays; of integers, such as classes, how many differ.

    NaN and infinities that both have differ by nothing.
    """
    differ = fp != q
    if not np.issubdtype(fp.dtype, np.floating):
        return float(differ.sum())
    differ &= ~(np.isnan(fp) & np.isnan(q))
    return float(((fp[differ].astype(np.float64) - q[differ]) ** 2).sum())


def _gain_db(before: float, after: float) -> float:
    """Return by how many dB an error fell; an error that is no finite number is larger than any that is."""
    if not (math.isfinite(before) and math.isfinite(after)):
        return MOST_DB * (math.isfinite(after) - math.isfinite(before))
    if before <= 0 or after <= 0:
        return MOST_DB * ((before > 0) - (after > 0))
    return max(-MOST_DB, min(MOST_DB, 10 * (math.log10(before) - math.log10(after))))
