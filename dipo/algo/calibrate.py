"""Calibration: activations are observed in one pass; ranges, scales and rounded weights follow from that."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from dipo.algo.activation_cache import Batch, StoredRows, read_ahead
from dipo.algo.bench import Bench
from dipo.algo.channel_means import ChannelMeans, split_sums
from dipo.algo.held_out import held_out_samples
from dipo.algo.in_flight import InFlight
from dipo.algo.part_reaches import PartReaches, within
from dipo.algo.reference_weights import rounded
from dipo.graph.accessors import array_of, name_of
from dipo.graph.layers import layers_of
from dipo.graph.plan import Plan, QuantizedModel
from dipo.graph.sample_axis import SampleAxes
from dipo.graph.saturation import Interval
from dipo.graph.torch_module import GraphModule
from dipo.quant.observers import Observer, Statistics
from dipo.quant.ranges import Range, activation_range, qparams_of
from dipo.quant.spec import QParams
from dipo.recipe import CalibConfig


@dataclass(frozen=True)
class Calibration:
    """Statistics of the float network's values over the calibration samples."""

    statistics: dict[str, Statistics]
    """By name of the value: the activations, and the values that other targets would quantize."""
    channel_means: dict[str, ChannelMeans]
    """By name of a layer with a bias: those of its output."""
    extremes: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    """Each sample's smallest and largest value [samples, 2], by name of the value, where samples are few."""


@dataclass(frozen=True)
class Observed:
    """Statistics of one worker's samples; they merge exactly with the others'."""

    statistics: dict[str, Statistics]
    """By name of the activation."""
    channel_sums: dict[str, dict[int, NDArray[np.float64]]]
    """By name of a layer with a bias and index of the batch: sums [2, C + 1] of its output, see `split_sums`."""
    extremes: dict[str, dict[int, NDArray[np.float64]]]
    """By name of the activation and index of the batch: each sample's smallest and largest value [samples, 2]."""

    def merge(self, other: Observed) -> Observed:
        """Return the statistics of both workers' samples."""
        return Observed(
            {
                name: mine.merge(other.statistics[name])
                for name, mine in self.statistics.items()
                if name in other.statistics
            },
            {name: mine | other.channel_sums[name] for name, mine in self.channel_sums.items()},
            {name: mine | other.extremes[name] for name, mine in self.extremes.items() if name in other.extremes},
        )

    def calibration(self) -> Calibration:
        """Return the statistics and channel means; the batches' sums are added in their order, whoever ran them."""
        means = {
            name: ChannelMeans.of(np.sum([parts[index] for index in sorted(parts)], axis=0))
            for name, parts in self.channel_sums.items()
        }
        extremes = {
            name: np.concatenate([parts[index] for index in sorted(parts)]) for name, parts in self.extremes.items()
        }
        return Calibration(self.statistics, means, extremes)


def observe(
    model: ir.Model,
    *,
    plan: Plan,
    batches: Sequence[Batch],
    inputs: Callable[[Batch], Mapping[str, torch.Tensor]],
    device: torch.device,
    held_out: Sequence[int] = (),
    samples: SampleAxes | None = None,
    extremes: bool = False,
    progress: Callable[[int], None] = lambda _: None,
) -> Observed:
    """Run the float network over a worker's batches and collect statistics of its values.

    The held-out samples have channel sums of their own; `extremes` asks for those of each sample.

    Raises:
        UserError: An activation has NaN values.
    """
    watch = _Watch.over(model, plan, held_out=held_out, samples=samples or SampleAxes(), extremes=extremes)
    module = GraphModule(model).to(device).eval()
    done = 0
    # An observer runs on one core: values are looked at side by side, while the network runs on.
    with torch.inference_mode(), InFlight(torch.get_num_threads()) as looks:
        for batch, values in read_ahead(batches, inputs):
            module(values, hook=_Look(watch, batch, looks).hook)
            done += len(batch)
            progress(done)
    return watch.result()


