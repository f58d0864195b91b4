"""What a job will cost, from a few timed passes of its float network: enough to choose by, no promise."""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Callable, Mapping, Sequence

import torch

from dipo.algo.headroom import ROOMS
from dipo.algo.step import FloatStep, UnitStep
from dipo.config import Config
from dipo.graph.accessors import name_of
from dipo.graph.layers import layers_of
from dipo.graph.multiplications import Shapes
from dipo.graph.torch_module import GraphModule, channels_last
from dipo.graph.units import Unit, find_units
from dipo.report.network_facts import Estimate
from dipo.stages.headroom import is_tried
from dipo.stages.load import JobInputs
from dipo.stages.sequential import solved_units

BUDGET_SECONDS = 0.3
"""Time that a measurement may take, beyond the passes of one sample."""
CALIBRATION_PASSES, VERIFY_PASSES, MEASURING_PASSES = 2.0, 3.0, 3.0
"""Forward passes of the float network that take as long as calibration (with histograms), as verification (float,
simulated and deployed), and as a step that only measures units or a trial of room beyond the ranges (both networks),
for each sample."""
TRAINING_PASSES, TRAINING_STARTS = 2.0, 5.0
"""Passes there and back of the float network that take as long as one optimizer step in all units: by the size of its
batch, and, for what a step costs whatever its size, of one sample. Measured on ResNet-20 and MobileNetV1."""
BOTH_WAYS = 3.0
"""Forward passes that take as long as one there and back: products of the gradients with inputs and with weights."""
COMPILING_SECONDS, COMPILER_MB = 15.0, 100.0
"""What compiled kernels cost a worker before its first optimizer step."""
TRAINING_COPIES = 4
"""Copies of a unit's values that training holds: float, quantized, gradients, and what autograd saves."""
FLOAT_BYTES = 4
MB = 1 << 20


def estimate(loaded: JobInputs, config: Config, *, shapes: Shapes, device: str) -> Estimate | None:
    """Return the cost of a job; None where this machine lacks the device.

    Args:
        loaded: The job.
        config: Its configuration.
        shapes: Shapes of the values for one sample.
        device: `cpu` or `cuda`.
    """
    if device == "cuda" and not torch.cuda.is_available():
        return None
    workers = _workers(config)
    passes = _Passes(loaded, device)
    num, num_eval = len(loaded.data.calib), len(loaded.data.eval or loaded.data.calib)
    batch = min(config.data.batch_size, num)
    forward = passes.forward(batch) / batch
    seconds = {"calibrate": CALIBRATION_PASSES * forward * num / workers}
    if is_tried(loaded, config):
        seconds["headroom"] = len(ROOMS) * MEASURING_PASSES * forward * num / workers
    unknown, trained = list[str](), list[UnitStep]()
    for step in loaded.steps:
        if isinstance(step, FloatStep):
            continue  # already done
        if isinstance(step, UnitStep) and step.num_steps and step.batch_size:
            one = TRAINING_PASSES * passes.training(step.batch_size) + TRAINING_STARTS * passes.training(1)
            seconds[step.name] = step.num_steps * one / min(workers, config.cluster.grad_shards)
            if config.cluster.compile and not trained:
                seconds[step.name] += COMPILING_SECONDS
            trained.append(step)
        elif isinstance(step, UnitStep):
            seconds[step.name] = MEASURING_PASSES * forward * num / workers
        else:
            unknown.append(step.name)
    seconds["verify"] = VERIFY_PASSES * forward * num_eval / workers
    compiler = COMPILER_MB if trained and config.cluster.compile else 0.0
    return Estimate(seconds, unknown, workers, compiler + _worker_mb(loaded, config, shapes, workers=workers))


