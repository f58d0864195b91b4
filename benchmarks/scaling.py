"""How reconstruction gets faster with workers: measured on two, computed for up to 64.

    python benchmarks/scaling.py measured --runs 3 -- model.path=... data.path=... +algo=qdrop precision=w4a4
    python benchmarks/scaling.py simulated -- model.path=... data=cifar10 data.path=...

`measured` runs whole jobs of the parallel schedule with one and two Ray workers in turns and reads their reports.

`simulated` measures what each unit takes of one worker with one thread, by the calls that a job makes of its workers,
and computes from that how long a job of `algo.iters` steps and `--samples` samples takes on W workers. It does so for
the network of the options, if there are any, and for the two of `networks.py`. `+algo=qdrop precision=w4a4` is set. The
model, all of it from measured figures:

- A unit takes a constant, a part for each sample (targets, captures, correction of biases), and its steps. Time per
  step is the difference of a longer and a shorter training over the difference of their steps, for batches of
  `algo.batch_size` samples, 1/4 and 1/16 of them; straight lines between. What does not depend on the samples (the
  parameters' update) follows from steps on one worker whose batch is cut into pieces.
- Alone, in each of the two rounds: biases are corrected by a walk through the layers that at most as many workers share
  as there are pieces, both networks are captured in shares of whole batches, then workers take the units longest first
  (by a measured forward pass). Every worker first loads its kernels.
- Polish, and the sequential schedule: a step takes as long as the worker that holds most pieces, and the exchange,
  (workers - 1) x (latency + bytes of a worker's pieces / rate), as measured between two processes of this machine. The
  sequential schedule is given as many pieces as workers, a sample in each at least.
- Not in it: transfers through the object store, Ray's own latencies, waves where captures have no room, workers that
  slow each other down on one machine, and networks between machines.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import json
import math
import multiprocessing
import os
import platform
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from dipo.algo.activation_cache import StoredRows, cut
from dipo.algo.bench import InPlace
from dipo.algo.calibrate import Calibration, ObserveBatches, activation_ranges, quantize_model
from dipo.algo.independent import CaptureValues, MeasureUnits, SolveAlone
from dipo.algo.phase import Phase
from dipo.algo.step import UnitStep
from dipo.algo.steps.bias_correction import BiasCorrection, BiasCorrectionOptions
from dipo.algo.steps.brecq import Brecq
from dipo.algo.steps.reconstruction import Reconstruction
from dipo.algo.unit_solver import UnitResult
from dipo.cluster.messages import Begin, Job, Replay, Shard, Solve
from dipo.cluster.process_group import Group, TorchCollectives
from dipo.cluster.sharding import even_shares, shards_of
from dipo.cluster.worker import Worker
from dipo.config import Config, compose_config, resolve_path
from dipo.config.job import ClusterConfig
from dipo.export.targets import TARGETS
from dipo.graph.units import Unit, find_units
from dipo.stages.load import load_job
from dipo.stages.parallel import polish_iters, rounds
from dipo.stages.report import versions
from dipo.stages.sequential import solved_units

ResultT = TypeVar("ResultT")
GRAD_SHARDS = ClusterConfig().grad_shards
COMMON = ("+algo=qdrop", "precision=w4a4", "cluster=inline", "cluster.threads=1", "cluster.schedule=parallel")
WORKERS = (1, 2, 4, 8, 16, 32, 64)
MOST_WORKERS = 256
NO_HELP = 0.01
"""More workers do not help where they save less than this part."""
CORRECTED_SAMPLES = 256
"""Samples that a correction of biases looks at, as a job's default batches have it."""
FORWARD_BATCH = 16
PARTS = 1, 4, 16
"""Of a step's batch, those that are measured."""
REPEATS = 4
"""How often what noise has hidden is measured again."""
EXCHANGE_SIZES, EXCHANGES = (256, 1 << 20), 20
RATIOS = re.compile(r"^1 worker / 2 workers, .*: stage ([\d.]+), alone ([\d.]+), polish ([\d.]+)$", re.MULTILINE)


