"""The grids of a layer's weights by the error that they make in its outputs.

Whatever shares a scale is one entry here: a row of the weight, all rows of a tensor, a block of a row, or the rows of
the same number in all groups. Each weight has the number of its entry.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch

from dipo.algo.closed_form import Grids
from dipo.graph.weight_layout import WeightLayout
from dipo.quant.spec import QParams

COARSE = tuple(1.12**step for step in range(-5, 3))
"""Factors on a scale that a search begins with."""
FINE = (0.96, 0.98, 1.02, 1.04)
"""Factors on the best of these."""
POWERS = (0.25, 0.5, 1.0, 2.0)
"""Factors on a scale that is a power of two."""
FEW_CODES = 8
"""Number of codes up to which every zero point is tried; else the neighbours of the present one."""
MOST_RESCALED = 1.25
"""A scale moves by at most this factor in one refit."""
SMALLEST = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True, eq=False)
class Entries:
    """Which weights share a scale and a zero point."""

    of_weight: torch.Tensor
    """Number of the entry of each weight, [B, D, O]."""
    parts: tuple[torch.Tensor, ...]
    """Columns that share their entries in every row: all, or those of a block."""
    count: int

    @staticmethod
    def of(qparams: QParams, layout: WeightLayout, device: torch.device) -> Entries:
        """Return the entries of a layer's weight, those of the scales in their order."""
        numbers = np.arange(qparams.scale.size, dtype=np.int64).reshape(qparams.scale.shape)
        spread, _ = dataclasses.replace(qparams, scale=numbers).broadcast_to(len(layout.shape))  # type: ignore[arg-type]
        whole = as_columns(np.ascontiguousarray(np.broadcast_to(spread, layout.shape)), layout, device)
        _, part_of = torch.unique(whole[0, :, 0], return_inverse=True)
        columns = tuple(torch.nonzero(part_of == part)[:, 0] for part in range(int(part_of.max()) + 1))
        return Entries(whole, columns, qparams.scale.size)

    def copies(self, number: int) -> Entries:
        """Return the entries of so many copies of the layer, each with scales of its own."""
        shifts = torch.arange(number, device=self.of_weight.device)[:, None, None, None] * self.count
        return Entries((self.of_weight + shifts).flatten(0, 1), self.parts, self.count * number)

    def summed(self, rows: torch.Tensor, part: torch.Tensor) -> torch.Tensor:
        """Return for each entry the sum over the rows that have it, from numbers of each row of a part, [B, O]."""
        total = torch.zeros(self.count, dtype=rows.dtype, device=rows.device)
        return total.index_add_(0, self.of_rows(part).flatten(), rows.flatten())

    def of_rows(self, part: torch.Tensor) -> torch.Tensor:
        """Return the entry of each row of a part, [B, O]."""
        return self.of_weight[:, part[0]]


@dataclass(frozen=True, eq=False)
class Scales:
    """Scale and zero point of each entry, and what they may be."""

    scale: torch.Tensor
    """Float64 numbers that float32 can hold, [entries]."""
    zero: torch.Tensor
    """Float64 [entries]."""
    qmin: int
    qmax: int
    free: bool
    """Whether the scale may be any number; a power of two otherwise."""
    moves: bool
    """Whether the zero point may be any code."""

    def grids(self, entries: Entries, kept: torch.Tensor | None) -> Grids:
        """Return the grid of every weight; those that are not kept, [B, D, O], have the level 0 alone."""
        zero = self.zero[entries.of_weight]
        low, high = self.qmin - zero, self.qmax - zero
        return Grids(
            self.scale[entries.of_weight], low if kept is None else low * kept, high if kept is None else high * kept
        )

    def copies(self, number: int) -> Scales:
        """Return the same for so many copies of the layer."""
        return dataclasses.replace(self, scale=self.scale.repeat(number), zero=self.zero.repeat(number))

    def copy(self, index: int, number: int) -> Scales:
        """Return those of one of so many copies."""
        scale, zero = (each.view(number, -1)[index] for each in (self.scale, self.zero))
        return dataclasses.replace(self, scale=scale, zero=zero)


