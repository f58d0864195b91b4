"""TensorRT's entropy calibration on a histogram (Migacz, 8-bit Inference with TensorRT, GTC 2017)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dipo.quant.observers import NUM_BINS, Statistics
from dipo.quant.spec import QuantSpec, Range

_HALF = NUM_BINS // 2
_CHUNK = 1 << 14
"""Number of level edges of the candidates evaluated at once, so that temporaries stay in a core's cache."""


def entropy_range(stats: Statistics, spec: QuantSpec) -> Range:
    """Return the range whose quantized histogram diverges least from the observed one.

    Candidate m keeps the first m bins. P is their histogram, with the counts beyond them added to the last bin; Q is
    their histogram without these counts, merged into as many levels as the grid has and spread again over each level's
    occupied bins. The m, of at least as many bins as levels, with the least D(P || Q) is chosen: it clips at (m + 1/2)
    bins.

    The published procedure has 2048 bins of |x| and 128 levels; here the levels are the grid's:

    - symmetric grid: |x|, with the codes from zero up (128 at 8 bits), as published;
    - asymmetric grid, data on one side of zero: that side, with all codes (256);
    - asymmetric grid, data on both sides: the bins within m of zero on either side, with all codes.

    The publication leaves the levels' borders open: here bin j of m belongs to level floor(j * levels / m). As in
    NVIDIA's own code, the bin at zero gets its neighbour's count: exact zeros, mostly from ReLU, are on every grid. Two
    rules are ours: no candidate clips more values than it keeps (for data far from zero, P and Q agree best with all of
    it clipped into one bin), and nothing is clipped if the histogram has no more bins than the grid has levels.
    """
    seen = Range(min(stats.min, 0.0), max(stats.max, 0.0))
    levels = spec.num_steps + 1
    bins = stats.bins.astype(np.float64)
    if spec.symmetric:
        best = _best_stop(_without_zeros(bins[_HALF:] + bins[_HALF - 1 :: -1]), levels)
    elif seen.min < 0 < seen.max:
        best = _best_window(bins, levels)
    else:
        side = bins[_HALF:] if seen.max > 0 else bins[_HALF - 1 :: -1]
        best = _best_stop(_without_zeros(side), levels)
    if best is None:
        return seen
    clip = (best + 0.5) * stats.width
    return Range(max(seen.min, -clip), min(seen.max, clip))


def _without_zeros(bins: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return bins counted outwards from zero, with the first one's count replaced by the second's."""
    return np.concatenate([bins[1:2], bins[1:]])


def _best_stop(bins: NDArray[np.float64], levels: int) -> int | None:
    """Return the number of leading bins with the least divergence; None if no divergence is finite."""
    num_bins = int(np.flatnonzero(bins)[-1]) + 1 if bins.any() else 0
    if num_bins <= levels:
        return None
    stops = np.arange(levels, num_bins + 1)
    divergence = divergences(bins, np.zeros_like(stops), stops, levels)
    return int(stops[np.argmin(divergence)]) if np.isfinite(divergence).any() else None


def _best_window(bins: NDArray[np.float64], levels: int) -> int | None:
    """Return the distance from zero, in bins on both sides, with the least divergence; None as `_best_stop`."""
    bins = bins.copy()
    bins[_HALF] = bins[_HALF + 1]
    occupied = np.flatnonzero(bins)
    if not len(occupied):
        return None
    first, last = int(occupied[0]), int(occupied[-1]) + 1
    reach = np.arange(1, max(_HALF - first, last - _HALF) + 1)
    starts, stops = np.maximum(first, _HALF - reach), np.minimum(last, _HALF + reach)
    wide = stops - starts >= levels
    if last - first <= levels or not wide.any():
        return None
    divergence = divergences(bins, starts[wide], stops[wide], levels)
    return int(reach[wide][np.argmin(divergence)]) if np.isfinite(divergence).any() else None


def divergences(
    bins: NDArray[np.float64], starts: NDArray[np.int64], stops: NDArray[np.int64], levels: int
) -> NDArray[np.float64]:
    """Return D(P || Q) of each histogram window; infinite where Q lacks a bin of P or most values are clipped.

    With h the counts, o the counts beyond an end that are added to its bin, T the total and H the total inside,
    p = (h + o) / T. A level with the sum S and n occupied bins has q = S / (n H) in each of these. So

        T * D = sum_j (h_j + o_j) log(h_j + o_j) - sum_levels (S + o) log(S / n) + T log(H / T),

    where all sums follow from three running sums over the bins, for any number of candidates.

    Args:
        bins: Counts, not all 0.
        starts: First bin of each of C windows.
        stops: One past the last bin; the windows are at least `levels` wide.
        levels: Number of levels.

    Returns:
        Shape [C].
    """
    counts, occupied, entropy = (
        np.concatenate([[0.0], np.cumsum(part)]) for part in (bins, bins > 0, bins * np.log(np.maximum(bins, 1)))
    )
    total = counts[-1]
    step = max(1, _CHUNK // levels)
    chunks = [slice(first, first + step) for first in range(0, len(starts), step)]
    levelled = [_levelled(counts, occupied, starts[part], stops[part], levels) for part in chunks]
    below, above = counts[starts], total - counts[stops]
    inside = counts[stops] - counts[starts]
    with np.errstate(divide="ignore", invalid="ignore"):
        bin_sum = entropy[stops] - entropy[starts]
        for end, outside in ((starts, below), (stops - 1, above)):
            count = bins[end]
            bin_sum += _x_log_x(count + outside) - _x_log_x(count)
        divergence = (bin_sum - np.concatenate(levelled) + total * np.log(inside / total)) / total
    lost = ((below > 0) & (bins[starts] == 0)) | ((above > 0) & (bins[stops - 1] == 0)) | (2 * inside < total)
    return np.where(lost, np.inf, divergence)


def _levelled(
    counts: NDArray[np.float64],
    occupied: NDArray[np.float64],
    starts: NDArray[np.int64],
    stops: NDArray[np.int64],
    levels: int,
) -> NDArray[np.float64]:
    """Return the sum over levels in `divergences`, for some windows."""
    size = (stops - starts)[:, None]
    # Bin j belongs to level floor(j * levels / size), so level l begins at ceil(l * size / levels).
    edges = starts[:, None] - (-np.arange(levels + 1) * size // levels)
    inside, number = np.diff(counts[edges]), np.diff(occupied[edges])
    logs = np.log(np.maximum(inside, 1) / np.maximum(number, 1))
    result: NDArray[np.float64] = np.einsum("cl,cl->c", inside, logs)
    result += counts[starts] * logs[:, 0]
    result += (counts[-1] - counts[stops]) * logs[:, -1]
    return result


def _x_log_x(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return x * np.log(np.maximum(x, 1))
