"""Cross-layer equalization: a channel's weights get the same magnitude in the layers that write it and read it.

DFQ (arXiv:1906.04721), section 4.1. The network's function stays what it is: scales pass through Relu and the like, and
a Clip gets a limit for each channel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass

from dipo.algo.bias_absorption import Absorbed, absorb_bias_of, amounts_of, set_constant
from dipo.algo.layer_pairs import Intermediate, LayerPair, Skipped, find_chains, find_layer_pairs
from dipo.graph import operators
from dipo.graph.accessors import array_of, node_name
from dipo.graph.batch_norm import batch_norm_of, set_batch_norm
from dipo.graph.constants import fresh_name, replace_input
from dipo.graph.layers import Layer, layers_of
from dipo.graph.limits import clip_limits
from dipo.graph.operators import Operand

TOLERANCE = 1e-4
"""Largest change of a scale's logarithm in a sweep that counts as none."""
MAX_SWEEPS = 1000
LIMIT = 8.0
"""Largest scale over the median of all channels, and the inverse of the smallest, where nothing else is asked."""
_LEAST_REACH = 1e-3
"""Least reach of a channel, over the largest, that counts."""


@dataclass(frozen=True)
class Chain:
    """Layers that were equalized together: two, or more with depthwise ones between them."""

    layers: tuple[str, ...]
    min_scale: float
    max_scale: float
    """The smallest and the largest factor that channels between them were divided by."""
    num_zero: int
    """Number of channels that have only zero weights in one of the layers, and were left alone but for the limit."""


@dataclass(frozen=True)
class Equalized:
    """An equalized network and a record of the changes."""

    model: ir.Model
    """Layers, weights, biases and values have the names that they had; a Clip may be a Relu and a Min."""
    chains: list[Chain]
    absorbed: list[Absorbed]
    refusals: list[Skipped]
    """Layers without a partner downstream, and pairs whose biases were left."""
    sweeps: int
    """Number of sweeps over all chains until nothing changed."""
    change: float
    """Largest change of a scale's logarithm in the last sweep."""


def equalize(
    model: ir.Model,
    *,
    absorb_bias: bool = False,
    seen_min: Mapping[str, NDArray[np.floating]] | None = None,
    reaches: Mapping[str, NDArray[np.floating]] | None = None,
    exact: bool = False,
    limit: float = LIMIT,
    max_sweeps: int = MAX_SWEEPS,
) -> Equalized:
    """Equalize all layers that have a partner, to convergence.

    Channel i of a pair is divided by s_i = sqrt(r1_i r2_i) / r2_i in the first layer and multiplied by it in the
    second, r being the largest |weight| of the channel (DFQ, eq. 11). Of a chain over depthwise layers, all ranges of
    a channel become their geometric mean. With `reaches`, r1 is the geometric mean of the weights' range and of how far
    the values between the two reach: a pair then evens out the activations too.

    Args:
        model: A model that `graph.load` has normalised; it is left as it is.
        absorb_bias: Move what no activation cuts off from biases into the next layers' (DFQ, section 4.1.3).
        seen_min: Least numbers [C] of each layer's output on samples, in `model`, by name of the layer: no more is
            absorbed than leaves the function on those samples as it is.
        reaches: Largest magnitudes [C] of the values that the layer's partner reads, by name of the layer; for all
            layers or none.
        limit: Largest scale of a channel over the median of all, and the inverse of the smallest: a channel with hardly
            any weights may carry a large bias, and would blow up the range of its activations.
        exact: Take only powers of two as scales: the network's outputs stay the same to the bit.
        max_sweeps: Sweeps over all chains at most.
    """
    links, refusals = find_layer_pairs(model)
    chains = find_chains(links) if reaches is None else [[link] for link in links]
    scales = _Scales(model, links, limit=limit, reaches=reaches or {})
    sweeps, change = 0, float("inf")
    while chains and sweeps < max_sweeps and change > TOLERANCE:
        change = max(scales.improve(chain) for chain in chains)
        sweeps += 1
    factors_by_layer = scales.found(exact=exact)
    changed = model.clone()
    layers = {layer.name: layer for layer in layers_of(changed)}
    nodes = {node_name(node): node for node in changed.graph}
    _apply(changed, layers, nodes, links, factors_by_layer)
    absorbed: list[Absorbed] = []
    for link in links:
        factors = factors_by_layer[link.first.name]
        amounts = amounts_of(link, _floor(link.first, seen_min or {}), factors) if absorb_bias else None
        if isinstance(amounts, Skipped):
            refusals.append(amounts)
            amounts = None
        if amounts is not None:
            absorbed.append(absorb_bias_of(link, layers, amounts))
        _limit(changed, nodes, link, factors, np.zeros_like(factors) if amounts is None else amounts)
    RemoveUnusedNodesPass()(changed)
    done = [_told(chain, factors_by_layer, scales.num_zero(chain)) for chain in chains]
    return Equalized(changed, done, absorbed, refusals, sweeps, change if chains else 0.0)


