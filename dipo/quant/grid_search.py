"""Search for the scale and zero point with the least error of a channel's weights."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from dipo.quant.spec import QParams, QuantSpec

_CHUNK = 1 << 16
"""Number of weights whose errors are computed at once, so that temporaries stay in a core's cache."""
_STEP = np.float32(1.06)
_COARSE = np.float32(1.2) * _STEP ** -np.arange(44, dtype=np.float32)
"""Factors on a row's initial scale, up to above 1, where a grid may fit a row of few weights better."""
_FINE = _STEP ** (np.array([k for k in range(-6, 7) if k != 0], np.float32) / 6)
"""Factors on the best of these scales, as far as its neighbours."""
_POWERS = np.float32(2) ** np.array([1, 0, -1, -2, -3, -4], np.float32)
"""Factors on an initial scale that is a power of two."""


def search_grids(rows: NDArray[np.float32], start: QParams, *, spec: QuantSpec, norm: float) -> QParams:
    """Return for each row the scale and zero point of least sum |Q(w) - w|^norm, never worse than the start's.

    The two ends of a range amount to a scale and a zero point, and there are few zero points: trying all of them (up to
    3 bits) or the start's neighbours, each with a list of scales, matches a search over both ends at less cost.

    Args:
        rows: Weights, [R, N], of magnitude about 1.
        start: Grids that clip nothing, with scale and zero point of shape [R].
        spec: The grid; a symmetric one keeps the start's zero point.
        norm: The exponent.
    """
    scale, zero_point = np.empty_like(start.scale), np.empty_like(start.zero_point)
    step = max(1, _CHUNK // rows.shape[1])
    for first in range(0, len(rows), step):
        part = slice(first, first + step)
        chunk = replace(start, scale=start.scale[part], zero_point=start.zero_point[part])
        grids = _search(rows[part], chunk, spec=spec, norm=norm)
        scale[part], zero_point[part] = grids.scale, grids.zero_point
    return replace(start, scale=scale, zero_point=zero_point)


def _search(rows: NDArray[np.float32], start: QParams, *, spec: QuantSpec, norm: float) -> QParams:
    """Run `search_grids` on as many rows as fit the cache."""
    scratch = np.empty_like(rows)
    best = start
    best_error = row_errors(rows, start, norm=norm, scratch=scratch)

    def attempt(scale: NDArray[np.float32], zero_point: NDArray[np.int32]) -> None:
        nonlocal best, best_error
        error = row_errors(rows, replace(start, scale=scale, zero_point=zero_point), norm=norm, scratch=scratch)
        better = error < best_error
        best_error = np.where(better, error, best_error)
        best = replace(
            best,
            scale=np.where(better, scale, best.scale),
            zero_point=np.where(better, zero_point, best.zero_point),
        )

    for zero_point in _zero_points(start, spec):
        for factor in _POWERS if spec.power_of_two else _COARSE:
            attempt(start.scale * factor, zero_point)
    coarse = best
    for factor in () if spec.power_of_two else _FINE:
        attempt(coarse.scale * factor, coarse.zero_point)
    return best


def _zero_points(start: QParams, spec: QuantSpec) -> list[NDArray[np.int32]]:
    """Return the zero points that a search tries, each of shape [R]."""
    if spec.symmetric:
        return [start.zero_point]
    if spec.bits <= 3:
        return [np.full_like(start.zero_point, code) for code in range(spec.qmin, spec.qmax + 1)]
    return [np.clip(start.zero_point + offset, spec.qmin, spec.qmax) for offset in (0, -1, 1)]


def row_errors(
    rows: NDArray[np.float32], grids: QParams, *, norm: float, scratch: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return the sum of |Q(w) - w|^norm over each row.

    Args:
        rows: Weights, [R, N].
        grids: Scale and zero point of shape [R].
        norm: The exponent.
        scratch: Memory shaped like `rows`, overwritten.

    Returns:
        Shape [R].
    """
    scale = grids.scale[:, None]
    np.divide(rows, scale, out=scratch)
    np.rint(scratch, out=scratch)
    lowest, highest = ((limit - grids.zero_point).astype(np.float32)[:, None] for limit in (grids.qmin, grids.qmax))
    np.clip(scratch, lowest, highest, out=scratch)
    scratch *= scale
    scratch -= rows
    np.abs(scratch, out=scratch)
    np.power(scratch, np.float32(norm), out=scratch)
    error: NDArray[np.float32] = scratch.sum(axis=1)
    return error
