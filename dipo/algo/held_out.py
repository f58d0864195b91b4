"""Held-out samples: calibration samples that no step is fitted to, on which its result is judged.

Which they are follows from the number of samples alone, so that every worker, batch and shard, and every step, means
the same ones. A step is judged on samples that it has not seen because on those that it was fitted to it always wins:
16 samples say little about a weight that 320 optimizer steps have moved.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence

import numpy as np

from dipo.algo.activation_cache import Batch

LEAST_SAMPLES = 4
"""Fewer samples than these are all fitted: one held out would be missed more than it could tell."""
FEW = 8
"""Number of held-out samples up to which they are a quarter of all."""
PART_OF_FEW, PART_OF_MANY = 4, 16
"""One in so many samples is held out."""


def held_out_samples(num_samples: int) -> tuple[int, ...]:
    """Return the indices of the held-out samples, rising: a sixteenth of all, a quarter of few; none of under 4.

    Of each of as many equal stretches of the samples there is one, at a place within it that is drawn: samples that are
    sorted by class, and those that take turns, are both met.

    Args:
        num_samples: Number of calibration samples.
    """
    if num_samples < LEAST_SAMPLES:
        return ()
    count = max(num_samples // PART_OF_MANY, min(num_samples // PART_OF_FEW, FEW))
    cuts = np.arange(count + 1) * num_samples // count
    drawn = np.random.default_rng(num_samples).integers(cuts[:-1], cuts[1:])
    return tuple(int(sample) for sample in drawn)


def places(batch: Batch, samples: Sequence[int]) -> list[int]:
    """Return the places within a batch of those of some samples that it has.

    Args:
        batch: The batch.
        samples: Indices of samples in the data set, rising.
    """
    first, last = bisect.bisect_left(samples, batch.start), bisect.bisect_left(samples, batch.stop)
    return [sample - batch.start for sample in samples[first:last]]
