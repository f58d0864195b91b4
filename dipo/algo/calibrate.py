"""Calibration: activations are observed in one pass; ranges, scales and rounded weights follow from that."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence, Set
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from dipo.algo.activation_cache import Batch, StoredRows, read_ahead
from dipo.algo.bench import Bench
from dipo.algo.channel_means import ChannelMeans, split_sums
from dipo.algo.held_out import held_out_samples
from dipo.algo.reference_weights import rounded
from dipo.graph.accessors import array_of, name_of
from dipo.graph.layers import layers_of
from dipo.graph.plan import Plan, QuantizedModel
from dipo.graph.sample_axis import SampleAxes
from dipo.graph.torch_module import GraphModule
from dipo.quant.observers import Observer, Statistics
from dipo.quant.ranges import Range, activation_range, qparams_of
from dipo.recipe import CalibConfig


@dataclass(frozen=True)
class Calibration:
    """Statistics of the float network's values over the calibration samples."""

    statistics: dict[str, Statistics]
    """By name of the value: the activations, and the values that other targets would quantize."""
    channel_means: dict[str, ChannelMeans]
    """By name of a layer with a bias: those of its output."""


@dataclass(frozen=True)
class Observed:
    """Statistics of one worker's samples; they merge exactly with the others'."""

    statistics: dict[str, Statistics]
    """By name of the activation."""
    channel_sums: dict[str, dict[int, NDArray[np.float64]]]
    """By name of a layer with a bias and index of the batch: sums [2, C + 1] of its output, see `split_sums`."""

    def merge(self, other: Observed) -> Observed:
        """Return the statistics of both workers' samples."""
        return Observed(
            {
                name: mine.merge(other.statistics[name])
                for name, mine in self.statistics.items()
                if name in other.statistics
            },
            {name: mine | other.channel_sums[name] for name, mine in self.channel_sums.items()},
        )

    def calibration(self) -> Calibration:
        """Return the statistics and channel means; the batches' sums are added in their order, whoever ran them."""
        means = {
            name: ChannelMeans.of(np.sum([parts[index] for index in sorted(parts)], axis=0))
            for name, parts in self.channel_sums.items()
        }
        return Calibration(self.statistics, means)


def observe(
    model: ir.Model,
    *,
    plan: Plan,
    batches: Sequence[Batch],
    inputs: Callable[[Batch], Mapping[str, torch.Tensor]],
    device: torch.device,
    held_out: Sequence[int] = (),
    samples: SampleAxes | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> Observed:
    """Run the float network over a worker's batches and collect statistics of its values.

    The held-out samples have channel sums of their own.

    Raises:
        UserError: An activation has NaN or infinite values.
    """
    samples = samples or SampleAxes()
    observers = {name: Observer(name) for name in (*plan.activations, *plan.observed)}
    biased = (layer for layer in layers_of(model) if layer.name in plan.layers and plan.layers[layer.name].bias)
    outputs = {name_of(layer.output): layer.name for layer in biased}
    sums: dict[str, dict[int, NDArray[np.float64]]] = {name: {} for name in outputs.values()}
    lost: set[str] = set()
    """Values that another target would quantize and cannot: those with masks of -inf, say, have no range."""
    module = GraphModule(model).to(device).eval()

    def look(seen: tuple[Batch, str, torch.Tensor]) -> None:
        batch, name, value = seen
        if name in observers and (name in plan.activations or bool(torch.isfinite(value).all())):
            observers[name].update(value)
        elif name in observers:
            lost.add(name)
        if name in outputs:
            sums[outputs[name]][batch.index] = split_sums(value, batch, held_out, axis=samples.get(name)).cpu().numpy()

    done = 0
    looking: list[Future[None]] = []
    # An observer runs on one core: a batch's values are looked at side by side, while the next batch passes through the
    # network; never two of them by one observer.
    with torch.inference_mode(), ThreadPoolExecutor(torch.get_num_threads()) as threads:
        for batch, values in read_ahead(batches, inputs):
            seen: list[tuple[Batch, str, torch.Tensor]] = []
            module(values, hook=functools.partial(_collect, seen, batch, observers.keys() | outputs.keys()))
            for future in looking:
                future.result()
            looking = [threads.submit(look, value) for value in seen]
            done += len(batch)
            progress(done)
        for future in looking:
            future.result()
    statistics = {name: observer.result() for name, observer in observers.items() if name not in lost}
    return Observed(statistics, sums)


@dataclass(frozen=True)
class ObserveBatches:
    """The task to observe some batches."""

    name: ClassVar[str] = "observe"
    batches: Sequence[Batch]

    def run(self, bench: Bench, *stored: StoredRows) -> Observed:
        """Run the float network over the batches."""
        del stored
        return observe(
            bench.model,
            plan=bench.plan,
            batches=self.batches,
            inputs=bench.calib_inputs,
            device=bench.device,
            held_out=held_out_samples(len(bench.calib)),
            samples=bench.samples,
            progress=bench.progress,
        )


def _collect(
    seen: list[tuple[Batch, str, torch.Tensor]], batch: Batch, wanted: Set[str], name: str, value: torch.Tensor
) -> torch.Tensor:
    if name in wanted:
        seen.append((batch, name, value))
    return value


def activation_ranges(plan: Plan, statistics: Mapping[str, Statistics], *, cfg: CalibConfig) -> dict[str, Range]:
    """Return the ranges of the quantized activations by name, from their statistics.

    Raises:
        UserError: An activation has no statistics.
    """
    return {
        name: spec.fixed
        or activation_range(statistics[name], spec, method=cfg.method, percentile=cfg.percentile, name=name)
        for name, spec in plan.activations.items()
    }


def quantize_model(model: ir.Model, *, plan: Plan, ranges: Mapping[str, Range], cfg: CalibConfig) -> QuantizedModel:
    """Return the scales that follow from the ranges, and every weight rounded to the nearest code."""
    activations = {name: qparams_of(ranges[name], spec) for name, spec in plan.activations.items()}
    activations |= {value: activations[source] for value, source in plan.aliases.items()}
    layers = {}
    for name, layer in plan.layers.items():
        weight = array_of(model.graph.initializers[layer.weight]).astype(np.float32)
        bias = None if layer.bias is None else array_of(model.graph.initializers[layer.bias]).astype(np.float32)
        layers[name] = replace(rounded(weight, bias, layer=layer, calib=cfg), target=None)
    return QuantizedModel(layers=layers, activations=activations)
