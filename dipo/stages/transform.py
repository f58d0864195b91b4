"""The algorithm's steps: each walks through the units on what the one before left."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dipo.algo.calibrate import Observed
from dipo.algo.captures import cut
from dipo.cluster.group import Group
from dipo.cluster.layout import shards_of
from dipo.cluster.pool import Pool
from dipo.cluster.worker import TimedResult
from dipo.config import Config
from dipo.graph.plan import QuantizedModel
from dipo.graph.units import Unit, find_units
from dipo.report.report import UnitRow
from dipo.report.terminal import Terminal
from dipo.run import RunFolder
from dipo.stages.clock import Clock
from dipo.stages.load import Loaded

log = logging.getLogger("dipo")


@dataclass(frozen=True)
class Transformed:
    """What the steps made of the network."""

    quantized: QuantizedModel
    units: list[UnitRow]


def transform(
    config: Config,
    loaded: Loaded,
    *,
    quantized: QuantizedModel,
    observed: Observed,
    pool: Pool,
    folder: RunFolder,
    clock: Clock,
    terminal: Terminal,
) -> Transformed:
    """Runs `algo.steps` in their order; each finished unit is in the run folder before the next begins."""
    rows: list[UnitRow] = []
    for step in config.algo.steps:
        with clock.stage(step):
            walk = _Walk(config, loaded, step, quantized, observed, pool, terminal)
            for unit in walk.units:
                timed = walk.take(unit)
                if timed.result.layers:
                    rows.append(_row(unit, step, timed, config))
                    folder.write_arrays(f"units/{step}-{unit.index:03d}.safetensors", _arrays(timed))
            quantized = walk.end()
    return Transformed(quantized, rows)


class _Walk:
    """One step's way through the units, all workers in lockstep."""

    def __init__(
        self,
        config: Config,
        loaded: Loaded,
        step: str,
        quantized: QuantizedModel,
        observed: Observed,
        pool: Pool,
        terminal: Terminal,
    ) -> None:
        self.config, self.loaded, self.pool, self.terminal = config, loaded, pool, terminal
        self.trains = step == "reconstruct"
        self.units = find_units(loaded.model, granularity=config.algo.unit if self.trains else "layer")
        self.solved = [unit for unit in self.units if any(name in loaded.plan.layers for name in unit.layers)]
        self.fp_means = {} if self.trains else observed.channel_means()
        self.layers, self.activations = dict(quantized.layers), dict(quantized.activations)
        shards = shards_of(
            cut(len(loaded.data.calib), config.data.batch_size),
            workers=pool.size,
            pieces=config.cluster.grad_shards or pool.size,
            batch_size=config.algo.batch_size,
        )
        self.size = len(shards)
        _join(pool, self.size)
        pool.call("start_sweep", [(self.units, quantized, shard) for shard in shards], with_float=self.trains)
        if self.trains:
            self._prepare_kernels()

    def _prepare_kernels(self) -> None:
        reason = next(filter(None, self.pool.call("prepare_kernels", [()] * self.size)), None)
        if reason is not None:
            log.warning("no compiled kernels: %s", reason)
            self.terminal.say(
                "no compiled kernels, reconstruction runs two to three times slower (the reason is in dipo.log)"
            )

    def take(self, unit: Unit) -> TimedResult:
        """The next unit; a unit without layers is only passed through."""
        timed = self._reconstruct(unit) if self.trains else self._correct(unit)
        self.layers |= timed.result.layers
        self.activations |= timed.result.activations
        return timed

    def end(self) -> QuantizedModel:
        """Lets the workers' captures go; the network as it now is."""
        self.pool.call("end_sweep", [()] * self.size)
        shared = {value: self.activations[source] for value, source in self.loaded.plan.shared.items()}
        return QuantizedModel(self.layers, self.activations | shared)

    def _reconstruct(self, unit: Unit) -> TimedResult:
        seed = int(np.random.SeedSequence([self.config.seed, unit.index]).generate_state(1)[0])
        arguments = [(unit, self.config.algo, seed)] * self.size
        if unit not in self.solved:
            return self._first("reconstruct", arguments)
        title = f"unit {self.solved.index(unit) + 1}/{len(self.solved)} {unit.name}"
        with self.terminal.task(title, self.config.algo.iters, "steps") as progress:
            timed = self._first("reconstruct", arguments, progress=progress, lockstep=True)
        log.info("%s: loss %.4g -> %.4g, %.2f s", title, timed.result.loss_first, timed.result.loss_last, timed.seconds)
        return timed

    def _correct(self, unit: Unit) -> TimedResult:
        means: Mapping[str, NDArray[np.float64]] = {
            name: self.fp_means[name] for name in unit.layers if name in self.fp_means
        }
        timed = self._first("correct_bias", [(unit, means)] * self.size)
        log.info("unit %s: bias corrected, %.2f s", unit.name, timed.seconds)
        return timed

    def _first(self, method: str, arguments: list[tuple[Any, ...]], **how: Any) -> TimedResult:
        """What the first worker answers; the others, in lockstep, answer the same."""
        results: list[TimedResult] = self.pool.call(method, arguments, **how)
        return results[0]


def _join(pool: Pool, size: int) -> None:
    """Makes the first `size` workers a group."""
    if size == 1:
        pool.call("join", [(None,)])
        return
    (address,) = pool.call("address", [()])
    pool.call("join", [(Group(rank, size, address),) for rank in range(size)])


def _row(unit: Unit, step: str, timed: TimedResult, config: Config) -> UnitRow:
    result = timed.result
    return UnitRow(
        name=unit.name,
        step=step,
        layers=list(unit.layers),
        inputs=list(unit.inputs),
        outputs=list(unit.outputs),
        steps=config.algo.iters if step == "reconstruct" else 0,
        loss={"first": result.loss_first, "last": result.loss_last},
        bias_corrected=result.bias_corrected,
        seconds=timed.seconds,
    )


def _arrays(timed: TimedResult) -> dict[str, NDArray[Any]]:
    """A unit's result: codes in the narrowest type, scales, zero points, biases."""
    arrays: dict[str, NDArray[Any]] = {}
    for name, layer in timed.result.layers.items():
        narrow = (
            np.uint8
            if layer.qparams.qmin >= 0 and layer.qparams.qmax <= 255
            else np.int8
            if layer.qparams.qmax <= 127
            else np.int32
        )
        arrays |= {
            f"{name}/codes": layer.codes.astype(narrow),
            f"{name}/scale": layer.qparams.scale,
            f"{name}/zero_point": layer.qparams.zero_point,
        }
        if layer.bias is not None:
            arrays[f"{name}/bias"] = layer.bias
    for name, qparams in timed.result.activations.items():
        arrays |= {f"{name}/act_scale": qparams.scale, f"{name}/act_zero_point": qparams.zero_point}
    return arrays
