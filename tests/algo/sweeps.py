"""Sweeps by one worker, or by several in threads of this process."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import torch

from dipo.algo.exchange import add_in_order
from dipo.algo.pair import Pair
from dipo.algo.reconstruct import Phase
from dipo.algo.sweep import Sweep, Training
from dipo.cluster.layout import shards_of
from dipo.graph.units import find_units
from dipo.quant import kernels

CPU = torch.device("cpu")


@dataclass
class Meeting:
    """Where workers in threads exchange their parts."""

    barrier: threading.Barrier
    parts: dict[int, torch.Tensor] = field(default_factory=dict)

    def ordered_sum(self, parts, *, owners):
        self.parts.update({number: part.clone() for number, part in parts.items()})
        self.barrier.wait(60)
        total = add_in_order([self.parts[number] for number in range(len(owners))]).clone()
        self.barrier.wait(60)
        return total


@dataclass(frozen=True)
class Swept:
    """What a sweep came to."""

    results: list
    pair: Pair


def sweep(case, cfg, *, granularity="block", workers=1, pieces=1, seed=0, phase=None, tunes=False, begun=None):
    """All units in order; the first worker's results."""
    shards = shards_of(case.batches, workers=workers, pieces=pieces, batch_size=cfg.batch_size)
    meeting = Meeting(threading.Barrier(len(shards)))
    units = find_units(case.model, granularity=granularity)
    phase = phase or Phase(0, cfg.tune_iters if tunes else cfg.iters)

    def work(shard):
        pair = Pair(
            case.model, plan=case.plan, units=units, quantized=case.quantized, batches=shard.batches,
            owners=shard.owners, exchange=meeting, device=CPU,
        )  # fmt: skip
        pair.read_samples(case.inputs, with_float=True)
        own = Sweep(pair, case.inputs)
        how = Training(
            cfg, phase, cfg.correct_bias and not tunes, shard.pieces, shard.piece_owners, seed, kernels.eager(),
            lambda _: None, tunes,
        )  # fmt: skip
        results = [own.solve(unit, how, begun=begun and begun[unit.index]) for unit in units]
        return Swept(results, pair)

    with ThreadPoolExecutor(len(shards)) as threads:
        first, *_ = threads.map(work, shards)
        return first
