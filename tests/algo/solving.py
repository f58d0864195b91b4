"""Units solved one after the other by one worker, or by several in threads of this process."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import torch

from dipo.algo.activation_cache import Batch
from dipo.algo.bench import Bench
from dipo.algo.collectives import SingleWorker, add_in_order
from dipo.algo.network_pair import NetworkPair
from dipo.algo.steps.reconstruction import Reconstruction
from dipo.algo.steps.tune import Tune
from dipo.algo.unit_solver import UnitSolver
from dipo.cluster.sharding import shards_of
from dipo.data.samples import Samples
from dipo.export.targets import TARGETS
from dipo.graph.sample_axis import SampleAxes
from dipo.graph.units import find_units

CPU = torch.device("cpu")


@dataclass
class Meeting:
    """Where workers in threads exchange their parts."""

    barrier: threading.Barrier
    parts: dict[int, torch.Tensor] = field(default_factory=dict)

    def all_reduce_ordered(self, parts, *, owners):
        self.parts.update({number: part.clone() for number, part in parts.items()})
        self.barrier.wait(60)
        total = add_in_order([self.parts[number] for number in range(len(owners))]).clone()
        self.barrier.wait(60)
        return total


class AsAsked(Reconstruction):
    """Reconstruction by its options alone."""

    name = "as_asked"


@dataclass(frozen=True)
class CaseSamples:
    """A case's samples as a data set."""

    case: object

    def __len__(self):
        return len(self.case.samples)

    def read(self, start, stop):
        return Samples({name: each.numpy() for name, each in self.case.inputs(Batch(0, start, stop)).items()}, None)


def make_bench(case):
    """A worker's, with eager kernels."""
    return Bench(
        case.model,
        case.plan,
        SampleAxes(),
        TARGETS["ort"].spec,
        CaseSamples(case),
        CPU,
        threads=1,
        compile=False,
        progress=lambda _: None,
    )


def make_step(cfg, *, seed=0, phase=None):
    """Reconstruction by these options."""
    return AsAsked.configured(cfg, {}).for_phase(phase).seeded(seed)


def make_solver(case, step, *, granularity=None, shard=None, collectives=None, samples=None, held_out=()):
    """Stands in front of the first unit; and the units."""
    units = find_units(case.model, granularity=granularity or step.granularity, samples=samples)
    (only,) = shards_of(case.batches, workers=1, pieces=1, batch_size=step.batch_size, held_out=held_out)
    shard = shard or only
    pair = NetworkPair(
        case.model, plan=case.plan, units=units, quantized=case.quantized, batches=shard.batches, owners=shard.owners,
        collectives=collectives or SingleWorker(), device=CPU, samples=samples,
    )  # fmt: skip
    pair.read_samples(case.inputs, with_float=step.carries_float)
    bench = make_bench(case)
    return UnitSolver(
        step, pair, bench, pieces=shard.pieces, shard_ranks=shard.shard_ranks, held_out=shard.held_out
    ), units


@dataclass(frozen=True)
class Solved:
    """What became of a network."""

    results: list
    pair: NetworkPair


def solve_all(
    case, cfg, *, granularity="block", workers=1, pieces=1, seed=0, phase=None, freeze_rounding=False, warm=None,
    held_out=(),
):  # fmt: skip
    """All units in order; the first worker's results."""
    step = Tune.configured(cfg, {}).seeded(seed) if freeze_rounding else make_step(cfg, seed=seed, phase=phase)
    shards = shards_of(case.batches, workers=workers, pieces=pieces, batch_size=step.batch_size, held_out=held_out)
    meeting = Meeting(threading.Barrier(len(shards)))

    def work(shard):
        solver, units = make_solver(case, step, granularity=granularity, shard=shard, collectives=meeting)
        results = [solver.solve(unit, warm_start=warm and warm[unit.index]) for unit in units]
        return Solved(results, solver.pair)

    with ThreadPoolExecutor(len(shards)) as threads:
        first, *_ = threads.map(work, shards)
        return first
