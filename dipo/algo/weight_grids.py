"""The scales and zero points of weights that are solved: which weights share them, and their fit to the codes.

Whatever shares a scale is one entry here: a row of the weight, all rows of a tensor, a block of a row, or the rows of
the same number in all groups. Each weight has the number of its entry.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dipo.algo.closed_form import Grids
from dipo.graph.weight_layout import WeightLayout
from dipo.quant.spec import QParams

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
    """Scale and zero point of each entry, and the limits of the codes."""

    scale: torch.Tensor
    """Float64 numbers that float32 can hold, [entries]."""
    zero: torch.Tensor
    """Float64 [entries]."""
    qmin: int
    qmax: int
    free: bool
    """Whether the scale may be any number; a power of two otherwise."""

    @staticmethod
    def of(qparams: QParams, device: torch.device) -> Scales:
        """Return the scales of a layer's weight."""
        return Scales(
            scale=torch.tensor(qparams.scale.reshape(-1), dtype=torch.float64, device=device),
            zero=torch.tensor(qparams.zero_point.reshape(-1), dtype=torch.float64, device=device),
            qmin=qparams.qmin,
            qmax=qparams.qmax,
            free=not qparams.power_of_two,
        )

    @staticmethod
    def joined(parts: Sequence[Scales]) -> Scales:
        """Return the scales of several copies of a layer, one behind the other."""
        scale, zero = torch.cat([each.scale for each in parts]), torch.cat([each.zero for each in parts])
        return dataclasses.replace(parts[0], scale=scale, zero=zero)

    def to_qparams(self, before: QParams) -> QParams:
        """Return the grids of a layer's weight, in the form that they had before."""
        scale, zero = (each.cpu().numpy().reshape(before.scale.shape) for each in (self.scale, self.zero))
        return dataclasses.replace(before, scale=scale.astype(np.float32), zero_point=zero.astype(np.int32))

    def grids(self, entries: Entries, kept: torch.Tensor | None) -> Grids:
        """Return the grid of every weight; those that are not kept, [B, D, O], have the level 0 alone."""
        zero = self.zero[entries.of_weight]
        low, high = self.qmin - zero, self.qmax - zero
        return Grids(
            self.scale[entries.of_weight], low if kept is None else low * kept, high if kept is None else high * kept
        )

    def copy(self, index: int, number: int) -> Scales:
        """Return those of one of so many copies."""
        scale, zero = (each.view(number, -1)[index] for each in (self.scale, self.zero))
        return dataclasses.replace(self, scale=scale, zero=zero)


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


def as_weight(columns: torch.Tensor, layout: WeightLayout) -> NDArray[np.float32]:
    """Return columns [G, D, O] in the shape of the weight: the inverse of `as_columns`."""
    rows = columns.transpose(1, 2).cpu().numpy().astype(np.float32)
    positions = math.prod(layout.shape[2:]) if layout.spatial else 1
    return layout.join(rows.reshape(*rows.shape[:2], positions, -1))


def as_columns(weight: NDArray[Any], layout: WeightLayout, device: torch.device) -> torch.Tensor:
    """Return a weight as columns, [G, D, O]."""
    rows = layout.split(weight)
    return torch.tensor(rows.reshape(*rows.shape[:2], -1).transpose(0, 2, 1), device=device)


def _held(scale: torch.Tensor) -> torch.Tensor:
    """Return the nearest scales that float32 can hold."""
    return scale.float().clamp_min(SMALLEST).double()