def _has_limits(node: ir.Node) -> bool:
    """Return whether the node clips at limits that have to be scaled along."""
    operator = operators.of(node)
    return operator.clips and not operator.homogeneous


def _told(chain: Sequence[LayerPair], scales: Mapping[str, NDArray[np.float64]], num_zero: int) -> Chain:
    layers = [link.first.name for link in chain]
    both = np.concatenate([scales[name] for name in layers])
    return Chain((*layers, chain[-1].second.name), float(both.min()), float(both.max()), num_zero)


class _Scales:
    """The magnitudes of all weights, and the factors that they have been scaled by so far."""

    def __init__(
        self, model: ir.Model, links: Sequence[LayerPair], *, limit: float, reaches: Mapping[str, NDArray[np.floating]]
    ) -> None:
        self._limit, self._reaches = limit, reaches
        self._magnitudes: dict[Layer, NDArray[np.float32]] = {}
        for layer in layers_of(model):
            if any(layer in (link.first, link.second) for link in links):
                self._magnitudes[layer] = np.abs(layer.layout.filters(layer.array)).max(axis=3)
        self._logs = {link: np.zeros(self._outputs(link.first).size) for link in links}

    def improve(self, chain: Sequence[LayerPair]) -> float:
        """Equalize the ranges of a chain's layers; return the largest change of a scale's logarithm.

        s_j = r_0 ... r_(j-1) / g^j for the j-th values between layers, g = (r_0 ... r_k)^(1 / (k + 1)).
        """
        ranges = np.stack(self._ranges(chain)).astype(np.float64)
        usable = (ranges > 0).all(axis=0)
        logs = np.log(np.where(usable, ranges, 1.0))
        steps = (np.cumsum(logs, axis=0) - logs.mean(axis=0) * np.arange(1, len(logs) + 1)[:, None])[:-1]
        largest, bound = 0.0, np.log(self._limit)
        for link, wish in zip(chain, steps, strict=True):
            wanted = self._logs[link] + wish
            middle = np.median(wanted)
            step = np.clip(wanted, middle - bound, middle + bound) - self._logs[link]
            self._logs[link] += step
            factors = np.exp(step).astype(np.float32)
            for_outputs, for_inputs = _shaped(link, factors, self._magnitudes)
            self._magnitudes[link.first] /= for_outputs
            self._magnitudes[link.second] *= for_inputs
            largest = max(largest, float(np.abs(step).max(initial=0.0)))
        return largest

    def num_zero(self, chain: Sequence[LayerPair]) -> int:
        """Return the number of the chain's channels that cannot be scaled."""
        return int((np.stack(self._ranges(chain)) == 0).any(axis=0).sum())

    def found(self, *, exact: bool) -> dict[str, NDArray[np.float64]]:
        """Return the factors [C] that each layer's output channels are divided by, by name of the layer."""
        return {
            link.first.name: np.exp2(np.rint(logs / np.log(2))) if exact else np.exp(logs)
            for link, logs in self._logs.items()
        }

    def _ranges(self, chain: Sequence[LayerPair]) -> list[NDArray[np.floating]]:
        last = chain[-1]
        inputs = self._magnitudes[last.second].max(axis=1).reshape(-1, last.repeat).max(axis=1)
        return [*(self._made(link) for link in chain), inputs]

    def _made(self, link: LayerPair) -> NDArray[np.floating]:
        """Return the ranges [C] of a link's first layer: its weights', averaged with its output's reach where known."""
        outputs, reach = self._outputs(link.first), self._reaches.get(link.first.name)
        if reach is None:
            return outputs
        # What hardly reaches anywhere needs no more codes than that.
        reach = np.maximum(reach, reach.max(initial=0.0) * _LEAST_REACH) / np.exp(self._logs[link])
        both: NDArray[np.floating] = np.sqrt(outputs * reach)
        return both

    def _outputs(self, layer: Layer) -> NDArray[np.float32]:
        largest: NDArray[np.float32] = self._magnitudes[layer].max(axis=2).reshape(-1)
        return largest


def _shaped(
    link: LayerPair, factors: NDArray[np.floating], filters: Mapping[Layer, NDArray[np.floating]]
) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """Return the factors of the channels between two layers, shaped for the first's filters and for the second's."""
    outputs = factors.reshape(filters[link.first].shape[0], -1, 1)
    inputs = np.repeat(factors, link.repeat).reshape(filters[link.second].shape[0], 1, -1)
    return outputs, inputs


