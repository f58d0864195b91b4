"""Sums of products of integers, exact whatever their order."""

from __future__ import annotations

import torch

from dipo.algo.closed_form import Sums

EXACT32, EXACT64 = 2.0**24, 2.0**53
"""Integers up to these are float32 and float64 numbers."""
LEAST_CHUNK = 128
"""Number of rows from which on products in float32 are worth while."""
PENDING_ELEMENTS = 1 << 20
"""Elements that are gathered before they are multiplied: a matrix is added up in few large pieces."""
PRODUCT_BLOCK = 128
"""Rows of a matrix of sums that are computed together."""


class IntegerSums:
    """Sums over rows: x x^T, x t^T and t^2, with a one appended to x; each group has its own."""

    def __init__(self, groups: int, width: int, outputs: int, *, low: float, high: float, device: torch.device) -> None:
        """Begin with nothing.

        Args:
            groups: Number of groups G.
            width: Length D of x.
            outputs: Length O of t.
            low: No integer of x is below it.
            high: None is above it.
            device: Device of the sums.
        """
        shapes = (groups, width + 1, width + 1), (groups, width + 1, outputs), (groups, outputs)
        self.gram, self.cross, self.power = (torch.zeros(each, dtype=torch.float64, device=device) for each in shapes)
        # Numbers about zero are smaller, so more products of them add up exactly in float32.
        self.middle = float((low + high) // 2)
        largest = max(1.0, high - self.middle, self.middle - low)
        self.chunk = int(EXACT32 / largest**2)
        self._pending: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._elements = 0

    def add(self, x: torch.Tensor, t: torch.Tensor) -> None:
        """Add rows.

        Args:
            x: Integers, float32 [G, n, D].
            t: Integers, float64 [G, n, O].
        """
        if not x.shape[1]:
            return
        self._pending.append((x, t))
        self._elements += x.numel()
        if self._elements >= PENDING_ELEMENTS:
            self._flush()

    def total(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return H [G, D + 1, D + 1], C [G, D + 1, O] and the power of t [G, O], float64, of all rows."""
        self._flush()
        gram, sums = self.gram.clone(), self.gram[:, -1, :-1] * self.middle
        gram[:, :-1, :-1] += sums[:, None] + sums[:, :, None] - self.gram[:, -1:, -1:] * self.middle**2
        return gram, self.cross, self.power

    def _flush(self) -> None:
        if not self._pending:
            return
        x, t = (torch.cat(parts, 1) for parts in zip(*self._pending, strict=True))
        self._pending, self._elements = [], 0
        doubled = x.double()
        sums = doubled.sum(1)
        self.gram[:, -1, :-1] += sums
        self.gram[:, :-1, -1] += sums
        self.gram[:, -1, -1] += x.shape[1]
        self.cross[:, :-1] += doubled.transpose(1, 2) @ t
        self.cross[:, -1] += t.sum(1)
        self.power += t.square().sum(1)
        centred = (doubled if self.chunk < LEAST_CHUNK else x).sub_(self.middle)
        chunk = centred.shape[1] if self.chunk < LEAST_CHUNK else self.chunk
        for start in range(0, centred.shape[1], chunk):
            _add_products(self.gram[:, :-1, :-1], centred[:, start : start + chunk])


def in_units(gram: torch.Tensor, cross: torch.Tensor, power: torch.Tensor, *, unit: float, target_unit: float) -> Sums:
    """Return sums of integers as those of the numbers that they stand for, x = integer * unit."""
    gram, cross = gram.clone(), cross * target_unit
    count = float(gram[0, -1, -1])
    gram[:, :-1] *= unit
    gram[:, :, :-1] *= unit
    cross[:, :-1] *= unit
    return Sums(count, gram, cross, power * target_unit**2)


def _add_products(total: torch.Tensor, x: torch.Tensor) -> None:
    """Add x^T x to a symmetric matrix, in place; of the blocks beside the diagonal each pair is computed once."""
    width, turned = x.shape[2], x.transpose(1, 2)
    for start in range(0, width, PRODUCT_BLOCK):
        end = min(width, start + PRODUCT_BLOCK)
        part = (turned[:, start:end] @ x[:, :, start:]).double()
        total[:, start:end, start:] += part
        total[:, end:, start:end] += part[:, :, end - start :].transpose(1, 2)
