"""BatchNorm re-estimation: a layer's folded BatchNormalization gets the statistics of the quantized network.

Folded, y = (z - mean) gamma / sqrt(var + epsilon) + beta with z the layer's output in front of the BatchNormalization.
With quantized weights, after quantized layers, z has another mean and variance. They are measured and folded
anew; the layer's output then has mean beta and standard deviation |gamma| on the samples, as it had in training. What
is measured takes the place of `running_mean` and `running_var`: the latter is the variance, not its root, of all
samples and positions, divided by their number, as ONNX defines it.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from dipo.algo.network_pair import NetworkPair
from dipo.algo.pair_statistics import ChannelMoments, channel_moments
from dipo.algo.reference_weights import rounded, target_of
from dipo.graph.accessors import name_of
from dipo.graph.batch_norm import BatchNorm
from dipo.graph.plan import QuantizedLayer
from dipo.graph.units import Unit
from dipo.graph.weight_layout import WeightLayout
from dipo.quant.codes import nearest_codes
from dipo.recipe import CalibConfig

SMALLEST_SCALE = np.finfo(np.float32).tiny


def updated_layers(
    pair: NetworkPair, unit: Unit, norm: BatchNorm | None, *, calib: CalibConfig
) -> dict[str, QuantizedLayer]:
    """Re-estimate the BatchNormalization that was folded into the unit's layer.

    With scales for each channel the codes stay, and scales and biases change. Else, or where scales have to be powers
    of two, the rescaled weight is rounded anew; if its rounding was learned, the bias alone changes.

    Args:
        pair: Both networks; the float one need not be carried along.
        unit: The next unit, of granularity `layer`.
        norm: The BatchNormalization that was folded into the unit's layer; None: there is none, nothing changes.
        calib: How a grid is chosen where a weight is rounded anew.

    Returns:
        The layer by name; nothing for a unit that has none, or none with a BatchNorm.
    """
    name = unit.only_layer
    old = None if name is None else pair.layers.get(name)
    if name is None or norm is None or old is None or old.bias is None:
        return {}
    node = pair.nodes[name]
    output = name_of(node.outputs[0])
    module = pair.module([node], [output])
    seen = channel_moments(pair, module, pair.q, constants=pair.weights([name]), hook=None)[output]
    return {name: _refolded(pair, name, old, norm, seen, calib)}


def scale_change(norm: BatchNorm, var: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the factors [C] of the output channels when the measured variance is folded in place of the old one.

    The layer gives y = factor * z + constant with factor = gamma / sqrt(norm.var + epsilon), so z has the variance
    var / factor^2, and the channel is multiplied by sqrt(norm.var + epsilon) / sqrt(var / factor^2 + epsilon). Neither
    the sign of gamma nor the constant plays a part.

    Args:
        norm: The BatchNormalization that was folded.
        var: Variances [C] of the layer's output y, the folded BatchNorm included.

    Returns:
        Positive factors [C]; 1 where gamma or the variance is zero.
    """
    old = norm.var.astype(np.float64) + norm.epsilon
    factor = norm.gamma / np.sqrt(old)
    usable = (factor != 0) & (var > 0)
    new = np.divide(var, factor**2, out=np.zeros_like(var), where=usable) + norm.epsilon
    return np.where(usable, np.sqrt(old / new), 1.0)


def _refolded(
    pair: NetworkPair, name: str, old: QuantizedLayer, norm: BatchNorm, seen: ChannelMoments, calib: CalibConfig
) -> QuantizedLayer:
    assert old.bias is not None
    target, plan = target_of(pair, name), pair.plan.layers[name]
    change = scale_change(norm, seen.var)
    qparams = old.qparams
    own_scales = qparams.axis is not None and qparams.num_channels == len(old.bias) and not qparams.power_of_two
    learned = not np.array_equal(old.codes, nearest_codes(target, qparams))
    if learned and not own_scales:
        change = np.ones_like(change)
    # (z - mean) * gamma / sqrt(var + epsilon) + beta, z's own constant being part of its mean.
    bias = (norm.beta - (seen.mean - old.bias) * change).astype(np.float32)
    if learned and not own_scales:
        return replace(old, bias=bias)
    rescaled = WeightLayout.of(pair.nodes[name], target.shape).scaled(target, change)
    if not own_scales:
        return rounded(rescaled, bias, layer=plan, calib=calib)
    scale = np.maximum(qparams.scaled(change), SMALLEST_SCALE).astype(np.float32)
    return QuantizedLayer(old.codes, replace(qparams, scale=scale), bias, rescaled)
