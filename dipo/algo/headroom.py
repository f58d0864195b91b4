"""Room above what was seen: how far values of samples that calibration did not see reach beyond its ranges.

The largest value of the next sample is beyond those of n samples with probability 1 / (n + 1): of 16 samples it is one
in 17, and on such a sample every layer cuts off what is largest. How far it goes beyond follows from the tail of the
samples' own extremes. Above a high threshold, tails are about exponential (Pickands 1975, Balkema and de Haan 1974,
with shape 0), and the mean excess of the k largest of n over the next is the estimate of its scale (Hill 1975, on
values in place of their logarithms):

    sigma = 1/k sum_{i <= k} (m_(i) - m_(k+1)),    P(m > m_(1) + d) = exp(-d / sigma) / (n + 1)

so an end of a range that m_(1) stands for is moved by d = sigma ln(1 / (p (n + 1))) to be exceeded by a share p of the
samples. Values that are bounded, by a Sigmoid or by what pixels can be, have the same extremes in many samples: sigma
is zero, and nothing moves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dipo.quant.spec import Range

TAIL = 4
"""Number k of the largest extremes that the tail's scale is taken from."""
EXCEEDED = (0.01, 0.001)
"""Shares p of samples that may reach beyond a range: the room that is tried."""
LEAST_SAMPLES, MOST_SAMPLES = 4, 98
"""Fewer samples say nothing of a tail; of more, less than one in 100 reaches beyond what was seen."""


@dataclass(frozen=True)
class Room:
    """How much room there is beyond what a method made of some samples."""

    share: float = 1.0
    """Share p of samples that may reach beyond; 1 for no room."""
    from_seen: bool = False
    """Whether it begins at all that was seen, where the method cut off what is rare: of few samples, what is rare was
    hardly seen."""

    def factors(self, ends: Range, extremes: NDArray[np.float64], *, samples: Sequence[int]) -> tuple[float, float]:
        """Return the factors on both ends of a range of all samples: to what some of them show, with room for others.

        Args:
            ends: The range of all samples, as the method has it; its ends keep their proportion to what was seen.
            extremes: Smallest and largest value of each sample [samples, 2].
            samples: The samples that count.
        """
        low, high = np.maximum(extremes * [-1, 1], 0).T
        return self._factor(-ends.min, low, samples), self._factor(ends.max, high, samples)

    def _factor(self, end: float, side: NDArray[np.float64], samples: Sequence[int]) -> float:
        part, whole = side[list(samples)], float(side.max())
        if whole <= 0 or end <= 0:
            return 1.0
        begins = max(1.0, whole / end) if self.from_seen else 1.0
        return begins * float(part.max()) / whole * reach(part, share=self.share)


AS_IT_IS = Room()
ROOMS = tuple(Room(share, from_seen) for from_seen in (False, True) for share in (1.0, *EXCEEDED))
"""What is tried, without room first."""


def are_few(num_samples: int) -> bool:
    """Return whether room beyond a number of samples is worth to be tried."""
    return LEAST_SAMPLES <= num_samples <= MOST_SAMPLES


def reach(extremes: NDArray[np.float64], *, share: float) -> float:
    """Return by what factor the largest of some extremes is exceeded by a share of further samples only, at least 1.

    Args:
        extremes: Each sample's largest value on one side of zero [samples], not negative.
        share: The share p of samples; 1 for no room.
    """
    tail = min(TAIL, len(extremes) - 1)
    if tail < 1:
        return 1.0
    largest = np.sort(extremes)[::-1][: tail + 1]
    if largest[0] <= 0:
        return 1.0
    sigma = float((largest[:tail] - largest[tail]).mean())
    return 1 + sigma * max(0.0, -math.log(share * (len(extremes) + 1))) / float(largest[0])