def _floor(layer: Layer, seen_min: Mapping[str, NDArray[np.floating]]) -> NDArray[np.float64] | None:
    """Return values [C] that a layer's output hardly falls below; None where they are not known.

    They are beta less 3 standard deviations, and no more than the least output on samples.
    """
    norm = batch_norm_of(layer.node)
    if norm is None:
        return None
    floor: NDArray[np.float64] = norm.beta.astype(np.float64) - 3 * norm.std
    seen = seen_min.get(layer.name)
    return floor if seen is None else np.minimum(floor, seen)


def _apply(
    model: ir.Model,
    layers: Mapping[str, Layer],
    nodes: Mapping[str, ir.Node],
    links: Sequence[LayerPair],
    scales: Mapping[str, NDArray[np.float64]],
) -> None:
    """Rescale weights, biases and constants between layers, all of which belong to the model alone."""
    names = dict.fromkeys(layer.name for link in links for layer in (link.first, link.second))
    weights = {layers[name]: layers[name].array.astype(np.float64, order="C") for name in names}
    for link in links:
        first, second = layers[link.first.name], layers[link.second.name]
        factors = scales[link.first.name]
        views = {layer: layer.layout.filters(weights[layer]) for layer in (first, second)}
        for_outputs, for_inputs = _shaped(LayerPair(first, second, (), link.repeat), factors, views)
        views[first] /= for_outputs[..., None]
        views[second] *= for_inputs[..., None]
        norm = batch_norm_of(first.node)
        if first.bias is not None:
            set_constant(first.bias, array_of(first.bias) / factors)
        if norm is not None:
            set_batch_norm(first.node, norm.divided(factors))
        for passed in link.between:
            _rescale_constant(model, nodes[node_name(passed.node)], passed, factors)
    for layer, weight in weights.items():
        set_constant(layer.weight, weight)


def _rescale_constant(model: ir.Model, node: ir.Node, passed: Intermediate, factors: NDArray[np.float64]) -> None:
    """Scale a constant that is added between two layers like the value that it is added to."""
    if operators.of(node).operand is not Operand.SUMMAND:
        return
    index = next(i for i, value in enumerate(node.inputs) if value is not None and value.const_value is not None)
    value = node.inputs[index]
    assert value is not None
    scaled = (array_of(value) / passed.along(factors)).astype(np.float32)
    replace_input(model, node, index, f"{value.name}_scaled", scaled)


def _limit(
    model: ir.Model,
    nodes: Mapping[str, ir.Node],
    link: LayerPair,
    scales: NDArray[np.float64],
    taken: NDArray[np.float64],
) -> None:
    """Give the Clips of a link limits for each channel, less what was absorbed, where a channel was changed."""
    if (scales == 1).all() and not taken.any():
        return
    for passed in link.between:
        limits = clip_limits(passed.node) if _has_limits(passed.node) else None
        if limits is not None:
            low, high = (limit / scales - taken for limit in (limits.low, limits.high))
            # What was absorbed never reaches this limit: a Relu does, which is cheaper.
            low = np.zeros_like(low) if limits.low == 0 else low
            _split_clip(model, nodes[node_name(passed.node)], passed.along(low), passed.along(high))


def _split_clip(model: ir.Model, clip: ir.Node, low: NDArray[np.floating], high: NDArray[np.floating]) -> None:
    """Replace a Clip by a Relu, or a Max, and a Min; the last of them makes the value of the Clip's name."""
    source, made = clip.inputs[0], clip.outputs[0]
    assert source is not None
    steps: list[tuple[str, NDArray[np.floating] | None]] = []
    if np.isfinite(low).any():
        steps.append(("Max", low) if low.any() else ("Relu", None))
    if np.isfinite(high).any():
        steps.append(("Min", high))
    taken = {node_name(node) for node in model.graph}
    taken |= {value.name for node in model.graph for value in node.outputs if value.name}
    name, new = node_name(clip), []
    for op_type, limits in steps:
        node = ir.node(op_type, [source], name=name)
        new.append(node)
        source = node.outputs[0]
        source.name, source.shape, source.type = fresh_name(f"{made.name}_{op_type}", taken), made.shape, made.type
        name = fresh_name(f"{node_name(clip)}_limit", taken)
        if limits is not None:
            node.resize_inputs(2)
    ir.convenience.replace_nodes_and_values(model.graph, clip, [clip], new, [made], [source])
    for node, (op_type, limits) in zip(new, steps, strict=True):
        if limits is not None:
            replace_input(model, node, 1, f"{node_name(clip)}_{op_type}_limits", limits.astype(np.float32))