@dataclass(frozen=True)
class Fixed:
    """Seconds that a unit takes besides its steps."""

    constant: float
    per_sample: float
    per_corrected: float = 0.0
    """For each sample that the correction of biases looks at."""

    def at(self, samples: int, *, holders: int = 1) -> float:
        """Seconds for so many samples, shared by so many workers."""
        shared = self.per_sample * samples + self.per_corrected * min(samples, CORRECTED_SAMPLES)
        return self.constant + shared / holders


@dataclass(frozen=True)
class UnitTimes:
    """What a unit takes of one worker."""

    name: str
    forward: float
    """Seconds of a forward pass: what the units are sorted by."""
    alone: Fixed
    walk: Fixed
    steps: Mapping[int, float]
    """By samples in a step: seconds of it, in one piece."""
    update: float
    """Part of a step's seconds that is the same whatever its pieces."""
    gradient_bytes: int

    def step(self, samples: float) -> float:
        """Seconds of a step in one piece: straight lines through what was measured."""
        known = sorted(self.steps)
        right = next((index for index, size in enumerate(known[1:-1], 1) if size >= samples), len(known) - 1)
        low, high = known[right - 1], known[right]
        slope = (self.steps[high] - self.steps[low]) / (high - low)
        return max(self.update, self.steps[low] + slope * (samples - low))


@dataclass(frozen=True)
class Link:
    """An exchange between two workers."""

    latency: float
    """Seconds."""
    per_byte: float
    """Seconds."""


@dataclass(frozen=True)
class NetworkTimes:
    """What a network takes of one worker."""

    units: Sequence[UnitTimes]
    capture: float
    """Seconds of capturing both networks for each sample."""
    costs: float
    """Seconds of measuring the units' forward passes."""
    kernels: float
    """Seconds until a worker's kernels are there."""
    link: Link
    correct: float = 0.0
    """Seconds of correcting all biases for each sample."""


@dataclass(frozen=True)
class Setting:
    """The job whose time is computed."""

    iters: int = 320
    first: int = 128
    """Steps of the first round."""
    polish: int = 48
    samples: int = 1024
    batch: int = 32
    pieces: int = GRAD_SHARDS

    @property
    def rounds(self) -> list[int]:
        """Steps of each round that there is."""
        return [steps for steps in (self.first, self.iters - self.polish - self.first) if steps > 0]


def makespan(durations: Sequence[float], workers: int) -> float:
    """Seconds until all is done where each worker that is free takes the next."""
    free = [0.0] * workers
    for duration in durations:
        heapq.heappush(free, heapq.heappop(free) + duration)
    return max(free)


def shared_step(unit: UnitTimes, *, workers: int, pieces: int, batch: int, link: Link) -> float:
    """Seconds of a step whose batch is cut into pieces that workers share."""
    workers = min(workers, pieces)
    held = math.ceil(pieces / workers)
    exchange = (workers - 1) * (link.latency + held * unit.gradient_bytes * link.per_byte)
    return held * (unit.step(batch / pieces) - unit.update) + unit.update + exchange


def alone_seconds(unit: UnitTimes, setting: Setting) -> float:
    """Seconds in which one worker solves the unit by itself, in all rounds."""
    return sum(round_seconds(unit, setting, steps) for steps in setting.rounds)


def round_seconds(unit: UnitTimes, setting: Setting, steps: int) -> float:
    """Seconds of a round of the unit."""
    return unit.alone.at(setting.samples) + steps * unit.step(setting.batch)


def alone_phase(times: NetworkTimes, setting: Setting, workers: int) -> float:
    """Seconds of the parallel schedule up to its polish: a round ends when its last unit does."""
    batches = range(math.ceil(setting.samples / FORWARD_BATCH))
    shares = [len(share) for share in even_shares(batches, 1 if workers == 1 else 2 * workers)]
    capture = makespan([count * FORWARD_BATCH * times.capture for count in shares], workers)
    correct = math.ceil(len(batches) / min(workers, setting.pieces)) * FORWARD_BATCH * times.correct
    order = sorted(times.units, key=lambda unit: unit.forward, reverse=True)
    return times.kernels + sum(
        correct + times.costs + capture + makespan([round_seconds(unit, setting, steps) for unit in order], workers)
        for steps in setting.rounds
    )