@dataclass(frozen=True, eq=False)
class _Watch:
    """The observers of a network's values."""

    observers: dict[str, Observer]
    """By name of the value."""
    parts: list[PartReaches]
    """Parts whose values count within limits that follow from each other."""
    layers: dict[str, str]
    """Layers with a bias, by name of their output."""
    sums: dict[str, dict[int, NDArray[np.float64]]]
    held_out: Sequence[int]
    samples: SampleAxes
    optional: frozenset[str]
    """Values that only other targets quantize, and cannot where they are NaN."""
    extremes: dict[str, dict[int, NDArray[np.float64]]]
    """See `Observed`; of no value where nobody asks."""
    lost: set[str] = field(default_factory=set)
    """Those of them that were NaN."""

    @staticmethod
    def over(model: ir.Model, plan: Plan, *, held_out: Sequence[int], samples: SampleAxes, extremes: bool) -> _Watch:
        """Return observers without any values yet."""
        biased = (layer for layer in layers_of(model) if layer.name in plan.layers and plan.layers[layer.name].bias)
        layers = {name_of(layer.output): layer.name for layer in biased}
        names = (*plan.activations, *plan.observed)
        return _Watch(
            {name: Observer(name) for name in names},
            PartReaches.of_model(model, plan),
            layers,
            {name: {} for name in layers.values()},
            held_out,
            samples,
            frozenset(plan.observed) - plan.activations.keys(),
            {name: {} for name in names if extremes and samples.get(name) is not None},
        )

    def observe(self, name: str, value: torch.Tensor, reach: Interval, batch: Batch) -> None:
        """Add a batch of a value to its statistics, clipped to what counts of it."""
        if name in self.optional and bool(torch.isnan(value).any()):
            self.lost.add(name)
            return
        value = within(value, reach)
        self.observers[name].update(value)
        if name in self.extremes and value.numel():
            rows = self.samples.of(name).to_rows(value)
            self.extremes[name][batch.index] = extremes_of(rows).double().cpu().numpy()

    def add(self, name: str, value: torch.Tensor, batch: Batch) -> None:
        """Add a batch of a layer's output to its sums."""
        sums = split_sums(value, batch, self.held_out, axis=self.samples.get(name))
        self.sums[self.layers[name]][batch.index] = sums.cpu().numpy()

    def result(self) -> Observed:
        """Return the statistics of all values so far."""
        found = {name: each.result() for name, each in self.observers.items() if name not in self.lost}
        return Observed(found, self.sums, {name: own for name, own in self.extremes.items() if own})


class _Look:
    """A look at one batch's values, as they come."""

    def __init__(self, watch: _Watch, batch: Batch, looks: InFlight) -> None:
        self._watch, self._batch, self._looks = watch, batch, looks
        self._waiting = [(part, set(part.waits_for), dict[str, torch.Tensor]()) for part in watch.parts]
        self._within = {name for part in watch.parts for name in part.part.values}

    def hook(self, name: str, value: torch.Tensor) -> torch.Tensor:
        """Look at a value; one that counts within limits waits for those that these follow from."""
        if name in self._watch.layers:
            self._looks.run((name, "sum"), value, lambda: self._watch.add(name, value, self._batch))
        if name in self._watch.observers and name not in self._within:
            self._looks.run(name, value, lambda: self._watch.observe(name, value, Interval(), self._batch))
        for part, missing, come in self._waiting:
            if name in missing:
                missing.remove(name)
                come[name] = value
                if not missing:
                    self._observe_part(part, dict(come))
                    come.clear()
        return value

    def _observe_part(self, part: PartReaches, values: Mapping[str, torch.Tensor]) -> None:
        reaches = part.reaches(values)
        for name, reach in reaches.items():
            if name in self._watch.observers:
                look = functools.partial(self._watch.observe, name, values[name], reach, self._batch)
                self._looks.run(name, values[name], look)


@dataclass(frozen=True)
class ObserveBatches:
    """The task to observe some batches."""

    name: ClassVar[str] = "observe"
    batches: Sequence[Batch]
    extremes: bool = False
    """Whether each sample's smallest and largest values are asked for."""

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
            extremes=self.extremes,
            progress=bench.progress,
        )


def extremes_of(rows: torch.Tensor) -> torch.Tensor:
    """Return the smallest and the largest finite value of each row [rows, 2]; zeros of a row that has none."""
    found = torch.stack(torch.aminmax(rows, dim=1), dim=1)
    if not bool(torch.isfinite(found).all()):
        finite = torch.isfinite(rows)
        low, high = (torch.where(finite, rows, end) for end in (torch.inf, -torch.inf))
        found = torch.nan_to_num(torch.stack((low.amin(1), high.amax(1)), dim=1), posinf=0.0, neginf=0.0)
    return found


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
    layers = {}
    for name, layer in plan.layers.items():
        weight = array_of(model.graph.initializers[layer.weight]).astype(np.float32)
        bias = None if layer.bias is None else array_of(model.graph.initializers[layer.bias]).astype(np.float32)
        layers[name] = replace(rounded(weight, bias, layer=layer, calib=cfg), target=None)
    recurrent = {
        name: replace(rounded(array_of(model.graph.initializers[name]), None, layer=weight, calib=cfg), target=None)
        for name, weight in plan.recurrent.items()
    }
    return QuantizedModel(layers=layers, activations=activation_grids(plan, ranges), recurrent=recurrent)


def activation_grids(plan: Plan, ranges: Mapping[str, Range]) -> dict[str, QParams]:
    """Return the scales and zero points of all quantized activations, by name."""
    found = {name: qparams_of(ranges[name], spec) for name, spec in plan.activations.items()}
    return found | {value: found[source] for value, source in plan.aliases.items()}