def choose_scales(best: torch.Tensor, power: torch.Tensor, scales: Scales, entries: Entries) -> Scales:
    """Return the scales and zero points whose nearest weights have the least error, with each column counting its own.

    Where columns are rounded one after the other, what counts is what those after cannot make up for: for the j-th
    column R_jj^2, see `closed_form.round_columns`.

    Args:
        best: What is to be rounded, [B, D + 1, O].
        power: What the square of each column's error counts, [B, D + 1].
        scales: Where the search begins.
        entries: Which weights share a scale.
    """
    for part in entries.parts:
        own, of_rows = best[:, part].float(), entries.of_rows(part)
        counts = power[:, part, None].float()
        least = torch.full((entries.count,), torch.inf, device=best.device)
        mine = torch.zeros(entries.count, dtype=torch.bool, device=best.device).index_fill_(0, of_rows.flatten(), True)
        found = scales
        for coarse in (True, False):
            for scale, zero in _tried(found, coarse=coarse):
                step, low = scale[of_rows][:, None].float(), (scales.qmin - zero)[of_rows][:, None].float()
                high = low + (scales.qmax - scales.qmin)
                error = (own / step).round_().clamp_(low, high).mul_(step).sub_(own)
                total = entries.summed((error.square_() * counts).sum(1), part)
                better = mine & (total < least)
                least = torch.where(better, total, least)
                found = dataclasses.replace(
                    found,
                    scale=torch.where(better, scale, found.scale),
                    zero=torch.where(better, zero, found.zero),
                )
        scales = found
    return scales


def _tried(start: Scales, *, coarse: bool) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return the scales and zero points that a search tries."""
    if not coarse:
        return [(_held(start.scale * factor), start.zero) for factor in FINE] if start.free else []
    zeros = [start.zero]
    if start.moves and start.qmax - start.qmin < FEW_CODES:
        zeros = [torch.full_like(start.zero, code) for code in range(start.qmin, start.qmax + 1)]
    elif start.moves:
        zeros += [(start.zero + shift).clamp(start.qmin, start.qmax) for shift in (-1, 1)]
    return [(_held(start.scale * factor), zero) for zero in zeros for factor in (COARSE if start.free else POWERS)]


def refit_scales(
    best: torch.Tensor, weight: torch.Tensor, metric: torch.Tensor, scales: Scales, entries: Entries
) -> tuple[Scales, torch.Tensor]:
    """Return the scales with which given levels have the least error, one part of the rows after the other.

    For the part z of a row, e the error of all of it, the factor is 1 + (e H') z / (z H' z); the bias stays.

    Args:
        best: Where the error is zero, [B, D + 1, O].
        weight: Levels times scales, and biases, [B, D + 1, O].
        metric: H', [B, D + 1, D + 1].
        scales: The present scales; powers of two stay as they are.
        entries: Which weights share a scale.

    Returns:
        The scales, and the weights with them.
    """
    if not scales.free:
        return scales, weight
    weight = weight.clone()
    for part in entries.parts:
        own = weight[:, part]
        pull = (metric[:, part] @ (best - weight) * own).sum(1)
        power = (metric[:, part][:, :, part] @ own * own).sum(1)
        pull, power = entries.summed(pull, part), entries.summed(power, part)
        factor = torch.where(power > 0, 1 + pull / power.clamp_min(1e-300), 1.0).clamp(1 / MOST_RESCALED, MOST_RESCALED)
        scale = _held(scales.scale * factor)
        weight[:, part] = own * (scale / scales.scale)[entries.of_rows(part)][:, None]
        scales = dataclasses.replace(scales, scale=scale)
    return scales, weight


def as_columns(weight: np.ndarray, layout: WeightLayout, device: torch.device) -> torch.Tensor:
    """Return a weight as columns, [G, D, O]."""
    rows = layout.split(weight)
    return torch.tensor(rows.reshape(*rows.shape[:2], -1).transpose(0, 2, 1), device=device)


def _held(scale: torch.Tensor) -> torch.Tensor:
    """Return the nearest scales that float32 can hold."""
    return scale.float().clamp_min(SMALLEST).double()
