"""Empirical bias correction: a layer's output gets the channel means that it has in the float network.

DFQ (arXiv:1906.04721), section 4.2, each layer on the quantized and corrected ones before it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from dipo.algo.activation_cache import Batch, CachedActivation, Rows
from dipo.algo.channel_means import ChannelMeans, split_sums
from dipo.algo.judgement import Judgement
from dipo.algo.network_pair import LayerOutputs, NetworkPair
from dipo.algo.pair_statistics import channel_means, fitted_rows, held_out_rows, output_errors
from dipo.graph.accessors import name_of
from dipo.graph.plan import QuantizedLayer
from dipo.graph.units import Unit

CORRECTION_BATCHES = 16
"""Number of batches that a correction between units looks at, or up to twice as many: channel means need no more."""


def corrected_layer(
    pair: NetworkPair, outputs: LayerOutputs, fp_means: ChannelMeans, *, held_out: Sequence[int] = ()
) -> tuple[QuantizedLayer, Judgement | None]:
    """Return a layer whose bias makes up for the difference of its output's channel means from the float ones.

    A shift delta of a channel changes its squared error by (d - delta)^2 - d^2 for each element, d being the
    difference of the means on the samples that are looked at. So what the shift brings on held-out samples follows
    from their means, and the float network's outputs are not needed.

    Args:
        pair: The quantized network, in front of the layer.
        outputs: The layer's outputs with its present bias.
        fp_means: Channel means of its output in the float network.
        held_out: Indices of the held-out samples, rising; none: the shift is that of all samples, and not judged.

    Returns:
        The layer, as it was where the shift raises the error on held-out samples; and the verdict.
    """
    parts = {
        batch.index: split_sums(value, batch, held_out, axis=pair.samples.get(outputs.value))
        for batch, value in zip(pair.batches, outputs.batches, strict=True)
    }
    means = ChannelMeans.of(pair.collectives.all_reduce_ordered(parts, owners=pair.owners).cpu().numpy())
    shift, judged = fp_means.every - means.every, None
    if means.held_out is not None and fp_means.held_out is not None:
        shift, left = fp_means.fitted - means.fitted, fp_means.held_out - means.held_out
        before, after = float((left**2).sum()), float(((left - shift) ** 2).sum())
        judged = Judgement.of({outputs.value: before}, {outputs.value: after})
    layer = pair.layers[outputs.layer]
    if judged is not None and not judged.kept:
        return layer, judged
    return replace(layer, bias=(outputs.bias + shift).astype(np.float32)), judged


def correct_if_better(
    pair: NetworkPair, unit: Unit, targets: Mapping[str, CachedActivation], *, held_out: Sequence[int] = ()
) -> bool:
    """Correct the biases of a unit's layers, first to last; take that back where the outputs' error does not fall.

    Args:
        pair: Both networks, in front of the unit.
        unit: A unit whose layers have been trained.
        targets: Its outputs in the float network.
        held_out: Indices of the held-out samples, rising: the biases follow from the others, the error is theirs;
            none: both are of all samples.

    Returns:
        Whether the correction was kept.
    """
    before = {name: pair.layers[name] for name in unit.layers if name in pair.layers}
    chosen = _chosen_batches(pair, held_out)
    judged = held_out_rows(pair, held_out) if held_out else chosen
    errors = output_errors(pair, unit, targets, judged)
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
    after = output_errors(pair, unit, targets, judged)
    if Judgement.of(errors, after).kept if held_out else sum(after.values()) < sum(errors.values()):
        return True
    pair.layers.update(before)
    return False


def _chosen_batches(pair: NetworkPair, held_out: Sequence[int]) -> list[tuple[Batch, Rows]]:
    """Return the fitted samples of every k-th batch of the run: the choice does not depend on who holds them."""
    stride = max(1, len(pair.owners) // CORRECTION_BATCHES)
    return [(batch, rows) for batch, rows in fitted_rows(pair, held_out) if batch.index % stride == 0]
