"""Sharding of the samples over the workers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from dipo.algo.activation_cache import Batch
from dipo.algo.held_out import places
from dipo.algo.trainer import GradShard
from dipo.cluster.messages import Shard

ItemT = TypeVar("ItemT")


def even_shares(items: Sequence[ItemT], num_shares: int) -> list[list[ItemT]]:
    """Return contiguous shares of nearly equal length; the first ones are longer, the last ones may be empty."""
    return [list(np.array(items, dtype=object)[part]) for part in np.array_split(np.arange(len(items)), num_shares)]


def shards_of(
    batches: Sequence[Batch], *, workers: int, pieces: int, batch_size: int | None, held_out: Sequence[int] = ()
) -> list[Shard]:
    """Cut the samples into fixed gradient shards and assign them to the workers.

    Args:
        batches: All batches of the run.
        workers: Number of workers; with fewer gradient shards than workers the last ones get no shard.
        pieces: Number of gradient shards, if there are as many batches, and samples in a step.
        batch_size: Number of samples in an optimizer step over all gradient shards; None where nothing is trained.
        held_out: Indices of the samples that no optimizer step draws, rising; no gradient shard has these alone.

    Returns:
        One shard for each worker that takes part.
    """
    pieces = min(pieces, len(batches), batch_size or len(batches))
    while pieces > 1 and 0 in _num_fitted(even_shares(batches, pieces), held_out):
        pieces -= 1
    parts = even_shares(batches, pieces)
    sizes = _step_sizes(_num_fitted(parts, held_out), batch_size or pieces)
    holders = even_shares(range(pieces), min(workers, pieces))
    shard_ranks = [rank for rank, held in enumerate(holders) for _ in held]
    owners = [shard_ranks[piece] for piece, part in enumerate(parts) for _ in part]
    shards = []
    for held in holders:
        own, start = [], 0
        for piece in held:
            whole = _whole(parts[piece])
            stop, rows = start + len(whole), tuple(start + place for place in places(whole, held_out))
            own.append(GradShard(piece, start, stop, sizes[piece], rows))
            start = stop
        shards.append(Shard([batch for piece in held for batch in parts[piece]], owners, own, shard_ranks, held_out))
    return shards


def _whole(part: Sequence[Batch]) -> Batch:
    """Return batches that follow each other as a single one."""
    return Batch(part[0].index, part[0].start, part[-1].stop)


def _num_fitted(parts: Sequence[Sequence[Batch]], held_out: Sequence[int]) -> list[int]:
    """Return for each part the number of its samples that are not held out."""
    wholes = [_whole(part) for part in parts]
    return [len(whole) - len(places(whole, held_out)) for whole in wholes]


def _step_sizes(samples: Sequence[int], batch_size: int) -> list[int]:
    """Return each gradient shard's samples in a step.

    They are in proportion to the shards' samples, by largest remainders, one at least.
    """
    exact = np.array(samples) * batch_size / sum(samples)
    sizes = np.maximum(1, np.floor(exact).astype(int))
    while sizes.sum() < batch_size:
        sizes[np.argmax(exact - sizes)] += 1
    while sizes.sum() > batch_size:
        sizes[np.argmax(np.where(sizes > 1, sizes - exact, -np.inf))] -= 1
    return [int(size) for size in sizes]
