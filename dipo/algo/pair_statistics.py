"""Statistics over both networks' values that all workers add up, batch by batch in the batches' order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from dipo.algo.activation_cache import Batch, CachedActivation, Rows
from dipo.algo.channel_means import sum_and_count
from dipo.algo.held_out import places
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


def held_out_rows(pair: NetworkPair, held_out: Sequence[int]) -> list[tuple[Batch, Rows]]:
    """Return where the pair's captures hold the held-out samples of each batch that has any.

    Args:
        pair: The pair.
        held_out: Indices of the held-out samples, rising.
    """
    own = [
        (batch, [rows.start + place for place in places(batch, held_out)])
        for batch, rows in zip(pair.batches, pair.rows, strict=True)
    ]
    return [(batch, rows) for batch, rows in own if rows]


def fitted_rows(pair: NetworkPair, held_out: Sequence[int]) -> list[tuple[Batch, Rows]]:
    """Return where the pair's captures hold all other samples of each batch that has any; see `held_out_rows`."""
    result: list[tuple[Batch, Rows]] = []
    for batch, rows in zip(pair.batches, pair.rows, strict=True):
        own = set(places(batch, held_out))
        fitted = [row for place, row in enumerate(range(rows.start, rows.stop)) if place not in own]
        if fitted:
            result.append((batch, fitted if own else rows))
    return result


def output_errors(
    pair: NetworkPair, unit: Unit, targets: Mapping[str, CachedActivation], chosen: Sequence[tuple[Batch, Rows]]
) -> dict[str, float]:
    """Return the sum of the squared differences of each of the unit's outputs from the float one, by name.

    For outputs that are no floats count those that they are made from.

    Args:
        pair: Both networks, in front of the unit.
        unit: The unit.
        targets: Its outputs in the float network.
        chosen: Batches to look at, each with the places of the samples to look at. All workers' add up.
    """
    nodes = pair.nodes_of(unit)
    module, hook, weights = pair.module(nodes, pair.fitted(unit)), pair.hook(nodes), pair.weights(unit.layers)
    nothing = torch.zeros(len(module.outputs), dtype=torch.float64, device=pair.device)
    sums = {batch.index: nothing for batch in pair.batches}
    for batch, rows in chosen:
        made = module(pair.read(pair.q, module.inputs, rows), hook=hook, constants=weights)
        errors = [_squared_error(hook(name, made[name]), targets[name].at(rows)) for name in module.outputs]
        sums[batch.index] = torch.stack(errors)
    total = pair.collectives.all_reduce_ordered(sums, owners=pair.owners)
    return dict(zip(module.outputs, total.tolist(), strict=True))


def _squared_error(q: torch.Tensor, fp: torch.Tensor) -> torch.Tensor:
    """Return the sum of the squared differences, float64, of finite float elements."""
    return torch.where(torch.isinf(fp), 0, q - fp).float().square().sum().double()


def channel_means(
    pair: NetworkPair,
    module: GraphModule,
    captures: Mapping[str, CachedActivation],
    chosen: Sequence[tuple[Batch, Rows]],
    *,
    constants: Mapping[str, torch.Tensor],
    hook: Hook | None,
) -> dict[str, np.ndarray]:
    """Return the channel means of the module's outputs over the chosen batches of all workers; float64 [C] each."""
    collected: dict[str, dict[int, torch.Tensor]] = {name: {} for name in module.outputs}
    for batch, rows in chosen:
        for name, value in module(pair.read(captures, module.inputs, rows), hook=hook, constants=constants).items():
            collected[name][batch.index] = sum_and_count(value)
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
            collected[name][batch.index] = torch.stack([sum_and_count(doubled), sum_and_count(doubled.square())])
    result = {}
    for name, parts in collected.items():
        total = pair.collectives.all_reduce_ordered(parts, owners=pair.owners).cpu().numpy()
        mean, square = total[:, :-1] / total[:, -1:]
        result[name] = ChannelMoments(mean, np.maximum(square - mean**2, 0))
    return result


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
