"""OCTAV: the clip with the least squared error by Newton's iteration (Sakr et al., 2022, arXiv:2206.06501)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dipo.quant.mse import expected_error
from dipo.quant.observers import NUM_BINS, Statistics
from dipo.quant.spec import QuantSpec, Range, qparams_between

_ITERATIONS = 24
"""Number of Newton steps; a clip far in the tail of data with outliers needs about half of them."""
_HALF = NUM_BINS // 2


@dataclass(frozen=True, eq=False)
class _Tail:
    """Magnitudes on one side of zero, with their share and sum above a clip for the iteration.

    Within a bin the density is assumed uniform. The bin at zero counts no more than its neighbour: the surplus is exact
    zeros, mostly from ReLU, which every grid represents exactly.
    """

    bins: NDArray[np.float64]
    """Share of all values in each bin, counted outwards from zero, [2048]."""
    width: float

    @property
    def mass(self) -> float:
        """Share of the values, without exact zeros."""
        return float(self.bins.sum())

    def above(self, clip: float) -> tuple[float, float]:
        """Return P[x > clip] and E[x; x > clip]."""
        low = np.arange(_HALF) * self.width
        start = np.clip(clip, low, low + self.width)
        share = self.bins * (low + self.width - start) / self.width
        return float(share.sum()), float((share * (start + low + self.width) / 2).sum())


def octav_range(stats: Statistics, spec: QuantSpec) -> Range:
    """Return the range that minimises OCTAV's model of the squared error.

    For a grid of n steps from zero to the clip s (the paper has n = 2^(B-1)) the model is

        J(s) = s^2 / (12 n^2) * P[0 < |x| <= s] + E[(|x| - s)^2; |x| > s],

    rounding noise within and the clipped distance beyond. Newton's step on it, neglecting the density's own change,
    is s <- E[|x|; |x| > s] / (P[0 < |x| <= s] / (12 n^2) + P[|x| > s]). A symmetric grid uses |x|, a grid for data on
    one side of zero that side.

    An asymmetric grid for data on both sides has two clips l <= 0 <= h and n steps between them: the noise is
    (h - l)^2 / (12 n^2), and a step solves the two conditions together. With c = P[l <= x <= h, x != 0] / (12 n^2),

        (P[x > h] + c) h - c l = E[x; x > h]   and   (P[x < l] + c) l - c h = E[x; x < l].

    The iteration starts from the mean magnitudes. A histogram with several modes has several stationary points, and the
    model is poor far out: of the observed range and all iterates, the one with the least expected error on the
    histogram is returned.
    """
    seen = Range(min(stats.min, 0.0), max(stats.max, 0.0))
    if seen.min == seen.max:
        return seen
    ends = np.array([[seen.min, seen.max], *_iterates(stats, spec)])
    ends = np.stack([np.maximum(ends[:, 0], seen.min), np.minimum(ends[:, 1], seen.max)], axis=1)
    low, high = ends[np.argmin(expected_error(stats, qparams_between(ends[:, 0], ends[:, 1], spec)))]
    return Range(float(low), float(high))


def _iterates(stats: Statistics, spec: QuantSpec) -> list[tuple[float, float]]:
    """Return the lower and the upper end of the range at each step."""
    below, above = _tails(stats)
    if spec.symmetric:
        both = _Tail(below.bins + above.bins, stats.width)
        return [(-clip, clip) for _, clip in _solve(_Tail(np.zeros(_HALF), stats.width), both, spec)]
    return [(-low, high) for low, high in _solve(below, above, spec)]


def _solve(below: _Tail, above: _Tail, spec: QuantSpec) -> list[tuple[float, float]]:
    """Return Newton's iterates of both clips' magnitudes; a side without values stays at zero."""
    total = below.mass + above.mass
    (num_low, sum_low), (num_high, sum_high) = below.above(0), above.above(0)
    low, high = (s / n if n > 0 else 0.0 for s, n in ((sum_low, num_low), (sum_high, num_high)))
    iterates = [(low, high)]
    for _ in range(_ITERATIONS):
        (num_low, sum_low), (num_high, sum_high) = below.above(low), above.above(high)
        noise = (total - num_low - num_high) / (12 * spec.num_steps**2)
        if below.mass == 0 or above.mass == 0:
            denominator = num_low + num_high + noise
            new = (sum_low / denominator, sum_high / denominator) if denominator > 0 else (low, high)
        else:
            # The two conditions above for -l and h, by Cramer's rule.
            determinant = num_low * num_high + noise * (num_low + num_high)
            if determinant <= 0:
                break
            new = (
                ((num_high + noise) * sum_low - noise * sum_high) / determinant,
                ((num_low + noise) * sum_high - noise * sum_low) / determinant,
            )
        new = max(new[0], 0.0), max(new[1], 0.0)
        if np.allclose(new, (low, high), rtol=1e-6, atol=0):
            break
        low, high = new
        iterates.append(new)
    return iterates


def _tails(stats: Statistics) -> tuple[_Tail, _Tail]:
    """Return the magnitudes below and above zero."""
    above = stats.bins[_HALF:] / stats.count
    below = stats.bins[_HALF - 1 :: -1] / stats.count
    # If all values lie in the first bin, they are not taken for zeros.
    if above[1:].any() or below[1:].any():
        above = above.copy()
        above[0] = min(above[0], max(above[1], below[0]))
    return _Tail(below, stats.width), _Tail(above, stats.width)
