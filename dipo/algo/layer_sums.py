"""Sums over what a layer reads in the quantized network and what it should give: H, C and the power of the target.

The target is what the layer gives in the float network; where its output is added to another value, that value's
error is taken off it, so that the sum comes near the float one.

Both are put on integer grids, the inputs on their own where they are quantized. Products and sums of integers are
exact in float64 below 2^53, so no sum depends on the order or on the number of workers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from dipo.algo.activation_cache import Rows
from dipo.algo.closed_form import Sums
from dipo.algo.held_out import places
from dipo.algo.integer_sums import IntegerSums, in_units
from dipo.algo.layer_values import IntegerGrid, LayerValues
from dipo.algo.network_pair import NetworkPair
from dipo.algo.pair_statistics import fitted_rows, held_out_rows
from dipo.graph.units import Unit

FLOAT_STEPS = 2.0**18
"""The grid of numbers that are not quantized: this many steps from zero to the largest."""
EXCHANGED_ELEMENTS = 1 << 21
"""Elements that are added up over the workers at a time."""


@dataclass(frozen=True, eq=False)
class SplitSums:
    """The sums over the samples that a layer is fitted to, and over the held-out ones."""

    fitted: Sums
    held_out: Sums | None

    def without_bias(self) -> SplitSums:
        """Return the sums of a layer without a bias."""
        return SplitSums(self.fitted.without_bias(), None if self.held_out is None else self.held_out.without_bias())


@dataclass(frozen=True)
class SomeSamples:
    """Some samples of a batch."""

    batch: int
    """Index of the batch."""
    rows: Rows
    """Where the captures hold them."""
    number: int
    held_out: tuple[int, ...]
    """Which of them are held out: places among them; all, none, or some of those that lie one behind the other."""


@dataclass(frozen=True, eq=False)
class _Part:
    """Some samples of a batch, and the positions of the layer that are looked at."""

    rows: Rows
    chosen: torch.Tensor
    """Those of the fitted samples, then those of the held-out ones."""
    num_fitted: int
    target: torch.Tensor
    """What the layer should give there, float32 [G, chosen, O]."""


@dataclass(frozen=True)
class Sampling:
    """Which positions of a layer are looked at."""

    positions: int
    """Number of positions in all samples together, about."""
    num_samples: int
    """Number of samples of all workers."""
    held_out: Sequence[int] = ()
    """Indices of the samples that nothing is fitted to, rising."""
    seed: int = 0
    """Seed of the choice."""


def layer_sums(pair: NetworkPair, unit: Unit, name: str, sampling: Sampling) -> SplitSums | None:
    """Return the sums of a layer over all workers' samples; every worker calls at the same time.

    Args:
        pair: Both networks, in front of the unit.
        unit: The unit.
        name: The layer, one of the unit's.
        sampling: Which positions are looked at.

    Returns:
        The sums; None where values are not finite, or the weight of a MatMul is broadcast over its input.
    """
    values = LayerValues.of(pair, unit, name)
    parts, largest, fits = [], [0.0, 0.0], True
    for samples in samples_of(pair, sampling.held_out, apart=not pair.samples.of(values.source).is_first):
        x = values.input(pair.fp, samples.rows, quantized=False)
        fits = fits and values.reader.takes(x)
        if not fits:
            break
        chosen, num_fitted = chosen_positions(
            values.reader.count(x), samples, sampling, seed=(sampling.seed, unit.index)
        )
        chosen = chosen.to(pair.device)
        target = values.target(x, samples.rows, chosen)
        reads = values.input(pair.q, samples.rows, quantized=True) if values.grid is None else target
        largest = [max(old, reach_of(new)) for old, new in zip(largest, (target, reads), strict=True)]
        parts.append(_Part(samples.rows, chosen, num_fitted, target))
    high = largest_of_all(pair, [*largest, float(not fits)])
    if high[2] > 0 or not np.isfinite(high).all():
        return None
    return _sums(
        pair, values, parts, largest_target=high[0], largest_input=high[1], has_held_out=bool(sampling.held_out)
    )


def _sums(
    pair: NetworkPair, values: LayerValues, parts: Sequence[_Part], *, largest_target: float, largest_input: float,
    has_held_out: bool,
) -> SplitSums:  # fmt: skip
    """Add up the positions of all parts, on all workers."""
    groups, width, outputs = values.weight.shape
    target_unit = unit_of(largest_target, FLOAT_STEPS)
    grid = values.grid or IntegerGrid(unit_of(largest_input, FLOAT_STEPS), -FLOAT_STEPS, FLOAT_STEPS)
    totals = [
        IntegerSums(groups, width, outputs, low=grid.low, high=grid.high, device=pair.device)
        for _ in range(1 + has_held_out)
    ]
    for part in parts:
        x = values.reader.inputs(values.input(pair.q, part.rows, quantized=True), part.chosen)
        x, t = x.div_(grid.unit).round_(), part.target.double().div_(target_unit).round_()
        cut = part.num_fitted
        for total, own in zip(totals, ((x[:, :cut], t[:, :cut]), (x[:, cut:], t[:, cut:])), strict=False):
            total.add(*own)
    sums = [tuple(exchanged(pair, each) for each in total.total()) for total in totals]
    found = [in_units(*each, unit=grid.unit, target_unit=target_unit) for each in sums]
    return SplitSums(found[0], found[1] if has_held_out else None)


def samples_of(pair: NetworkPair, held_out: Sequence[int], *, apart: bool) -> Iterator[SomeSamples]:
    """Yield this worker's samples, batch by batch; with `apart` the held-out ones by themselves."""
    if not apart:
        for batch, rows in zip(pair.batches, pair.rows, strict=True):
            yield SomeSamples(batch.index, rows, len(batch), tuple(places(batch, held_out)))
        return
    for found, held in ((fitted_rows(pair, held_out), False), (held_out_rows(pair, held_out), True)):
        for batch, some in found:
            number = some.stop - some.start if isinstance(some, slice) else len(some)
            yield SomeSamples(batch.index, some, number, tuple(range(number)) if held else ())