class _Passes:
    """Timed passes of the float network, extrapolated to any number of samples."""

    def __init__(self, loaded: JobInputs, device: str) -> None:
        self._loaded, self._device = loaded, torch.device(device)
        names = [name_of(value) for value in loaded.model.graph.outputs]
        self._module = GraphModule(loaded.model, outputs=names).to(self._device).eval()
        self._times: dict[Callable[[int], None], tuple[float, float]] = {}

    def forward(self, num: int) -> float:
        """Return the seconds of a forward pass of `num` samples."""
        return self._extrapolated(self._run_forward, num)

    def training(self, num: int) -> float:
        """Return the seconds of a pass there and back, with gradients of all weights."""
        if self.forward(1) > BUDGET_SECONDS:
            return BOTH_WAYS * self.forward(num)
        return self._extrapolated(self._run_training, num)

    def _extrapolated(self, run: Callable[[int], None], num: int) -> float:
        if run not in self._times:
            self._times[run] = self._measured(run)
        first, more = self._times[run]
        return first + more * (num - 1)

    def _measured(self, run: Callable[[int], None]) -> tuple[float, float]:
        """Return the seconds of one sample, and of each one more."""
        first = self._timed(run, 1)  # the first pass prepares much that later ones find
        if first > BUDGET_SECONDS:
            return first, first
        first = self._timed(run, 1)
        num = min(len(self._loaded.data.calib), max(2, int(BUDGET_SECONDS / max(first, 1e-4))), 32)
        if num < 2:
            return first, first
        return first, max(0.0, self._timed(run, num) - first) / (num - 1)

    def _timed(self, run: Callable[[int], None], num: int) -> float:
        self._inputs(num)  # decoding is not timed, it goes on beside
        start = time.perf_counter()
        run(num)
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter() - start

    def _inputs(self, num: int) -> dict[str, torch.Tensor]:
        arrays = self._loaded.data.calib.read(0, num).inputs
        return {name: channels_last(torch.from_numpy(array).to(self._device)) for name, array in arrays.items()}

    def _run_forward(self, num: int) -> None:
        with torch.inference_mode():
            self._module(self._inputs(num))

    def _run_training(self, num: int) -> None:
        names = [name_of(layer.weight) for layer in layers_of(self._loaded.model)]
        held = [name for name in names if name in self._module.constant_names]
        weights = {name: self._module.constant(name).clone().requires_grad_() for name in held}
        outputs = self._module(self._inputs(num), constants=weights).values()
        losses = [out.float().square().mean() for out in outputs if isinstance(out, torch.Tensor) and out.requires_grad]
        if losses:
            torch.autograd.grad(torch.stack(losses).sum(), list(weights.values()), allow_unused=True)


def _workers(config: Config) -> int:
    if config.cluster.workers is not None:
        return config.cluster.workers
    return 1 if config.cluster.kind == "inline" else max(2, torch.cuda.device_count())


def _worker_mb(loaded: JobInputs, config: Config, shapes: Shapes, *, workers: int) -> float:
    """Return the memory of a worker: of a process like this one, captured values, and a batch in training."""
    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    batch = config.data.batch_size
    values = {name: FLOAT_BYTES * math.prod(shape) for name, shape in shapes.items()}
    needed = [2 * batch * max(values.values(), default=0) * 2]
    for step in loaded.steps:
        if isinstance(step, UnitStep):
            units = find_units(loaded.model, granularity=step.granularity, samples=loaded.samples)
            captured = _captured(loaded, units, values, with_float=step.carries_float)
            trained = TRAINING_COPIES * (step.batch_size or batch) * _largest_unit(loaded, units, values)
            needed.append(captured * math.ceil(len(loaded.data.calib) / workers) + trained)
    return base + max(needed) / MB


def _captured(loaded: JobInputs, units: Sequence[Unit], values: Mapping[str, int], *, with_float: bool) -> int:
    """Return the most bytes of one sample that are captured in front of a unit, of both networks and its targets."""
    plan, most = loaded.plan, 0
    made = {name_of(value) for value in loaded.model.graph.inputs}
    for index, unit in enumerate(units):
        live = {name for later in units[index:] for name in later.inputs if name in made}
        codes = {name for name in live if plan.aliases.get(name, name) in plan.activations}
        quantized = sum(values.get(name, 0) // (FLOAT_BYTES if name in codes else 1) for name in live)
        floats = sum(values.get(name, 0) for name in (*live, *unit.outputs)) if with_float else 0
        most = max(most, quantized + floats)
        made |= set(unit.outputs)
    return most


def _largest_unit(loaded: JobInputs, units: Sequence[Unit], values: Mapping[str, int]) -> int:
    """Return the bytes of one sample of all values that a unit of layers computes, of the largest."""
    names = {node.name: [value.name or "" for value in node.outputs] for node in loaded.model.graph}
    solved = solved_units(units, loaded.plan)
    return max((sum(values.get(name, 0) for node in unit.nodes for name in names[node]) for unit in solved), default=0)
