"""Ranges from statistics, and scales and zero points of weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dipo.errors import UserError
from dipo.quant.grid_search import search_grids
from dipo.quant.mse import expected_error
from dipo.quant.observers import NUM_BINS, Statistics
from dipo.quant.range_methods import RANGE_METHODS
from dipo.quant.spec import Blocks, QParams, QuantSpec, Range, input_axis, qparams_between, qparams_of

__all__ = [
    "WEIGHT_METHODS",
    "Range",
    "activation_range",
    "qparams_between",
    "qparams_of",
    "weight_qparams",
]

_TINY = np.finfo(np.float32).tiny


def activation_range(
    stats: Statistics, spec: QuantSpec, *, method: str, percentile: float = 99.99, name: str = "a tensor"
) -> Range:
    """Return the range of a tensor, from its statistics, with the room that these ask for.

    Args:
        stats: Statistics of the tensor.
        spec: The grid that the range is for; `mse`, `kl` and `octav` depend on it.
        method: A key of `RANGE_METHODS`.
        percentile: Per cent of the values that the method `percentile` keeps.
        name: Name of the tensor in errors.

    Raises:
        UserError: nothing was observed, or nothing that is finite, or there is no such method or percentile.
    """
    if method not in RANGE_METHODS:
        raise UserError(f"range method '{method}': choose from {', '.join(RANGE_METHODS)}")
    if stats.count == 0 and stats.infinite:
        raise UserError(
            f"{name}: it is infinite everywhere on the calibration data, so it has no range; leave what reads it float "
            "(precision.skip)"
        )
    if stats.count == 0:
        raise UserError(f"{name}: no value was observed, so it has no range; give calibration samples that reach it")
    choose = RANGE_METHODS[method].choose
    assert choose is not None, method
    return choose(stats, spec, percentile).stretched(stats.room)


def minmax_range(stats: Statistics) -> Range:
    """Return the range of all observed values and zero."""
    return Range(min(stats.min, 0.0), max(stats.max, 0.0))


def percentile_range(stats: Statistics, percentile: float) -> Range:
    """Return the range of the given per cent of the values.

    The rest is cut off at the upper end of data without negative values, at the lower end of data without positive
    ones, and otherwise half at each end. The range ends at the outer edges of the bins of the outermost values kept, at
    most one bin beyond them.
    """
    if not 0 < percentile <= 100:
        raise UserError(f"percentile {percentile}: choose a number above 0 and up to 100")
    two_sided = stats.min < 0 < stats.max
    # Without the margin, 1e-15 of rounding in the percentage might keep one value more.
    spare = int(stats.count * (100 - percentile) / 100 / (2 if two_sided else 1) + 1e-6)
    num_below = np.cumsum(stats.bins)
    first = int(np.searchsorted(num_below, spare, side="right")) - NUM_BINS // 2
    last = int(np.searchsorted(num_below, stats.count - spare, side="left")) - NUM_BINS // 2
    low = max(first * stats.width, stats.min) if stats.min < 0 else 0.0
    high = min((last + 1) * stats.width, stats.max) if stats.max > 0 else 0.0
    return Range(min(low, 0.0), max(high, 0.0))


def nearest_power(found: Range, stats: Statistics, spec: QuantSpec) -> Range:
    """Return the range, or that of the next smaller power of two as scale, whichever has the lesser squared error."""
    if not spec.power_of_two or found.min == found.max:
        return found
    scale = float(qparams_of(found, spec).scale)
    exact = float(qparams_of(found, replace(spec, power_of_two=False)).scale)
    # Without the margin, rounding might yield the larger power again.
    factor = scale / (2 * exact) * (1 - 1e-6)
    ends = np.array([[found.min, found.max]]) * np.array([[1], [factor]])
    errors = expected_error(stats, qparams_between(ends[:, 0], ends[:, 1], spec))
    return Range(*ends[np.argmin(errors)].tolist())


def weight_qparams(
    weight: NDArray[np.float32],
    spec: QuantSpec,
    *,
    axis: int,
    method: str,
    norm: float = 2.4,
    percentile: float = 99.99,
    name: str = "a weight",
) -> QParams:
    """Return scales and zero points of a weight: per channel along `axis` if the spec says so, else one for all.

    If the spec has blocks, each block of weights along the input axis has its own.

    Args:
        weight: Weight of any shape, not empty.
        spec: The grid.
        axis: The axis that counts output channels.
        method: A key of `WEIGHT_METHODS`: "minmax" clips nothing; "mse" searches the scale and zero point with the
            least sum of |Q(w) - w|^norm, never worse in it than minmax; "percentile" clips the largest.
        norm: The exponent; 2.4 as BRECQ's code has it, after LAPQ (arXiv:1911.07190).
        percentile: Per cent of a row's weights that "percentile" keeps.
        name: Name of the weight in errors.

    Raises:
        UserError: there is no such method, or the weight has NaN or infinite values.
    """
    if method not in WEIGHT_METHODS:
        raise UserError(f"weight range method '{method}': choose from {', '.join(WEIGHT_METHODS)}")
    if not np.isfinite(weight).all():
        raise UserError(f"{name} has NaN or infinite values: the float model is broken, export it again")
    if spec.block is not None:
        return _block_qparams(
            weight, spec, axis % weight.ndim, lambda rows: WEIGHT_METHODS[method](rows, spec, norm, percentile)
        )
    if spec.per_channel:
        rows = np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1)
        grids = WEIGHT_METHODS[method](np.ascontiguousarray(rows), spec, norm, percentile)
        return replace(grids, axis=axis % weight.ndim)
    grids = WEIGHT_METHODS[method](weight.reshape(1, -1), spec, norm, percentile)
    return replace(grids, scale=grids.scale.reshape(()), zero_point=grids.zero_point.reshape(()))


def _block_qparams(
    weight: NDArray[np.float32], spec: QuantSpec, axis: int, find: Callable[[NDArray[np.float32]], QParams]
) -> QParams:
    """Return a grid for each block, from a function that returns one for each row of weights."""
    assert spec.block is not None
    along = input_axis(axis)
    blocks = Blocks(spec.block, along, weight.shape[along])
    moved = np.moveaxis(weight, along, -1)
    whole = blocks.length // blocks.size * blocks.size
    parts = [(moved[..., :whole], blocks.size), (moved[..., whole:], blocks.length - whole)]
    grids = [find(np.ascontiguousarray(part).reshape(-1, size)) for part, size in parts if part.size]

    def joined(arrays: Iterable[NDArray[Any]]) -> NDArray[Any]:
        inner = np.concatenate([array.reshape(*moved.shape[:-1], -1) for array in arrays], axis=-1)
        return np.ascontiguousarray(np.moveaxis(inner, -1, along))

    scale, zero_point = joined(grid.scale for grid in grids), joined(grid.zero_point for grid in grids)
    return replace(grids[0], scale=scale, zero_point=zero_point, axis=axis, blocks=blocks)


def _minmax_rows(rows: NDArray[np.float32], spec: QuantSpec, _norm: float, _percentile: float) -> QParams:
    """Return a grid for each row that clips nothing."""
    return qparams_between(rows.min(axis=1), rows.max(axis=1), spec)


def _percentile_rows(rows: NDArray[np.float32], spec: QuantSpec, _norm: float, percentile: float) -> QParams:
    """Return a grid for each row that keeps the given per cent of its weights.

    A symmetric grid clips the largest magnitudes, another grid half as many weights at either end. The range ends at a
    weight, so that a row too short to lose one is not clipped.
    """
    if not 0 < percentile <= 100:
        raise UserError(f"weight percentile {percentile}: choose a number above 0 and up to 100")
    keep = percentile if spec.symmetric else (100 + percentile) / 2
    lower, upper = (-np.abs(rows), np.abs(rows)) if spec.symmetric else (rows, rows)
    low = -np.percentile(-lower, keep, axis=1, method="inverted_cdf")
    high = np.percentile(upper, keep, axis=1, method="inverted_cdf")
    return qparams_between(low, high, spec)


def _mse_rows(rows: NDArray[np.float32], spec: QuantSpec, norm: float, percentile: float) -> QParams:
    """Return a grid for each row with the least error in the norm.

    Rows are scaled to magnitude 1 by powers of two, which changes no code, so that no error over- or underflows.
    """
    minmax = _minmax_rows(rows, spec, norm, percentile)
    exponent = np.frexp(np.abs(rows).max(axis=1))[1]
    normal = np.ldexp(rows, -exponent[:, None])
    grids = search_grids(normal, _minmax_rows(normal, spec, norm, percentile), spec=spec, norm=norm)
    with np.errstate(over="ignore", under="ignore"):
        scale = np.ldexp(grids.scale, exponent)
    usable = np.isfinite(scale) & (scale >= _TINY)
    return replace(
        minmax,
        scale=np.where(usable, scale, minmax.scale),
        zero_point=np.where(usable, grids.zero_point, minmax.zero_point),
    )


WEIGHT_METHODS: dict[str, Callable[[NDArray[np.float32], QuantSpec, float, float], QParams]] = {
    "minmax": _minmax_rows,
    "mse": _mse_rows,
    "percentile": _percentile_rows,
}
"""Functions by which `weight_qparams` chooses, of the rows, the grid, the norm and the percentile, by name."""
