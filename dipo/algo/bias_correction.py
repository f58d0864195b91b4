"""Empirical bias correction: a layer's output gets the channel means that it has in the float network.

DFQ (arXiv:1906.04721), section 4.2, each layer on the quantized and corrected ones before it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from dipo.algo.captures import Batch, Capture
from dipo.algo.pair import Pair
from dipo.graph.accessors import name_of, node_name
from dipo.graph.plan import QuantizedLayer
from dipo.graph.units import Unit

CORRECTION_BATCHES = 16
"""Batches that a correction between units looks at, or up to twice as many: channel means need no more."""


def correct_layer(
    pair: Pair, unit: Unit, fp_means: Mapping[str, NDArray[np.float64]], *, known: QuantizedLayer | None = None
) -> dict[str, QuantizedLayer]:
    """Corrects the bias of the unit's layer and moves on behind the unit.

    Args:
        pair: Both networks; the float one need not be carried along.
        unit: The next unit, of granularity `layer`.
        fp_means: Channel means of the layers' outputs in the float network, over all samples.
        known: The layer as it was corrected before: nothing is computed but the way on, and that to the same bits.

    Returns:
        The corrected layer by name; nothing for a unit that has none.
    """
    first, *others = (pair.nodes[name] for name in unit.nodes)
    old = pair.layers.get(node_name(first))
    if old is None or old.bias is None:
        pair.advance(unit)
        pair.forget(unit)
        return {}
    name, output = node_name(first), name_of(first.outputs[0])
    module, weights = pair.module([first], [output]), pair.weights([name])
    outs = [module(values, constants=weights)[output] for values in pair.reads(pair.q, module)]
    if known is None:
        means = pair.mean_of({batch.index: out for batch, out in zip(pair.batches, outs, strict=True)})
        known = replace(old, bias=(old.bias + (fp_means[name] - means)).astype(np.float32))
    assert known.bias is not None
    pair.layers[name] = known
    shift = torch.from_numpy(known.bias - old.bias).to(pair.device)
    shift = shift.view(-1, *(1,) * (outs[0].ndim - 2))
    rest = pair.module(others, unit.outputs)
    # Each batch is let go as soon as what follows has read it: floats of all samples are large.
    shifted = ({output: outs.pop(0).add_(shift)} for _ in pair.rows)
    pair.q.update(pair.run(rest, shifted, constants={}, hook=pair.hook([first, *others]), codes=True))
    pair.forget(unit)
    return {name: pair.layers[name]}


def correct_if_better(pair: Pair, unit: Unit, targets: Mapping[str, Capture]) -> bool:
    """Corrects the biases of a unit's layers, first to last; takes that back where the outputs' error does not fall.

    Args:
        pair: Both networks, in front of the unit.
        unit: A unit whose layers have been solved.
        targets: Its outputs in the float network.

    Returns:
        Whether the correction was kept.
    """
    before = {name: pair.layers[name] for name in unit.layers if name in pair.layers}
    chosen = _chosen_batches(pair)
    error = pair.output_error(unit, targets, chosen)
    nodes = [pair.nodes[name] for name in unit.nodes]
    outputs = {name: name_of(pair.nodes[name].outputs[0]) for name, layer in before.items() if layer.bias is not None}
    fp_module = pair.module(nodes, list(outputs.values()))
    fp_means = pair.means(fp_module, pair.fp, chosen, constants={}, hook=None)
    for name, output in outputs.items():
        layer = pair.layers[name]
        part = nodes[: nodes.index(pair.nodes[name]) + 1]
        module = pair.module(part, [output])
        means = pair.means(module, pair.q, chosen, constants=pair.weights(unit.layers), hook=pair.hook(part))
        bias = (layer.bias + (fp_means[output] - means[output])).astype(np.float32)
        pair.layers[name] = replace(layer, bias=bias)
    if pair.output_error(unit, targets, chosen) < error:
        return True
    pair.layers.update(before)
    return False


def _chosen_batches(pair: Pair) -> list[tuple[Batch, slice]]:
    """Every k-th of the run's batches, so that the choice does not depend on who holds them."""
    stride = max(1, len(pair.owners) // CORRECTION_BATCHES)
    return [(batch, rows) for batch, rows in zip(pair.batches, pair.rows, strict=True) if batch.index % stride == 0]
