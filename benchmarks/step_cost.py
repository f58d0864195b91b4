"""Milliseconds of a reconstruction step, unit by unit, against the plain float forward and backward of the same unit.

    python benchmarks/step_cost.py model.path=... data=cifar10 data.path=... +algo=qdrop precision=w4a4 cluster=inline

takes the launcher's options and writes the table beside this script. The floor is what no method can go below: the
unit's float nodes forward, and backward to its weights, on a batch of the same size in the same memory format. Step and
floor are timed in turns, in one process; each figure is the median of the rounds.
"""

from __future__ import annotations

import functools
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from dipo.algo.activation_cache import CachedActivation, cut
from dipo.algo.bench import Bench
from dipo.algo.calibrate import activation_ranges, observe, quantize_model
from dipo.algo.collectives import SingleWorker
from dipo.algo.network_pair import NetworkPair
from dipo.algo.phase import Phase
from dipo.algo.reconstruct import reconstruct
from dipo.algo.steps.brecq import Brecq
from dipo.algo.steps.reconstruction import Reconstruction
from dipo.algo.unit_solver import UnitSolver, UnitWork
from dipo.algo.unit_training import unit_problem
from dipo.cluster.sharding import shards_of
from dipo.config import compose_config
from dipo.export.targets import TARGETS
from dipo.graph.torch_module import GraphModule
from dipo.graph.units import find_units
from dipo.stages.load import load_job

ROUNDS, STEPS, CPU = 7, 60, torch.device("cpu")


def floor_step(
    module: GraphModule,
    weights: Sequence[str],
    *,
    inputs: Mapping[str, CachedActivation],
    targets: Mapping[str, CachedActivation],
    batch_size: int,
) -> float:
    """Seconds of one plain float forward and backward.

    Args:
        module: A unit.
        weights: Names of what is differentiated for.
        inputs: Of the float network.
        targets: Likewise.
        batch_size: Samples in a step.
    """
    leaves = {name: module.constant(name).clone().requires_grad_() for name in weights}
    read = {name: capture.rows(0, batch_size) for name, capture in inputs.items()}
    wanted = {name: capture.rows(0, batch_size) for name, capture in targets.items()}

    def step() -> None:
        out = module(read, constants=leaves)
        loss = sum((out[name] - target).square().sum(1).mean() for name, target in wanted.items())
        torch.autograd.grad(loss, list(leaves.values()))

    step()
    start = time.perf_counter()
    for _ in range(STEPS):
        step()
    return (time.perf_counter() - start) / STEPS


def main() -> None:
    """Prints and writes the table."""
    config = compose_config(sys.argv[1:])
    threads = config.cluster.threads
    torch.set_num_threads(threads)
    loaded = load_job(config)
    learned = next((step for step in loaded.steps if isinstance(step, Reconstruction)), None)
    step = (learned or Brecq.configured(config.algo, {})).for_phase(Phase(0, 1))
    step = replace(step, options=replace(step.options, iters=1, correct_bias=False))
    batches = cut(min(256, len(loaded.data.calib)), config.data.batch_size)
    bench = Bench(
        loaded.model, loaded.plan, loaded.samples, TARGETS[config.platform.name].spec, loaded.data.calib, CPU, threads,
        config.cluster.compile, lambda _: None,
    )  # fmt: skip
    inputs = bench.calib_inputs
    observed = observe(loaded.model, plan=loaded.plan, batches=batches, inputs=inputs, device=CPU)
    ranges = activation_ranges(loaded.plan, observed.statistics, cfg=config.calib)
    quantized = quantize_model(loaded.model, plan=loaded.plan, ranges=ranges, cfg=config.calib)
    units = find_units(loaded.model, granularity=step.granularity, samples=loaded.samples)
    pair = NetworkPair(
        loaded.model, plan=loaded.plan, units=units, quantized=quantized, batches=batches, owners=[0] * len(batches),
        collectives=SingleWorker(), device=CPU, samples=loaded.samples,
    )  # fmt: skip
    pair.read_samples(inputs, with_float=True)
    algo = step.training
    (shard,) = shards_of(batches, workers=1, pieces=config.cluster.grad_shards, batch_size=algo.batch_size)
    solver = UnitSolver(step, pair, bench, pieces=shard.pieces, shard_ranks=shard.shard_ranks)
    how = {"pieces": shard.pieces, "owners": shard.shard_ranks, "collectives": SingleWorker(), "seed": 0}
    how["kernels"] = bench.kernels
    brief = replace(algo, iters=STEPS)
    lines = [f"{'unit':32} {'floor ms':>9} {'step ms':>9} {'ratio':>6}"]
    floors, steps = 0.0, 0.0
    for unit in (unit for unit in units):
        if unit.layers:
            work = UnitWork(unit, pair, pair.targets(unit), None, shard.pieces, shard.shard_ranks, None, bench)
            problem = unit_problem(work, cfg=brief)
            module = GraphModule(loaded.model, nodes=[pair.nodes[name] for name in unit.nodes], outputs=unit.outputs)
            reconstruct(problem, cfg=brief, phase=Phase(0, 3), **how)
            names = [name for name, _, _ in problem.layers.values()]
            float_step = functools.partial(
                floor_step, module, names, inputs=problem.fp_inputs, targets=problem.targets, batch_size=algo.batch_size
            )
            float_step()
            rounds = []
            for _ in range(ROUNDS):
                floor = float_step()
                start = time.perf_counter()
                reconstruct(problem, cfg=brief, phase=Phase(0, STEPS), **how)
                rounds.append((floor, (time.perf_counter() - start) / STEPS))
            floor, step = (1e3 * statistics.median(column) for column in zip(*rounds, strict=True))
            floors, steps = floors + floor, steps + step
            lines.append(f"{unit.name:32} {floor:9.2f} {step:9.2f} {step / floor:6.2f}")
            print(lines[-1], flush=True)
        solver.solve(unit)
    lines.append(f"{'sum':32} {floors:9.2f} {steps:9.2f} {steps / floors:6.2f}")
    head = (
        f"python benchmarks/step_cost.py {' '.join(sys.argv[1:])}\n"
        f"{threads} threads, {len(shard.pieces)} pieces of a step, torch {torch.__version__}, "
        f"median of {ROUNDS} rounds of {STEPS} steps\n"
    )
    precision = f"w{config.precision.weight_bits}a{config.precision.act_bits}"
    name = f"step_cost-{loaded.path.stem}-{config.algo.name}-{precision}-{threads}threads-{len(shard.pieces)}pieces.txt"
    Path(__file__).with_name(name).write_text("\n".join([head, *lines]) + "\n")
    print(lines[-1])


if __name__ == "__main__":
    main()
