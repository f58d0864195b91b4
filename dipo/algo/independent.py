"""Tasks for units that are trained independently: capture their inputs, measure their costs, train one of them."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from dipo.algo.activation_cache import Batch, StoredRows
from dipo.algo.bench import Bench, Shared
from dipo.algo.collectives import SingleWorker
from dipo.algo.network_pair import NetworkPair
from dipo.algo.steps.reconstruction import Reconstruction
from dipo.algo.trainer import GradShard
from dipo.algo.unit_solver import UnitResult, UnitWork, as_it_is
from dipo.graph.accessors import node_name
from dipo.graph.plan import Plan, QuantizedModel
from dipo.graph.torch_module import GraphModule
from dipo.graph.units import Unit

COST_SAMPLES, COST_REPEATS = 16, 3


@dataclass(frozen=True, eq=False)
class CaptureValues:
    """The task to capture values of both networks for some batches."""

    name: ClassVar[str] = "capture"
    batches: Sequence[Batch]
    values: Sequence[str]
    """Names of the values."""
    quantized: Shared[QuantizedModel]

    def run(self, bench: Bench, *stored: StoredRows) -> tuple[Any, ...]:
        """Run both networks over the batches.

        Returns:
            The number of samples, then each value as the float network computes it, then as the quantized one does.
        """
        del stored
        pair = _pair(bench, [], self.quantized.get(), self.batches)
        pair.read_samples(bench.calib_inputs, with_float=True)
        fp, q = pair.capture(self.values)
        samples = sum(len(batch) for batch in self.batches)
        bench.progress(samples)
        return (samples, *(StoredRows.of(captures[name]) for captures in (fp, q) for name in self.values))


@dataclass(frozen=True)
class UnitCost:
    """Time and memory that a unit takes on a worker."""

    seconds: float
    """Seconds of a forward pass; those of the training are in proportion."""
    input_bytes: dict[str, int]
    """By name of a value that it reads: bytes of one cached sample, of the float and the quantized network together."""


@dataclass(frozen=True, eq=False)
class MeasureUnits:
    """The task to measure the time of each unit's forward pass on the first batch, and the size of its inputs."""

    name: ClassVar[str] = "unit_costs"
    units: Sequence[Unit]

    def run(self, bench: Bench, *stored: StoredRows) -> list[UnitCost]:
        """Run each float unit a few times and return the costs, in the order of the units."""
        del stored
        batch = Batch(0, 0, min(COST_SAMPLES, len(bench.calib)))
        names = list(dict.fromkeys(name for unit in self.units for name in unit.inputs))
        by_name = {node_name(node): node for node in bench.model.graph}
        with torch.inference_mode():
            values = GraphModule(bench.model, outputs=names).to(bench.device).eval()(bench.calib_inputs(batch))
            costs = []
            for unit in self.units:
                nodes = [by_name[name] for name in (*unit.remade, *unit.nodes)]
                module = GraphModule(bench.model, nodes=nodes, outputs=unit.outputs).to(bench.device).eval()
                seconds = min(_seconds(module, values, bench.device) for _ in range(COST_REPEATS))
                sizes = {name: _capture_bytes(bench.plan, name, values[name], len(batch)) for name in unit.inputs}
                costs.append(UnitCost(seconds, sizes))
        return costs


@dataclass(frozen=True, eq=False)
class SolveAlone:
    """The task to train one unit on captured inputs.

    Its stored values: for each of the unit's inputs the parts of the float network's values, in the batches' order,
    then the same of the quantized one's.
    """

    name: ClassVar[str] = "solve_alone"
    step: Reconstruction
    unit: Unit
    batches: Sequence[Batch]
    """All batches of the run."""
    quantized: Shared[QuantizedModel]
    warm_start: UnitResult | None
    """The unit's result after an earlier phase."""
    before: Shared[QuantizedModel] | None = None
    """The network in front of all phases, whose unit the last one is judged by; None: nothing is judged."""
    held_out: Sequence[int] = ()
    """Indices of the samples that the step must not be fitted to, rising."""

    def run(self, bench: Bench, *stored: StoredRows) -> UnitResult:
        """Train the unit and return its result."""
        start = time.perf_counter()
        unit, inputs = self.unit, self.unit.inputs
        pair = _pair(bench, [unit], self.quantized.get(), self.batches)
        parts = len(stored) // (2 * len(inputs))
        pieces = [stored[index : index + parts] for index in range(0, len(stored), parts)]
        pair.take_inputs(
            dict(zip(inputs, pieces[: len(inputs)], strict=True)), dict(zip(inputs, pieces[len(inputs) :], strict=True))
        )
        if self.warm_start is not None:
            pair.adopt(self.warm_start.layers, self.warm_start.activations)
        num_samples, held_out = sum(len(batch) for batch in self.batches), tuple(self.held_out)
        piece = GradShard(0, 0, num_samples, self.step.options.batch_size, held_out)
        before = None if self.before is None else as_it_is(pair, unit, self.before.get())
        work = UnitWork(
            unit, pair, pair.targets(unit), None, [piece], [0], self.warm_start, bench, before, held_out
        )  # fmt: skip
        return dataclasses.replace(self.step.solve(work), seconds=time.perf_counter() - start)


def _pair(bench: Bench, units: Sequence[Unit], quantized: QuantizedModel, batches: Sequence[Batch]) -> NetworkPair:
    return NetworkPair(
        bench.model, plan=bench.plan, units=units, quantized=quantized, batches=batches, owners=[0] * len(batches),
        collectives=SingleWorker(), device=bench.device, samples=bench.samples,
    )  # fmt: skip


def _capture_bytes(plan: Plan, name: str, value: torch.Tensor, num_samples: int) -> int:
    """Return the bytes that one of the cached samples of a value takes for both networks."""
    spec = plan.activations.get(plan.aliases.get(name, name))
    own = value.element_size()
    return value.numel() // num_samples * (own + (own if spec is None else 1 if spec.bits <= 8 else 2))


def _seconds(module: GraphModule, values: Mapping[str, torch.Tensor], device: torch.device) -> float:
    start = time.perf_counter()
    module(values)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start