def walk(times: NetworkTimes, setting: Setting, *, steps: int, workers: int, pieces: int) -> float:
    """Seconds of so many steps of each unit, unit after unit, shared by the workers."""
    holders = min(workers, pieces)
    return sum(
        unit.walk.at(setting.samples, holders=holders)
        + steps * shared_step(unit, workers=workers, pieces=pieces, batch=setting.batch, link=times.link)
        for unit in times.units
    )


def polish_phase(times: NetworkTimes, setting: Setting, workers: int) -> float:
    """Seconds of the polish."""
    return walk(times, setting, steps=setting.polish, workers=workers, pieces=setting.pieces)


def parallel(times: NetworkTimes, setting: Setting, workers: int) -> float:
    """Seconds of the parallel schedule."""
    return alone_phase(times, setting, workers) + polish_phase(times, setting, workers)


def sequential(times: NetworkTimes, setting: Setting, workers: int) -> float:
    """Seconds of the sequential schedule with as many pieces as workers."""
    pieces = min(workers, setting.batch)
    return times.kernels + walk(times, setting, steps=setting.iters, workers=workers, pieces=pieces)


def enough_workers(times: NetworkTimes, setting: Setting) -> int:
    """The number of workers from which more save less than `NO_HELP` of the parallel schedule's time."""
    least = parallel(times, setting, MOST_WORKERS)
    return next(n for n in itertools.count(1) if parallel(times, setting, n) * (1 - NO_HELP) <= least)


@dataclass(frozen=True)
class Effort:
    """How carefully a network is measured."""

    samples: int
    few: int
    """Steps of the shorter trainings."""
    many: int
    rounds: int


