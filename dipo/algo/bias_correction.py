"""Empirical bias correction: a layer's output gets the channel means that it has in the float network.

DFQ (arXiv:1906.04721), section 4.2, each layer on the quantized and corrected ones before it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from dipo.algo.activation_cache import Batch, CachedActivation
from dipo.algo.network_pair import LayerOutputs, NetworkPair
from dipo.algo.pair_statistics import channel_means, mean_of, output_error
from dipo.graph.accessors import name_of
from dipo.graph.plan import QuantizedLayer
from dipo.graph.units import Unit

CORRECTION_BATCHES = 16
"""Number of batches that a correction between units looks at, or up to twice as many: channel means need no more."""


def corrected_layer(pair: NetworkPair, outputs: LayerOutputs, fp_mean: NDArray[np.float64]) -> QuantizedLayer:
    """Return a layer whose bias makes up for the difference of its output's channel means from the float ones.

    Args:
        pair: The quantized network, in front of the layer.
        outputs: The layer's outputs with its present bias.
        fp_mean: Channel means [C] of its output in the float network, over all samples.
    """
    mean = mean_of(pair, dict(zip((batch.index for batch in pair.batches), outputs.batches, strict=True)))
    return replace(pair.layers[outputs.layer], bias=(outputs.bias + (fp_mean - mean)).astype(np.float32))


def correct_if_better(pair: NetworkPair, unit: Unit, targets: Mapping[str, CachedActivation]) -> bool:
    """Correct the biases of a unit's layers, first to last; take that back where the outputs' error does not fall.

    Args:
        pair: Both networks, in front of the unit.
        unit: A unit whose layers have been trained.
        targets: Its outputs in the float network.

    Returns:
        Whether the correction was kept.
    """
    before = {name: pair.layers[name] for name in unit.layers if name in pair.layers}
    chosen = _chosen_batches(pair)
    error = output_error(pair, unit, targets, chosen)
    nodes = pair.nodes_of(unit)
    outputs = {name: name_of(pair.nodes[name].outputs[0]) for name, layer in before.items() if layer.bias is not None}
    fp_module = pair.module(nodes, list(outputs.values()))
    fp_means = channel_means(pair, fp_module, pair.fp, chosen, constants={}, hook=None)
    for name, output in outputs.items():
        layer = pair.layers[name]
        part = nodes[: nodes.index(pair.nodes[name]) + 1]
        module = pair.module(part, [output])
        means = channel_means(pair, module, pair.q, chosen, constants=pair.weights(unit.layers), hook=pair.hook(part))
        bias = (layer.bias + (fp_means[output] - means[output])).astype(np.float32)
        pair.layers[name] = replace(layer, bias=bias)
    if output_error(pair, unit, targets, chosen) < error:
        return True
    pair.layers.update(before)
    return False


def _chosen_batches(pair: NetworkPair) -> list[tuple[Batch, slice]]:
    """Return every k-th of the run's batches, so that the choice does not depend on who holds them."""
    stride = max(1, len(pair.owners) // CORRECTION_BATCHES)
    return [(batch, rows) for batch, rows in zip(pair.batches, pair.rows, strict=True) if batch.index % stride == 0]
