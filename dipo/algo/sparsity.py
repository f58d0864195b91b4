"""Sparsity: part of a layer's weights become zero, and the others compensate for them.

The error of a layer's outputs is the sum over rows of (w - w') H (w - w')^T, with H the Gram matrix of what the layer
reads. Which weights are pruned, and what the rest becomes, follows Optimal Brain Surgeon in the order of SparseGPT
(arXiv:2301.00774) and, within a run of a pattern, of OBC (arXiv:2208.11580).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from dipo.algo.hessian import hessian
from dipo.algo.network_pair import NetworkPair
from dipo.algo.reference_weights import rounded, target_of
from dipo.algo.steps.sparsify import UNSTRUCTURED, SparsifyOptions
from dipo.graph.plan import QuantizedLayer
from dipo.graph.units import Unit
from dipo.graph.weight_layout import WeightLayout
from dipo.recipe import CalibConfig

DAMPING = 0.01
"""Damping of a Gram matrix, as a part of its mean diagonal: the estimate from few samples is noisy."""
BLOCK = 128
"""Number of columns whose mask is chosen at once, where no pattern sets it."""
FIT_STEPS, FIT_TOLERANCE = 200, 1e-6
"""Conjugate gradients that fit the remaining weights: most steps, and relative residual to stop at."""


@dataclass(frozen=True)
class Pattern:
    """A sparsity pattern: which weights may be pruned together."""

    rate: float
    """Fraction of all weights that is pruned, where there are no runs."""
    kept: int | None = None
    """Number of weights kept in each run; None: there are no runs."""
    run: int | None = None
    """Length of a run: consecutive weights along the input channels."""

    @staticmethod
    def of(cfg: SparsifyOptions) -> Pattern:
        """Return the pattern that the options ask for."""
        if cfg.sparsity_pattern == UNSTRUCTURED:
            return Pattern(cfg.sparsity)
        kept, run = map(int, cfg.sparsity_pattern.split(":"))
        return Pattern(cfg.sparsity, kept, run)

    def runs(self, positions: int, inputs: int) -> Iterator[tuple[int, int, int]]:
        """Yield first column, end, and number of weights kept of each run, columns in the order of `WeightLayout`.

        The remaining inputs after the last whole run keep their share, rounded up.
        """
        assert self.kept is not None and self.run is not None
        for position in range(positions):
            for start in range(0, inputs, self.run):
                length = min(self.run, inputs - start)
                first = position * inputs + start
                yield first, first + length, -(-length * self.kept // self.run)


def pruned_layers(
    pair: NetworkPair, unit: Unit, *, cfg: SparsifyOptions, calib: CalibConfig
) -> dict[str, QuantizedLayer]:
    """Prune the unit's layer, whose inputs come from the quantized layers before it, and round it.

    Args:
        pair: Both networks; the float one need not be carried along.
        unit: The next unit, of granularity `layer`.
        cfg: Which weights are pruned, and how many.
        calib: How the grid of the new weights is chosen.

    Returns:
        The pruned layer by name, its `target` the float weights, zero where pruned; nothing for a unit that has none.

    Raises:
        UserError: A MatMul broadcasts the batch dimensions of its weight.
    """
    name = unit.only_layer
    if name is None or name not in pair.layers:
        return {}
    node = pair.nodes[name]
    weight = target_of(pair, name)
    layout = WeightLayout.of(node, weight.shape)
    pattern = Pattern.of(cfg)
    rows = np.array(layout.split(weight))
    if cfg.sparsity_mask == "error":
        pruned = prune_by_error(rows, hessian(pair, node), pattern)
    else:
        pruned = np.where(smallest(rows, pattern), np.float32(0), rows)
    return {name: rounded(layout.join(pruned), pair.layers[name].bias, layer=pair.plan.layers[name], calib=calib)}


def smallest(rows: NDArray[np.float32], pattern: Pattern) -> NDArray[np.bool_]:
    """Return the mask that prunes the smallest magnitudes; of equal ones the first.

    Args:
        rows: [groups, rows, positions, inputs].
        pattern: Which weights may be pruned together.

    Returns:
        True where a weight goes; shaped like `rows`.
    """
    groups, num_rows, positions, inputs = rows.shape
    sizes = np.abs(rows).reshape(groups, num_rows, -1)
    gone = np.zeros(sizes.shape, bool)
    if pattern.run is None:
        order = np.argsort(sizes, axis=None, kind="stable")
        gone.flat[order[: round(pattern.rate * sizes.size)]] = True
    else:
        for start, end, kept in pattern.runs(positions, inputs):
            order = np.argsort(sizes[..., start:end], axis=-1, kind="stable")
            np.put_along_axis(gone[..., start:end], order[..., : end - start - kept], values=True, axis=-1)
    return gone.reshape(rows.shape)


def prune_by_error(rows: NDArray[np.float32], hessian_matrix: torch.Tensor, pattern: Pattern) -> NDArray[np.float32]:
    """Prune the weights that cost least when the others compensate for them, and fit those.

    Minimises the sum over rows of (w - w') H' (w - w')^T, H' = H + damping. The mask is chosen from the first to the
    last column (SparseGPT, algorithm 1): the cost of a removal, and the change of the columns after it, are read off
    the Cholesky factor of H'^-1. Then all the remaining weights solve the normal equations of their row.

    Args:
        rows: [groups, rows, positions, inputs].
        hessian_matrix: H, float64 [groups, D, D].
        pattern: Which weights may be pruned together.

    Returns:
        The new weights, exactly zero where pruned; shaped like `rows`.
    """
    groups, num_rows, positions, inputs = rows.shape
    weight = torch.from_numpy(rows.reshape(groups, num_rows, -1)).to(hessian_matrix.device, torch.float64)
    damped = _damped(hessian_matrix)
    factor = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(damped)), upper=True)
    if pattern.run is None:
        gone, begun = _sweep_blocks(weight.clone(), factor, pattern.rate)
    else:
        gone, begun = _sweep_runs(weight.clone(), factor, list(pattern.runs(positions, inputs)))
    fitted = _fit(weight, begun, ~gone, damped)
    return np.asarray(fitted.to(torch.float32).cpu().numpy()).reshape(rows.shape)


def _damped(hessian_matrix: torch.Tensor) -> torch.Tensor:
    """Return H with damping on its diagonal; an input that is always zero then costs next to nothing."""
    means = hessian_matrix.diagonal(dim1=1, dim2=2).mean(1)
    # A group that reads nothing but zeros is the first to be pruned.
    floor = float(means.max()) * 1e-6 or 1.0
    extra = (DAMPING * means).clamp_min(floor)
    return hessian_matrix + torch.diag_embed(extra[:, None].expand(-1, hessian_matrix.shape[1]))


def _sweep_runs(
    weight: torch.Tensor, factor: torch.Tensor, runs: list[tuple[int, int, int]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mask of a pattern with runs, True where a weight is pruned, and the weights after the sweep."""
    gone = torch.zeros_like(weight, dtype=torch.bool)
    for start, end, kept in runs:
        gone[..., start:end] = _cheapest(weight[..., start:end], factor[:, start:end, start:end], kept)
        _eliminate(weight, factor, gone, start, end)
    return gone, weight


def _sweep_blocks(weight: torch.Tensor, factor: torch.Tensor, rate: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the same as `_sweep_runs` without runs: in each block of columns the cheapest weights of all rows go."""
    gone = torch.zeros_like(weight, dtype=torch.bool)
    per_column, width, done = weight.shape[0] * weight.shape[1], weight.shape[2], 0
    for start in range(0, width, BLOCK):
        end = min(width, start + BLOCK)
        costs = weight[..., start:end] / factor.diagonal(dim1=1, dim2=2)[:, None, start:end]
        wanted = round(rate * per_column * end)
        order = torch.argsort(costs.square().flatten(), stable=True)
        chosen = torch.zeros_like(costs, dtype=torch.bool).flatten()
        chosen[order[: wanted - done]] = True
        gone[..., start:end] = chosen.view(costs.shape)
        _eliminate(weight, factor, gone, start, end)
        done = wanted
    return gone, weight


def _cheapest(weight: torch.Tensor, factor: torch.Tensor, kept: int) -> torch.Tensor:
    """Return the mask of a run: one after the other the weight with least cost, w^2 / [H^-1]_jj (OBC, eq. 3).

    Args:
        weight: [groups, rows, run], compensated for the columns before.
        factor: The run's part of the Cholesky factor, [groups, run, run].
        kept: Number of weights that stay.
    """
    length = weight.shape[2]
    # U^T U of the part is the part of the inverse for the columns from here on.
    inverse = (factor.transpose(1, 2) @ factor)[:, None].repeat(1, weight.shape[1], 1, 1)
    weight, gone = weight.clone(), torch.zeros_like(weight, dtype=torch.bool)
    for _ in range(length - kept):
        diagonal = inverse.diagonal(dim1=2, dim2=3)
        costs = (weight.square() / diagonal.masked_fill(gone, 1)).masked_fill(gone, torch.inf)
        chosen = costs.argmin(-1, keepdim=True)
        pivot = diagonal.gather(-1, chosen)
        column = inverse.gather(-1, chosen[..., None].expand(-1, -1, length, 1))[..., 0]
        weight = weight - weight.gather(-1, chosen) / pivot * column
        inverse = inverse - column[..., :, None] * column[..., None, :] / pivot[..., None]
        gone.scatter_(-1, chosen, value=True)
    return gone


def _eliminate(weight: torch.Tensor, factor: torch.Tensor, gone: torch.Tensor, start: int, end: int) -> None:
    """Set pruned weights of some columns to zero and compensate with the columns after. Changes `weight`."""
    errors = torch.zeros_like(weight[..., start:end])
    for column in range(start, end):
        errors[..., column - start] = torch.where(
            gone[..., column], weight[..., column] / factor[:, None, column, column], 0.0
        )
        part = factor[:, None, column, column:end]
        weight[..., column:end] -= errors[..., column - start, None] * part
        weight[..., column].masked_fill_(gone[..., column], 0)
    weight[..., end:] -= errors @ factor[:, start:end, end:]


def _fit(weight: torch.Tensor, begun: torch.Tensor, kept: torch.Tensor, damped: torch.Tensor) -> torch.Tensor:
    """Solve every row's normal equations for the remaining weights, by preconditioned conjugate gradients.

    Args:
        weight: W, [groups, rows, D].
        begun: Start of the iteration.
        kept: True where a weight remains.
        damped: H', [groups, D, D].

    Returns:
        W' with (W - W') H' = 0 at the kept weights, 0 elsewhere.
    """
    diagonal = damped.diagonal(dim1=1, dim2=2)[:, None]
    solution = torch.where(kept, begun, 0.0)
    residual = torch.where(kept, (weight - solution) @ damped, 0.0)
    limit = FIT_TOLERANCE * (weight @ damped).norm(dim=-1)
    direction = residual / diagonal
    power = (residual * direction).sum(-1, keepdim=True)
    for _ in range(FIT_STEPS):
        if bool((residual.norm(dim=-1) <= limit).all()):
            break
        through = torch.where(kept, direction @ damped, 0.0)
        curvature = (direction * through).sum(-1, keepdim=True)
        # A row that has arrived has no direction left.
        step = torch.where(curvature > 0, power / curvature, 0.0)
        solution = solution + step * direction
        residual = residual - step * through
        scaled = residual / diagonal
        after = (residual * scaled).sum(-1, keepdim=True)
        direction = scaled + torch.where(power > 0, after / power, 0.0) * direction
        power = after
    return solution
