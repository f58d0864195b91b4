"""Statistics over both networks' values that all workers add up, batch by batch in the batches' order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from dipo.algo.activation_cache import Batch, CachedActivation, channel_sum
from dipo.algo.network_pair import NetworkPair
from dipo.graph.accessors import name_of
from dipo.graph.torch_module import GraphModule, Hook
from dipo.graph.units import Unit


@dataclass(frozen=True, eq=False)
class ChannelMoments:
    """Means and variances of a value's channels, over samples and positions; float64 [C] each."""

    mean: np.ndarray
    var: np.ndarray
    """Mean squared distance from the mean: divided by the number of elements, not by one less."""


def output_error(
    pair: NetworkPair, unit: Unit, targets: Mapping[str, CachedActivation], chosen: Sequence[tuple[Batch, slice]]
) -> float:
    """Return the sum of the squared differences of the unit's outputs from the float ones, over the chosen batches.

    For outputs that are no floats count those that they are made from.
    """
    nodes = pair.nodes_of(unit)
    module, hook, weights = pair.module(nodes, pair.fitted(unit)), pair.hook(nodes), pair.weights(unit.layers)
    sums = {batch.index: torch.zeros(1, dtype=torch.float64, device=pair.device) for batch in pair.batches}
    for batch, rows in chosen:
        made = module(pair.read(pair.q, module.inputs, rows), hook=hook, constants=weights)
        for name, value in made.items():
            seen, wanted = hook(name, value).float(), targets[name].rows(rows.start, rows.stop).float()
            sums[batch.index] += (seen - wanted).square().sum().double()
    return float(pair.collectives.all_reduce_ordered(sums, owners=pair.owners))


def channel_means(
    pair: NetworkPair,
    module: GraphModule,
    captures: Mapping[str, CachedActivation],
    chosen: Sequence[tuple[Batch, slice]],
    *,
    constants: Mapping[str, torch.Tensor],
    hook: Hook | None,
) -> dict[str, np.ndarray]:
    """Return the channel means of the module's outputs over the chosen batches of all workers; float64 [C] each."""
    collected: dict[str, dict[int, torch.Tensor]] = {name: {} for name in module.outputs}
    for batch, rows in chosen:
        for name, value in module(pair.read(captures, module.inputs, rows), hook=hook, constants=constants).items():
            collected[name][batch.index] = _sum_and_count(value)
    return {name: _mean(pair, parts, _num_channels(pair, name)) for name, parts in collected.items()}


def channel_moments(
    pair: NetworkPair,
    module: GraphModule,
    captures: Mapping[str, CachedActivation],
    *,
    constants: Mapping[str, torch.Tensor],
    hook: Hook | None,
) -> dict[str, ChannelMoments]:
    """Return the channel means and variances of the module's outputs over all batches of all workers."""
    collected: dict[str, dict[int, torch.Tensor]] = {name: {} for name in module.outputs}
    for batch, inputs in zip(pair.batches, pair.reads(captures, module), strict=True):
        for name, value in module(inputs, hook=hook, constants=constants).items():
            # In double precision, the square of the mean may be taken off that of the values.
            doubled = value.double()
            collected[name][batch.index] = torch.stack([_sum_and_count(doubled), _sum_and_count(doubled.square())])
    result = {}
    for name, parts in collected.items():
        total = pair.collectives.all_reduce_ordered(parts, owners=pair.owners).cpu().numpy()
        mean, square = total[:, :-1] / total[:, -1:]
        result[name] = ChannelMoments(mean, np.maximum(square - mean**2, 0))
    return result


def mean_of(pair: NetworkPair, outs: Mapping[int, torch.Tensor]) -> np.ndarray:
    """Return the channel means of a value over all batches of all workers; float64 [C]."""
    return _mean(pair, {index: _sum_and_count(out) for index, out in outs.items()}, next(iter(outs.values())).shape[1])


def _mean(pair: NetworkPair, parts: Mapping[int, torch.Tensor], num_channels: int) -> np.ndarray:
    """Return the mean over all workers from sums and counts of some of this worker's batches; the rest add nothing."""
    nothing = torch.zeros(num_channels + 1, dtype=torch.float64, device=pair.device)
    every = {batch.index: parts.get(batch.index, nothing) for batch in pair.batches}
    total = pair.collectives.all_reduce_ordered(every, owners=pair.owners).cpu().numpy()
    return np.asarray(total[:-1] / total[-1])


def _num_channels(pair: NetworkPair, output: str) -> int:
    return next(
        len(layer.bias)
        for name, layer in pair.layers.items()
        if layer.bias is not None and name_of(pair.nodes[name].outputs[0]) == output
    )


def _sum_and_count(value: torch.Tensor) -> torch.Tensor:
    """Return the channel sums followed by the number of elements in a channel; float64 [C + 1]."""
    count = torch.tensor([value.numel() / value.shape[1]], dtype=torch.float64, device=value.device)
    return torch.cat([channel_sum(value), count])
