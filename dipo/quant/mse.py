"""The range with the least squared error, from a histogram."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dipo.quant.observers import NUM_BINS, Statistics
from dipo.quant.spec import QParams, QuantSpec, Range, qparams_between

_HISTOGRAM_CHUNK = 8
"""Number of candidate ranges evaluated at once, so that temporaries stay in a core's cache."""
_COARSE_1D = 2.0 ** -np.arange(0, 6.25, 0.25)
_COARSE_2D = 2.0 ** -np.arange(0, 6.5, 0.5)
"""Factors on the ends of a range that the first pass of the search tries; 2^-6 clips all but outliers."""


def mse_range(stats: Statistics, spec: QuantSpec) -> Range:
    """Return the range, within the observed one, whose grid has the least expected squared error (`expected_error`).

    The search runs from coarse to fine over factors on both ends of the range; over one factor if the data lies on one
    side of zero or the grid is symmetric.
    """
    seen = Range(min(stats.min, 0.0), max(stats.max, 0.0))
    if seen.min == seen.max:
        return seen
    both_ends = seen.min < 0 < seen.max and not spec.symmetric
    limit = max(-seen.min, seen.max) if spec.symmetric else np.inf

    def ends(factors: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        if spec.symmetric:
            return np.maximum(seen.min, -limit * factors[:, 0]), np.minimum(seen.max, limit * factors[:, 0])
        return seen.min * factors[:, 0], seen.max * factors[:, -1]

    def best_of(factors: NDArray[np.float64]) -> NDArray[np.float64]:
        chunks = np.array_split(factors, -(-len(factors) // _HISTOGRAM_CHUNK))
        errors = [expected_error(stats, qparams_between(*ends(chunk), spec)) for chunk in chunks]
        best: NDArray[np.float64] = factors[np.argmin(np.concatenate(errors))]
        return best

    coarse = _COARSE_2D if both_ends else _COARSE_1D
    found = best_of(_grid(coarse, 2 if both_ends else 1))
    for step in 2.0 ** -np.arange(3, 7):
        found = best_of(np.minimum(found * _grid(2.0 ** (step * np.array([0, -2, -1, 1, 2])), len(found)), 1))
    low, high = ends(found[None])
    return Range(float(low[0]), float(high[0]))


def _grid(values: NDArray[np.float64], num_dims: int) -> NDArray[np.float64]:
    """Return every choice of `num_dims` values, [choices, num_dims]."""
    return np.stack(np.meshgrid(*[values] * num_dims, indexing="ij"), axis=-1).reshape(-1, num_dims)


def expected_error(stats: Statistics, qparams: QParams) -> NDArray[np.float64]:
    """Return the mean of (Q(x) - x)^2 under the histogram, for each of C grids.

    Within a bin the density is taken as uniform. In units of the scale, t = x / scale, the code is c = clip(round(t)),
    the error t - c, and the integral of its square G(t) = c / 12 + (t - c)^3 / 3. G is continuous, because a rounding
    interval adds 1/12, and also holds where values are clipped. So no bin needs a representative value, however fine
    the grid.

    Args:
        stats: The histogram.
        qparams: Scale and zero point of shape [C].

    Returns:
        Shape [C].
    """
    occupied = np.flatnonzero(stats.bins)
    first, last = int(occupied[0]), int(occupied[-1])
    edges = (np.arange(first, last + 2) - NUM_BINS // 2) * stats.width
    share = stats.bins[first : last + 1] / (stats.count * stats.width)
    # Summation by parts: sum_i share_i * (G(edge_i+1) - G(edge_i)) = sum_j G(edge_j) * (share_j-1 - share_j).
    weights = -np.diff(share, prepend=0, append=0)
    scale = qparams.scale.astype(np.float64)[:, None]
    zero_point = qparams.zero_point[:, None]
    t = edges / scale
    c = np.clip(np.rint(t), qparams.qmin - zero_point, qparams.qmax - zero_point)
    t -= c
    integral = t * t * t
    integral /= 3
    c /= 12
    integral += c
    # Not a matrix product: those round differently with the number of threads.
    error: NDArray[np.float64] = scale[:, 0] ** 3 * np.einsum("ce,e->c", integral, weights)
    return error
