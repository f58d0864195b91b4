"""From statistics to ranges, from ranges to qparams, and from weights to qparams."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dipo.errors import UserError
from dipo.quant.grid_search import search_grids
from dipo.quant.observers import NUM_BINS, Statistics
from dipo.quant.spec import QParams, QuantSpec

_TINY = np.finfo(np.float32).tiny
_HISTOGRAM_CHUNK = 8
"""Candidate ranges judged at once: their temporaries stay in a core's cache."""
_COARSE_1D = 2.0 ** -np.arange(0, 6.25, 0.25)
_COARSE_2D = 2.0 ** -np.arange(0, 6.5, 0.5)
"""Factors on the ends of a range that the first pass of the MSE search tries; 2^-6 clips all but outliers."""


@dataclass(frozen=True)
class Range:
    """The values that a tensor's codes should cover; zero lies within."""

    min: float
    max: float


def activation_range(
    stats: Statistics, spec: QuantSpec, *, method: str, percentile: float = 99.99, name: str = "a tensor"
) -> Range:
    """The range of a tensor, from its statistics.

    Args:
        stats: What was observed.
        spec: The grid that the range is for; `mse` depends on it.
        method: A key of `RANGE_METHODS`.
        percentile: Per cent of the values that the method of this name keeps.
        name: What errors call the tensor.

    Raises:
        UserError: nothing was observed, or there is no such method or percentile.
    """
    if method not in RANGE_METHODS:
        raise UserError(f"range method '{method}': choose from {', '.join(RANGE_METHODS)}")
    if stats.count == 0:
        raise UserError(f"{name}: no value was observed, so it has no range; give calibration samples that reach it")
    return RANGE_METHODS[method](stats, spec, percentile)


def qparams_of(range_: Range, spec: QuantSpec) -> QParams:
    """Scale and zero point of a whole tensor: `qparams_between` for one range."""
    return qparams_between(range_.min, range_.max, spec)


def qparams_between(low: ArrayLike, high: ArrayLike, spec: QuantSpec, *, axis: int | None = None) -> QParams:
    """Scale and zero point as ONNX's QuantizeLinear wants them, one for each element of `low` and `high`.

    Asymmetric: scale = (high - low) / (qmax - qmin), zero point = clip(round(qmin - low / scale)).
    Symmetric: scale = max(-low, high) / (qmax - middle), zero point = middle.
    Zero is always made part of the range. A range of nothing but zero has scale 1; no scale is below float32's smallest
    normal number.

    Args:
        low: Lower ends, finite; shape [] or [C].
        high: Upper ends, of the same shape.
        spec: The grid.
        axis: What `QParams.axis` will be.
    """
    low = np.minimum(np.asarray(low, np.float64), 0)
    high = np.maximum(np.asarray(high, np.float64), 0)
    assert np.isfinite(low).all() and np.isfinite(high).all()
    middle = _middle(spec)
    span = np.maximum(-low, high) / (spec.qmax - middle) if spec.symmetric else (high - low) / (spec.qmax - spec.qmin)
    scale = np.where(span == 0, 1, np.maximum(span, _TINY)).astype(np.float32)
    if spec.symmetric:
        zero_point = np.full(scale.shape, middle)
    else:
        zero_point = np.clip(np.rint(spec.qmin - low / scale.astype(np.float64)), spec.qmin, spec.qmax)
    return QParams(scale, zero_point.astype(np.int32), spec.qmin, spec.qmax, axis)


def _middle(spec: QuantSpec) -> int:
    """The zero point of a symmetric grid."""
    return (spec.qmin + spec.qmax + 1) // 2


def _minmax(stats: Statistics, _spec: QuantSpec, _percentile: float) -> Range:
    """All that was seen."""
    return Range(min(stats.min, 0.0), max(stats.max, 0.0))


def _percentile(stats: Statistics, _spec: QuantSpec, percentile: float) -> Range:
    """The given per cent of the values.

    What is left out is taken off the upper end of data that is nowhere negative, off the lower end of data that is
    nowhere positive, and by halves off both ends otherwise. The range ends at the outer edges of the bins of the
    outermost values kept, so at most a bin beyond them.
    """
    if not 0 < percentile <= 100:
        raise UserError(f"percentile {percentile}: choose a number above 0 and up to 100")
    two_sided = stats.min < 0 < stats.max
    # The margin keeps 1e-15 of rounding in the percentage from keeping one value more.
    spare = int(stats.count * (100 - percentile) / 100 / (2 if two_sided else 1) + 1e-6)
    num_below = np.cumsum(stats.bins)
    first = int(np.searchsorted(num_below, spare, side="right")) - NUM_BINS // 2
    last = int(np.searchsorted(num_below, stats.count - spare, side="left")) - NUM_BINS // 2
    low = max(first * stats.width, stats.min) if stats.min < 0 else 0.0
    high = min((last + 1) * stats.width, stats.max) if stats.max > 0 else 0.0
    return Range(min(low, 0.0), max(high, 0.0))