def chosen_positions(
    count: int, samples: SomeSamples, sampling: Sampling, *, seed: tuple[int, ...]
) -> tuple[torch.Tensor, int]:
    """Return positions of the fitted samples, then of the held-out ones; and the number of those of the fitted.

    Of each of as many equal stretches of a kind's positions as are wanted there is one, rising: those of a sample lie
    together, so each sample gives as many.
    """
    each = count // samples.number
    held = np.array(samples.held_out, np.int64)
    found: list[NDArray[np.int64]] = []
    for own in (np.setdiff1d(np.arange(samples.number), held), held):
        total = count if len(own) == samples.number else each * len(own)
        wanted = -(-sampling.positions * len(own) // sampling.num_samples)
        index = np.arange(total)
        if total > wanted:
            cuts = np.arange(wanted + 1) * total // wanted
            drawn = np.random.default_rng((*seed, samples.batch, len(found)))
            index = drawn.integers(cuts[:-1], cuts[1:])
        whole = len(own) in (0, samples.number)
        found.append(index if whole else own[index // each] * each + index % each)
    return torch.from_numpy(np.concatenate(found)), len(found[0])


def reach_of(value: torch.Tensor) -> float:
    """Return the largest magnitude, infinite where a number is none."""
    largest = float(value.abs().max()) if value.numel() else 0.0
    return math.inf if math.isnan(largest) else largest


def unit_of(largest: float, steps: float) -> float:
    """Return the power of two that is the step of a grid."""
    return 2.0 ** math.ceil(math.log2(largest / steps)) if largest > 0 else 1.0


def largest_of_all(pair: NetworkPair, mine: Sequence[float]) -> list[float]:
    """Return the largest of all workers' numbers."""
    everyone = torch.zeros(len(mine), max(pair.owners) + 1, dtype=torch.float64, device=pair.device)
    everyone[:, _rank(pair)] = torch.tensor(mine, dtype=torch.float64)
    return [float(number) for number in exchanged(pair, everyone).amax(1)]


def _rank(pair: NetworkPair) -> int:
    return pair.owners[pair.batches[0].index]


def exchanged(pair: NetworkPair, mine: torch.Tensor) -> torch.Tensor:
    """Return the sum of a tensor of each worker, in pieces: copies of a large one need not stand side by side."""
    numbers, owners = mine.reshape(-1).clone(), list(range(max(pair.owners) + 1))
    for start in range(0, len(numbers), EXCHANGED_ELEMENTS):
        piece = numbers[start : start + EXCHANGED_ELEMENTS]
        piece.copy_(pair.collectives.all_reduce_ordered({_rank(pair): piece.clone()}, owners=owners))
    return numbers.view(mine.shape)