class Subject:
    """A network whose times are measured."""

    def __init__(self, config: Config, effort: Effort) -> None:
        loaded = load_job(config)
        learned = next((step for step in loaded.steps if isinstance(step, Reconstruction)), None)
        self.config, self.effort = config, effort
        self.step = (learned or Brecq.configured(config.algo, {})).seeded(config.seed)
        # The walk with half the samples has to have as many pieces.
        self.batches = cut(effort.samples, effort.samples // (2 * GRAD_SHARDS))
        job = Job(
            plan=loaded.plan, samples=loaded.samples, rules=TARGETS[config.platform.name].spec, calib=loaded.data.calib,
            device="cpu", threads=1, compile=config.cluster.compile,
        )  # fmt: skip
        self.new_worker: Callable[[], Worker] = lambda: Worker(job, loaded.model)
        self.worker = self.new_worker()
        self.units = find_units(loaded.model, granularity=self.step.granularity, samples=loaded.samples)
        self.solved = solved_units(self.units, loaded.plan)
        seen = self.worker.run(ObserveBatches(self.batches)).calibration()
        ranges = activation_ranges(loaded.plan, seen.statistics, cfg=config.calib)
        self.quantized = quantize_model(loaded.model, plan=loaded.plan, ranges=ranges, cfg=config.calib)
        self.correct = (
            self._correct(find_units(loaded.model, granularity="layer", samples=loaded.samples), seen) / effort.samples
        )
        names = list(dict.fromkeys(name for unit in self.solved for name in unit.inputs))
        start = time.perf_counter()
        _, *values = self.worker.run(CaptureValues(self.batches, names, InPlace(self.quantized)))
        self.capture = (time.perf_counter() - start) / effort.samples
        self.fp: dict[str, StoredRows] = dict(zip(names, values[: len(names)], strict=True))
        self.q: dict[str, StoredRows] = dict(zip(names, values[len(names) :], strict=True))
        start = time.perf_counter()
        self.forwards = [cost.seconds for cost in self.worker.run(MeasureUnits(self.solved))]
        self.costs = time.perf_counter() - start

    def _correct(self, layers: Sequence[Unit], seen: Calibration) -> float:
        """Seconds of correcting all biases."""
        (shard,) = shards_of(self.batches, workers=1, pieces=GRAD_SHARDS, batch_size=self.config.algo.batch_size)
        start = time.perf_counter()
        step = BiasCorrection(BiasCorrectionOptions(bias_source="data"), fp_means=seen.channel_means)
        self.worker.begin(self._begin(step, layers, shard))
        for layer in layers:
            self.worker.solve(Solve(layer))
        self.worker.end(None)
        return time.perf_counter() - start

    def _begin(self, step: UnitStep, units: Sequence[Unit], shard: Shard) -> Begin:
        return Begin(step, units, InPlace(self.quantized), shard)

    def _trained(self, phase: Phase, *, corrects: bool, batch: int | None = None) -> Reconstruction:
        """The step with that part of its schedule."""
        options = self.step.options
        options = replace(options, correct_bias=corrects, batch_size=batch or options.batch_size)
        return replace(self.step, options=options).for_phase(phase)

    def kernels(self) -> float:
        """Seconds that a process takes more for its first unit than for the same one again."""
        start = time.perf_counter()
        self.solve(self.solved[0], steps=1)
        return max(0.0, time.perf_counter() - start - self.solve(self.solved[0], steps=1).seconds)

    def solve(self, unit: Unit, *, steps: int, samples: int | None = None, batch: int | None = None) -> UnitResult:
        """The unit alone."""
        samples = samples or self.effort.samples
        step = self._trained(Phase(0, steps), corrects=False, batch=batch)
        batches = [part for part in self.batches if part.stop <= samples]
        stored = [StoredRows(v[n].data[:samples], v[n].shape) for v in (self.fp, self.q) for n in unit.inputs]
        return self.worker.run(SolveAlone(step, unit, batches, InPlace(self.quantized), None), *stored)

    def alone(self, unit: Unit) -> tuple[Fixed, dict[int, float], UnitResult]:
        """Besides the steps; seconds of a step by its samples; a result to be polished."""
        effort, whole = self.effort, self.config.algo.batch_size
        few, steps, besides = effort.few, dict[int, float](), list[float]()
        for part in PARTS:
            batch, many = whole // part, few + (effort.many - few) * min(part, GRAD_SHARDS)
            # Kernels and convolutions of this size are made ready.
            result = self.solve(unit, steps=1, batch=batch)

            def pair(batch: int = batch, many: int = many) -> tuple[float, float]:
                first, second = (self.solve(unit, steps=n, batch=batch).seconds for n in (few, many))
                return first, second

            pairs = [pair() for _ in range(effort.rounds)]
            while (found := _per_step(pairs, many - few)) is None:
                _check_patience(unit, len(pairs) - effort.rounds)
                pairs.append(pair())
            steps[batch] = found
            besides += [first - few * found for first, _ in pairs]
        # With the smallest batch, whose steps hide least of the rest.
        half = [
            self.solve(unit, steps=few, samples=effort.samples // 2, batch=batch).seconds - few * steps[batch]
            for _ in range(len(PARTS) * effort.rounds)
        ]
        return self._fixed(statistics.median(besides), statistics.median(half)), steps, result

    def walk(self, begun: Mapping[int, UnitResult]) -> dict[int, tuple[Fixed, float]]:
        """By unit: besides the steps, and seconds of a step in pieces on one worker."""
        effort = self.effort
        rounds = [self._one_walk(begun) for _ in range(effort.rounds)]
        times = {}
        for unit in self.solved:

            def of(how: str, index: int = unit.index) -> list[float]:
                return [seconds[index, how] for seconds in rounds]

            while (step := _per_step(list(zip(of("few"), of("many"), strict=True)), effort.many - effort.few)) is None:
                _check_patience(unit, len(rounds) - effort.rounds)
                rounds.append(self._one_walk(begun))
            few, half, corrected = (statistics.median(of(how)) for how in ("few", "half", "corrected"))
            fixed = self._fixed(few - effort.few * step, half - effort.few * step)
            times[unit.index] = replace(fixed, per_corrected=max(0.0, corrected - few) / effort.samples), step
        return times

    def _one_walk(self, begun: Mapping[int, UnitResult]) -> dict[tuple[int, str], float]:
        """Seconds by unit and way, the ways in turns at each unit."""
        effort, algo = self.effort, self.config.algo
        ways = {
            "first": (1, effort.samples // 2, True),
            "few": (effort.few, effort.samples, False),
            "many": (effort.many, effort.samples, False),
            "half": (effort.few, effort.samples // 2, False),
            "corrected": (effort.few, effort.samples, True),
        }
        workers = {how: self.new_worker() for how in ways}
        for how, (steps, samples, corrects) in ways.items():
            batches = [part for part in self.batches if part.stop <= samples]
            (shard,) = shards_of(batches, workers=1, pieces=GRAD_SHARDS, batch_size=algo.batch_size)
            step = self._trained(Phase(algo.iters - steps, algo.iters), corrects=corrects)
            workers[how].begin(self._begin(step, self.units, shard))
        seconds = {}
        for unit in self.units:
            for how in ways:
                if unit.index not in begun:
                    workers[how].replay(Replay([unit], [UnitResult({}, {})]))
                    continue
                seconds[unit.index, how] = workers[how].solve(Solve(unit, begun[unit.index])).seconds
        return seconds

    def _fixed(self, whole: float, half: float) -> Fixed:
        """From what is needed besides steps with all and with half of the samples."""
        per_sample = max(0.0, 2 * (whole - half) / self.effort.samples)
        return Fixed(max(0.0, whole - per_sample * self.effort.samples), per_sample)


def _per_step(pairs: Sequence[tuple[float, float]], steps: int) -> float | None:
    """From seconds of shorter and longer trainings; None where noise hides it."""
    seconds = statistics.median(longer - shorter for shorter, longer in pairs) / steps
    return seconds if seconds > 0 else None


def _check_patience(unit: Unit, repeats: int) -> None:
    if repeats >= REPEATS:
        sys.exit(f"unit {unit.name}: more steps took less time {repeats + 1} times, measure on a quieter machine")


def fresh(function: Callable[..., ResultT], *arguments: object) -> ResultT:
    """Calls a function in a process of its own: what was compiled for one network is not in the way of the next."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as processes:
        return processes.submit(function, *arguments).result()


def measure_kernels(config: Config, effort: Effort) -> float:
    """Seconds that a new worker takes for its kernels where the compiler's results are on disk."""
    return Subject(config, effort).kernels()


def measure(config: Config, effort: Effort, link: Link, kernels: float) -> NetworkTimes:
    """Times of a network, in a fresh process."""
    subject = Subject(config, effort)
    # A worker sees one size of a batch, or two; here it is several, and none may end in eager kernels.
    with torch._dynamo.config.patch(recompile_limit=64):
        alone = {unit.index: subject.alone(unit) for unit in subject.solved}
        walked = subject.walk({index: result for index, (_, _, result) in alone.items()})
    units = []
    for unit, forward in zip(subject.solved, subject.forwards, strict=True):
        (fixed, steps, result), (walk_fixed, cut_step) = alone[unit.index], walked[unit.index]
        piece = steps[config.algo.batch_size // GRAD_SHARDS]
        update = min(max(0.0, (GRAD_SHARDS * piece - cut_step) / (GRAD_SHARDS - 1)), piece)
        weights = sum(layer.codes.size for layer in result.layers.values())
        biases = sum(layer.bias.size for layer in result.layers.values() if layer.bias is not None)
        size = 4 * (weights + biases + len(result.activations) + 1)
        units.append(UnitTimes(unit.name, forward, fixed, walk_fixed, steps, update, size))
    return NetworkTimes(units, subject.capture, subject.costs, kernels, link, subject.correct)


def measure_link() -> Link:
    """Two processes of this machine add up vectors, as workers do."""
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    other = multiprocessing.get_context("spawn").Process(target=_exchange, args=(1, port, None), daemon=True)
    other.start()
    small, large = _exchange(0, port, listener)
    other.join()
    per_byte = max(0.0, large - small) / (4 * (EXCHANGE_SIZES[1] - EXCHANGE_SIZES[0]))
    return Link(max(0.0, small - 4 * EXCHANGE_SIZES[0] * per_byte), per_byte)


def _exchange(rank: int, port: int, listener: socket.socket | None) -> list[float]:
    """Seconds of an exchange for each of the sizes."""
    torch.set_num_threads(1)
    exchange = TorchCollectives(Group(rank, 2, "127.0.0.1", port), torch.device("cpu"), listener)
    medians = []
    for size in EXCHANGE_SIZES:
        part, seconds = torch.ones(size), []
        for _ in range(EXCHANGES):
            start = time.perf_counter()
            exchange.all_reduce_ordered({rank: part}, owners=[0, 1])
            seconds.append(time.perf_counter() - start)
        medians.append(statistics.median(seconds))
    exchange.close()
    return medians


def table(times: NetworkTimes, setting: Setting) -> list[str]:
    """Computed seconds and speed-ups by number of workers, and what bounds them."""
    columns: dict[str, Callable[[int], float]] = {
        "parallel": lambda n: parallel(times, setting, n),
        "its units alone": lambda n: alone_phase(times, setting, n),
        "its polish": lambda n: polish_phase(times, setting, n),
        "sequential": lambda n: sequential(times, setting, n),
    }
    lines = ["workers" + "".join(f"{f'{name}, s':>20} {'x':>6}" for name in columns)]
    first = {name: seconds(1) for name, seconds in columns.items()}
    for workers in WORKERS:
        cells = [(seconds(workers), first[name] / seconds(workers)) for name, seconds in columns.items()]
        lines.append(f"{workers:7}" + "".join(f"{seconds:20.1f} {ratio:6.2f}" for seconds, ratio in cells))
    return [*lines, *bounds(times, setting)]


def bounds(times: NetworkTimes, setting: Setting) -> list[str]:
    """Sentences on what keeps more workers from helping."""
    longest = max(times.units, key=lambda unit: alone_seconds(unit, setting))
    most, all_units = alone_seconds(longest, setting), sum(alone_seconds(unit, setting) for unit in times.units)
    whole, polish = parallel(times, setting, 1), polish_phase(times, setting, setting.pieces)
    whole_step, cut_step = (
        sum(shared_step(unit, workers=1, pieces=pieces, batch=setting.batch, link=times.link) for unit in times.units)
        for pieces in (1, setting.pieces)
    )
    besides = sum(unit.alone.at(setting.samples) for unit in times.units)
    return [
        f"the longest of {len(times.units)} units: {longest.name}, {most:.1f} s, {100 * most / all_units:.1f} % of the "
        f"units' {all_units:.1f} s ({besides:.1f} s besides their steps): units alone cannot become more than "
        f"{all_units / most:.1f} x as fast",
        f"the polish, {setting.polish} of {setting.iters} steps, on {setting.pieces} or more workers: {polish:.1f} s: "
        f"the whole cannot become more than {whole / polish:.1f} x as fast; with the longest unit before it "
        f"{whole / (polish + most):.1f} x",
        f"a step in {setting.pieces} pieces on one worker: {cut_step / whole_step:.2f} x one in one piece "
        f"({1e3 * whole_step:.1f} ms, sum of all units)",
        f"from {enough_workers(times, setting)} workers on more of them save less than {100 * NO_HELP:.0f} %",
    ]


def check(times: NetworkTimes, setting: Setting, measured_text: str) -> str:
    """The computed gain of a second worker beside the measured one.

    Args:
        times: Of the network that was measured.
        setting: The job.
        measured_text: What `measured` wrote.
    """
    found = RATIOS.search(measured_text)
    if found is None:
        sys.exit("the file of the measured runs has no line of ratios: run `measured` again")
    computed = [
        seconds(times, setting, 1) / seconds(times, setting, 2) for seconds in (parallel, alone_phase, polish_phase)
    ]
    pairs = zip(("whole", "alone", "polish"), computed, found.groups(), strict=True)
    return "1 worker / 2 workers: " + ", ".join(
        f"{name} computed {own:.2f}, measured {float(other):.2f}" for name, own, other in pairs
    )


def simulated(options: list[str], *, samples: int, quick: bool) -> None:
    """Measures and computes network after network; prints and writes the tables."""
    lines, link = _head("simulated", ["--", *options], f"a job of {samples} samples"), measure_link()
    with tempfile.TemporaryDirectory() as folder:
        networks = _networks(options, Path(folder), quick=quick)
        # The first process may have to compile.
        kernels = [fresh(measure_kernels, config, effort) for config, effort in [networks[0], networks[0]]][-1]
        lines.append(
            f"measured: an exchange between two processes, {1e3 * link.latency:.2f} ms and {1e9 * link.per_byte:.2f} "
            f"ms a megabyte; a worker's kernels, {kernels:.1f} s; what is called measured below. Computed: all else"
        )
        print("\n".join(lines), flush=True)
        for config, effort in networks:
            own = _simulated(config, effort, link, kernels, samples)
            print("\n".join(own), flush=True)
            lines += own
            if not quick:
                _write(_result("simulated"), lines)


def _networks(options: list[str], folder: Path, *, quick: bool) -> list[tuple[Config, Effort]]:
    """The network of the options, if any, and the two that are made here."""
    # Only a script has its own folder among those that are searched.
    from networks import EncoderShape, encoder, mobilenet_v2, write

    small = Effort(16, 1, 4, 1)
    shape = EncoderShape(blocks=2, width=32, length=16) if quick else EncoderShape()
    found = [(options, small if quick else Effort(64, 4, 28, 3))] if options else []
    for name, model, effort in (
        ("mobilenet_v2", mobilenet_v2(size=32 if quick else 224), Effort(32, 1, 3, 2)),
        ("encoder", encoder(shape), Effort(32, 1, 3, 1)),
    ):
        words = write(model, folder, name, num_samples=effort.samples)
        found.append((words, small if quick else effort))
    return [(compose_config([*COMMON, *words, f"data.num={effort.samples}"]), effort) for words, effort in found]


def _simulated(config: Config, effort: Effort, link: Link, kernels: float, samples: int) -> list[str]:
    """Lines of one network."""
    start = time.perf_counter()
    times = fresh(measure, config, effort, link, kernels)
    seconds, algo = time.perf_counter() - start, config.algo
    pieces = config.cluster.grad_shards
    setting = Setting(algo.iters, len(rounds(algo)[0]), polish_iters(algo), samples, algo.batch_size, pieces)
    known = _result(_measured_name(config))
    return [
        "",
        f"{_stem(config)}: measured in {seconds:.0f} s, {effort.rounds} rounds of {effort.few} and "
        f"{effort.many} steps on {effort.samples} samples; the float network {1e3 * times.capture:.1f} ms a sample",
        *table(times, setting),
        *([f"{check(times, setting, known.read_text())} ({known.name})"] if known.exists() else []),
    ]


@dataclass(frozen=True)
class Run:
    """Seconds of a whole job's reconstruction."""

    stage: float
    """All of it."""
    alone_units: float
    """Sum over the units, each on its worker."""
    polish: float
    """Sum over the units, one after the other."""

    @property
    def alone(self) -> float:
        """Until the polish, and what its walk needs besides its units."""
        return self.stage - self.polish

    @staticmethod
    def of(report: Mapping[str, Any]) -> Run:
        """From `report.json`."""
        (name,) = {unit["step"] for unit in report["units"]} - {"alone-1", "alone-2"}
        polish = sum(unit["seconds"] for unit in report["units"] if unit["step"] == name)
        every = sum(unit["seconds"] for unit in report["units"])
        return Run(report["seconds"][name], every - polish, polish)


def measured(options: list[str], *, runs: int) -> None:
    """Whole jobs with one and two workers in turns; prints and writes their times and ratios."""
    name = _measured_name(compose_config(options))
    lines = [*_head("measured", [f"--runs {runs}", "--", *options], "all figures measured"), ""]
    lines.append(f"{'run':>6} {'workers':>8} {'stage s':>8} {'alone s':>8} {'units alone s':>14} {'polish s':>9}")
    found: dict[int, list[Run]] = {1: [], 2: []}
    print("\n".join(lines), flush=True)
    for turn in range(runs):
        for workers, own in found.items():
            own.append(_job(options, workers))
            lines.append(_row(str(turn + 1), workers, own[-1:]))
            print(lines[-1], flush=True)
    closing = [_row("median", workers, own) for workers, own in found.items()]
    closing.append(ratios(found[1], found[2]))
    closing.append(
        "stage: of the job; polish: sum of its units; alone: the stage less the polish; units alone: their sum"
    )
    print("\n".join(closing))
    _write(_result(name), [*lines, *closing])


def ratios(one: Sequence[Run], two: Sequence[Run]) -> str:
    """How much faster two workers are than one, from runs in pairs."""
    pairs = list(zip(one, two, strict=True))
    stage = statistics.median(a.stage / b.stage for a, b in pairs)
    alone = statistics.median(a.alone / b.alone for a, b in pairs)
    polish = statistics.median(a.polish / b.polish for a, b in pairs)
    return (
        f"1 worker / 2 workers, median of {len(pairs)} pairs: stage {stage:.2f}, alone {alone:.2f}, polish {polish:.2f}"
    )


def _row(title: str, workers: int, runs: Sequence[Run]) -> str:
    stage, alone, units, polish = (
        statistics.median(getattr(run, field) for run in runs) for field in ("stage", "alone", "alone_units", "polish")
    )
    return f"{title:>6} {workers:8} {stage:8.2f} {alone:8.2f} {units:14.2f} {polish:9.2f}"


def _job(options: list[str], workers: int) -> Run:
    """Runs a job; stops where it fails."""
    with tempfile.TemporaryDirectory() as folder:
        own = ["cluster.schedule=parallel", f"cluster.workers={workers}", "cluster.threads=1", f"run.dir={folder}/run"]
        done = subprocess.run(
            [sys.executable, "-m", "dipo.launch", *options, *own], stdout=subprocess.DEVNULL, check=False
        )
        if done.returncode:
            sys.exit(f"the job with {workers} workers ended with {done.returncode}")
        return Run.of(json.loads((Path(folder) / "run" / "report.json").read_text()))


def _stem(config: Config) -> str:
    return "" if config.model.path is None else resolve_path(config.model.path).stem


def _measured_name(config: Config) -> str:
    stem, precision = _stem(config), config.precision
    return f"measured-{stem}-{config.algo.name}-w{precision.weight_bits}a{precision.act_bits}"


def _result(name: str) -> Path:
    return Path(__file__).with_name(f"scaling-{name}.txt")


def _head(command: str, words: Sequence[str], what: str) -> list[str]:
    """The command, the machine and the versions."""
    info = Path("/proc/cpuinfo")
    models = re.findall(r"model name\s*: (.*)", info.read_text()) if info.exists() else []
    load = ", ".join(f"{part:.1f}" for part in os.getloadavg())
    return [
        f"python benchmarks/scaling.py {command} {' '.join(words)}",
        f"{models[0] if models else platform.machine()}, {os.cpu_count()} cores, load average at the start {load}",
        ", ".join(f"{name} {version}" for name, version in versions().items()),
        f"{what}, 1 thread a worker",
    ]


def _write(path: Path, lines: Sequence[str]) -> None:
    partial = path.with_suffix(".tmp")
    partial.write_text("\n".join(lines) + "\n")
    partial.replace(path)


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["measured", "simulated"])
    parser.add_argument("--runs", type=int, default=3, help="pairs of jobs (measured)")
    parser.add_argument("--samples", type=int, default=Setting.samples, help="of the job (simulated)")
    parser.add_argument("--quick", action="store_true", help=argparse.SUPPRESS)
    end = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    args, options = parser.parse_args(sys.argv[1:end]), sys.argv[end + 1 :]
    torch.set_num_threads(1)
    if args.what == "measured":
        measured(options, runs=args.runs)
    else:
        simulated(options, samples=args.samples, quick=args.quick)


if __name__ == "__main__":
    main()