def _mse(stats: Statistics, spec: QuantSpec, _percentile: float) -> Range:
    """The range, within the one seen, whose grid has the smallest expected squared error: `_expected_error`.

    A search from coarse to fine over factors on both ends of the range; over one factor where the data lies on one side
    of zero or the grid is symmetric.
    """
    seen = _minmax(stats, spec, 100)
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
        errors = [_expected_error(stats, qparams_between(*ends(chunk), spec)) for chunk in chunks]
        best: NDArray[np.float64] = factors[np.argmin(np.concatenate(errors))]
        return best

    coarse = _COARSE_2D if both_ends else _COARSE_1D
    found = best_of(_grid(coarse, 2 if both_ends else 1))
    for step in 2.0 ** -np.arange(3, 7):
        found = best_of(np.minimum(found * _grid(2.0 ** (step * np.array([0, -2, -1, 1, 2])), len(found)), 1))
    low, high = ends(found[None])
    return Range(float(low[0]), float(high[0]))


def _grid(values: NDArray[np.float64], num_dims: int) -> NDArray[np.float64]:
    """Every choice of `num_dims` values, [choices, num_dims]."""
    return np.stack(np.meshgrid(*[values] * num_dims, indexing="ij"), axis=-1).reshape(-1, num_dims)


def _expected_error(stats: Statistics, qparams: QParams) -> NDArray[np.float64]:
    """Mean of (Q(x) - x)^2 under the histogram, for each of C grids.

    Within a bin the density is taken as uniform. In units of the scale, t = x / scale, the code is c = clip(round(t)),
    the error t - c, and the integral of its square G(t) = c / 12 + (t - c)^3 / 3. It is continuous, for a rounding
    interval adds 1/12, and it holds where values are clipped too. So no bin needs a representative, however fine the
    grid.

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


RANGE_METHODS: dict[str, Callable[[Statistics, QuantSpec, float], Range]] = {
    "minmax": _minmax,
    "percentile": _percentile,
    "mse": _mse,
}
"""How `activation_range` chooses: a function of the statistics, the grid and the percentile for each name."""


def weight_qparams(
    weight: NDArray[np.float32],
    spec: QuantSpec,
    *,
    axis: int,
    method: str,
    norm: float = 2.4,
    name: str = "a weight",
) -> QParams:
    """Scales and zero points for a weight: per channel along `axis` where the spec says so, else one for all.

    Args:
        weight: Any shape, not empty.
        spec: The grid.
        axis: The axis that counts output channels.
        method: A key of `WEIGHT_METHODS`: "minmax" clips nothing; "mse" searches scale and zero point for the least
            sum of |Q(w) - w|^norm, and is never worse in that than minmax.
        norm: The exponent; 2.4 as BRECQ's code has it, after LAPQ (arXiv:1911.07190).
        name: What errors call the weight.

    Raises:
        UserError: there is no such method, or the weight has NaN or infinite values.
    """
    if method not in WEIGHT_METHODS:
        raise UserError(f"weight range method '{method}': choose from {', '.join(WEIGHT_METHODS)}")
    if not np.isfinite(weight).all():
        raise UserError(f"{name} has NaN or infinite values: the float model is broken, export it again")
    if spec.per_channel:
        rows = np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1)
        found = WEIGHT_METHODS[method](np.ascontiguousarray(rows), spec, norm)
        return replace(found, axis=axis % weight.ndim)
    found = WEIGHT_METHODS[method](weight.reshape(1, -1), spec, norm)
    return replace(found, scale=found.scale.reshape(()), zero_point=found.zero_point.reshape(()))


def _minmax_rows(rows: NDArray[np.float32], spec: QuantSpec, _norm: float) -> QParams:
    """A grid for each row that clips nothing."""
    return qparams_between(rows.min(axis=1), rows.max(axis=1), spec)


def _mse_rows(rows: NDArray[np.float32], spec: QuantSpec, norm: float) -> QParams:
    """A grid for each row with the least error in the norm.

    Rows are brought to magnitude 1 by powers of two, which changes no code, so that no error over- or underflows.
    """
    minmax = _minmax_rows(rows, spec, norm)
    exponent = np.frexp(np.abs(rows).max(axis=1))[1]
    normal = np.ldexp(rows, -exponent[:, None])
    found = search_grids(normal, _minmax_rows(normal, spec, norm), spec=spec, norm=norm)
    with np.errstate(over="ignore", under="ignore"):
        scale = np.ldexp(found.scale, exponent)
    usable = np.isfinite(scale) & (scale >= _TINY)
    return replace(
        minmax,
        scale=np.where(usable, scale, minmax.scale),
        zero_point=np.where(usable, found.zero_point, minmax.zero_point),
    )


WEIGHT_METHODS: dict[str, Callable[[NDArray[np.float32], QuantSpec, float], QParams]] = {
    "minmax": _minmax_rows,
    "mse": _mse_rows,
}
"""How `weight_qparams` chooses: a function of the rows, the grid and the norm for each name."""
