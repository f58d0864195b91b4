"""A layer's quantized weights in closed form, from sums over what it reads and what it should give.

For a layer with weights w (one row for each output channel) that reads q in the quantized network and should give t,
both over n positions of the samples, with a one appended to q so that the bias is a weight,

    H = sum q q^T        C = sum t q^T        error of a row w = w H w^T - 2 w c^T + sum t^2

and everything follows from H and C:

  least_squares       the weights that repeat t best, drawn towards the float ones
                      (the asymmetric target of GPTAQ, arXiv:2504.02692)
  round_columns       columns are rounded one after the other, and those after make up for the error
                      (GPTQ, arXiv:2210.17323, as Babai's nearest plane, arXiv:2507.18553)
  descend             then one code at a time moves to where the error is least (QuantEase, arXiv:2309.01885)

All matrices stand in batches, [B, ...] in float64: the groups of a layer, for each strength of the damping. Weights
stand as columns, [B, D + 1, O], with the bias in the last row, so that an input's weights lie together.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch

BLOCK = 64
"""Number of columns whose effect on those after is applied at once."""
FLOOR = 1e-9
"""Least damping as a part of the mean of H's diagonal over all groups: an input that is always zero has none there."""


@dataclass(frozen=True, eq=False)
class Sums:
    """H, C and sum t^2 over a number of positions."""

    count: float
    """Number of positions."""
    gram: torch.Tensor
    """H, float64 [G, D + 1, D + 1]; the last row and column are those of the constant one."""
    cross: torch.Tensor
    """C, float64 [G, D + 1, O]."""
    power: torch.Tensor
    """Sum of t^2, float64 [G, O]."""

    def without_bias(self) -> Sums:
        """Return the sums of a layer without a bias: nothing has to do with the constant one."""
        gram, cross = self.gram.clone(), self.cross.clone()
        gram[:, -1, :-1], gram[:, :-1, -1], gram[:, -1, -1], cross[:, -1] = 0, 0, 1, 0
        return dataclasses.replace(self, gram=gram, cross=cross)

    def error(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the sum of the squared errors of each output channel, [..., G, O], for weights [..., G, D + 1, O]."""
        return (weight * (self.gram @ weight - 2 * self.cross)).sum(-2) + self.power


@dataclass(frozen=True, eq=False)
class Grids:
    """The grids of weights [B, D, O]: weight = level * scale, with the level an integer between two limits."""

    scale: torch.Tensor
    """Float64 numbers that float32 can hold."""
    low: torch.Tensor
    """Least level; 0 where a weight is pruned."""
    high: torch.Tensor
    """Largest level; 0 where a weight is pruned."""

    def levels(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the nearest levels."""
        return (weight / self.scale).round_().clamp_(self.low, self.high)

    def nearest(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the nearest weights."""
        return self.levels(weight).mul_(self.scale)

    def picked(self, order: torch.Tensor) -> Grids:
        """Return the grids with rows in another order, [B, D]."""
        return Grids(*(picked(each, order) for each in (self.scale, self.low, self.high)))


def damped(gram: torch.Tensor, damping: torch.Tensor) -> torch.Tensor:
    """Return H with damping on the diagonal of the weights, next to none on that of the bias.

    Args:
        gram: H, [B, D + 1, D + 1].
        damping: Parts of the mean of the diagonal, [B].
    """
    means = gram.diagonal(dim1=1, dim2=2)[:, :-1].mean(1)
    floor = float(means.mean()) * FLOOR or 1.0
    extra = (damping * means).clamp_min(floor)[:, None].expand(-1, gram.shape[1]).clone()
    extra[:, -1] = gram[:, -1, -1] * FLOOR
    return gram + torch.diag_embed(extra)


def least_squares(weight: torch.Tensor, sums: Sums, metric: torch.Tensor) -> torch.Tensor:
    """Return W + (C - W H) H'^-1, the weights that minimise the error plus the damped distance from W.

    Args:
        weight: W, [G, D + 1, O].
        sums: H and C.
        metric: H' = H + damping, [K * G, D + 1, D + 1], of K dampings.

    Returns:
        [K * G, D + 1, O].
    """
    copies = metric.shape[0] // len(weight)
    gap = (sums.cross - sums.gram @ weight).repeat(copies, 1, 1)
    return weight.repeat(copies, 1, 1) + torch.cholesky_solve(gap, torch.linalg.cholesky(metric))


def round_columns(best: torch.Tensor, metric: torch.Tensor, grids: Grids, *, act_order: bool = False) -> torch.Tensor:
    """Round columns one after the other; those that are still free make up for the error of each.

    With H' = R R^T, R upper triangular, the error of a row is |e R|^2 for e = best - weight. The k-th component of e R
    is e_k R_kk plus what the columns before have left, so each column is rounded to where that is least: this is
    GPTQ, whose factor of the inverse is R^-1. The bias comes last and takes the rest as it is.

    Args:
        best: What is to be rounded, [B, D + 1, O].
        metric: H', [B, D + 1, D + 1].
        grids: Grids of the weights.
        act_order: Begin with the inputs that have most power, as GPTQ's option of this name does.

    Returns:
        The weights and the bias, [B, D + 1, O].
    """
    if act_order:
        power = metric.diagonal(dim1=1, dim2=2)[:, :-1]
        order = torch.argsort(power, dim=1, descending=True, stable=True)
        whole = torch.cat([order, torch.full_like(order[:, :1], order.shape[1])], 1)
        turned = picked(picked(metric, whole).transpose(1, 2), whole)
        rounded = round_columns(picked(best, whole), turned, grids.picked(order))
        return picked(rounded, torch.argsort(whole, dim=1))
    factor = upper_factor(metric)
    factor = factor / factor.diagonal(dim1=1, dim2=2)[:, None]
    error, width = torch.zeros_like(best), best.shape[1] - 1
    for start in range(0, width, BLOCK):
        end = min(width, start + BLOCK)
        wanted = best[:, start:end] + factor[:, :start, start:end].transpose(1, 2) @ error[:, :start]
        for column in range(start, end):
            scale = grids.scale[:, column]
            level = (wanted[:, column - start] / scale).round_().clamp_(grids.low[:, column], grids.high[:, column])
            left = torch.addcmul(best[:, column], level, scale, value=-1, out=error[:, column])
            wanted[:, column - start + 1 :] += factor[:, column, column + 1 : end, None] * left[:, None]
    error[:, width:] = -(factor[:, :width, width:].transpose(1, 2) @ error[:, :width])
    return best - error


def descend(
    best: torch.Tensor, start: torch.Tensor, metric: torch.Tensor, grids: Grids, *, sweeps: int
) -> tuple[torch.Tensor, bool]:
    """Move one weight after the other to the grid's point of least error, cyclically; the bias after each sweep.

    With e = best - weight and all other weights held, a row's error e H' e^T is least where weight j is
    weight_j + (e H')_j / H'_jj.

    Args:
        best: Where the error is zero, [B, D + 1, O].
        start: Weights on their grids, and biases, [B, D + 1, O].
        metric: H', [B, D + 1, D + 1].
        grids: Grids of the weights.
        sweeps: Number of times that every weight is looked at, at most.

    Returns:
        The weights and the bias, [B, D + 1, O]; and whether no single change of a code makes any row better.
    """
    error, width, at_rest = best - start, best.shape[1] - 1, False
    pull = metric / metric.diagonal(dim1=1, dim2=2)[:, :, None]
    for _ in range(sweeps):
        moved = torch.zeros((), dtype=best.dtype, device=best.device)
        for first in range(0, width, BLOCK):
            end = min(width, first + BLOCK)
            gradient = pull[:, first:end] @ error
            within = metric[:, first:end, first:end] / metric.diagonal(dim1=1, dim2=2)[:, first:end, None]
            before = error[:, first:end].clone()
            for column in range(first, end):
                scale = grids.scale[:, column]
                wanted = best[:, column] - error[:, column] + gradient[:, column - first]
                level = (wanted / scale).round_().clamp_(grids.low[:, column], grids.high[:, column])
                new = torch.addcmul(best[:, column], level, scale, value=-1)
                step = new - error[:, column]
                gradient[:, column - first + 1 :] += (
                    within[:, column - first + 1 :, column - first, None] * step[:, None]
                )
                error[:, column] = new
            moved = torch.maximum(moved, (error[:, first:end] - before).abs().max())
        error[:, width:] = -(pull[:, width:, :width] @ error[:, :width])
        if float(moved) == 0:
            at_rest = True
            break
    return best - error, at_rest


def picked(rows: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """Return the rows [B, D, N] in another order, [B, D]."""
    return torch.take_along_dim(rows, order[:, :, None], 1)


def upper_factor(metric: torch.Tensor) -> torch.Tensor:
    """Return the upper triangular R with H' = R R^T."""
    lower: torch.Tensor = torch.linalg.cholesky(metric.flip(1, 2))
    return lower.flip(1, 2)
