"""Networks of a test with their samples, walked through by one worker or by several threads in lockstep."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from dipo.algo.activation_cache import Batch, cut
from dipo.algo.calibrate import activation_ranges, observe, quantize_model
from dipo.algo.collectives import add_in_order
from dipo.algo.network_pair import NetworkPair
from dipo.export.targets import TARGETS
from dipo.graph.load import load
from dipo.graph.plan import Plan, QuantizedModel, make_plan
from dipo.graph.units import Unit, find_units
from dipo.recipe import CalibConfig, PrecisionConfig

CPU = torch.device("cpu")


class ThreadCollectives:
    """Workers that are threads of this process."""

    def __init__(self, size: int) -> None:
        self.barrier, self.parts = threading.Barrier(size, timeout=60), {}

    def all_reduce_ordered(self, parts: Mapping[int, torch.Tensor], *, owners: Sequence[int]) -> torch.Tensor:
        self.parts.update(parts)
        self.barrier.wait()
        total = add_in_order([self.parts[number] for number in range(len(owners))]).clone()
        self.barrier.wait()
        self.parts.clear()
        self.barrier.wait()
        return total


@dataclass
class Net:
    """A network, calibrated on its samples."""

    model: ir.Model
    plan: Plan
    samples: np.ndarray
    batch_size: int
    quantized: QuantizedModel
    units: list[Unit] = field(default_factory=list)

    @staticmethod
    def of(path: Path, samples: np.ndarray, *, batch_size: int = 8, platform: str = "ort", **precision: Any) -> Net:
        torch.set_num_threads(1)
        model = load(path)
        precision = {"weight_bits": 8, "act_bits": 8, "first_last_bits": None} | precision
        plan = make_plan(model, TARGETS[platform].spec, PrecisionConfig(**precision))
        net = Net(model, plan, samples, batch_size, QuantizedModel({}, {}), find_units(model, granularity="layer"))
        batches = cut(len(samples), batch_size)
        seen = observe(model, plan=plan, batches=batches, inputs=net.inputs, device=CPU).statistics
        cfg = CalibConfig(method="minmax")
        net.quantized = quantize_model(model, plan=plan, ranges=activation_ranges(plan, seen, cfg=cfg), cfg=cfg)
        return net

    def inputs(self, batch: Batch) -> dict[str, torch.Tensor]:
        name = self.model.graph.inputs[0].name
        return {name: torch.from_numpy(self.samples[batch.start : batch.stop])}

    @staticmethod
    def _taken(pair: NetworkPair, unit: Unit, found: Any) -> Any:
        """Moves on behind the unit with what the step found for its layers."""
        pair.layers.update(found if isinstance(found, dict) else {})
        targets = pair.targets(unit) if pair.with_float else {}
        pair.advance(unit)
        pair.fp.update(targets)
        pair.forget(unit)
        return found

    def walk(
        self, step: Callable[[NetworkPair, Unit], Any], *, workers: int = 1, with_float: bool = False
    ) -> list[tuple[NetworkPair, list[Any]]]:
        """Each worker's pair behind all units, and what the step gave for each of them."""
        batches = cut(len(self.samples), self.batch_size)
        owners = [batch.index * workers // len(batches) for batch in batches]
        collectives = ThreadCollectives(workers)

        def work(rank: int) -> tuple[NetworkPair, list[Any]]:
            pair = NetworkPair(
                self.model, plan=self.plan, units=self.units, quantized=self.quantized,
                batches=[batch for batch in batches if owners[batch.index] == rank], owners=owners,
                collectives=collectives, device=CPU,
            )  # fmt: skip
            with torch.inference_mode():
                pair.read_samples(self.inputs, with_float=with_float)
                return pair, [self._taken(pair, unit, step(pair, unit)) for unit in self.units]

        with ThreadPoolExecutor(workers) as threads:
            return list(threads.map(work, range(workers)))
