"""The float weight that a layer's codes approximate, and its rounding to a grid of its own."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dipo.algo.network_pair import NetworkPair
from dipo.graph.accessors import array_of
from dipo.graph.plan import LayerPlan, QuantizedLayer
from dipo.quant.codes import nearest_codes
from dipo.quant.ranges import weight_qparams
from dipo.recipe import CalibConfig


def target_of(pair: NetworkPair, name: str) -> NDArray[np.float32]:
    """Return the float weight that the layer's codes approximate."""
    target = pair.layers[name].target
    if target is not None:
        return target
    weight = array_of(pair.model.graph.initializers[pair.plan.layers[name].weight])
    return np.asarray(weight, np.float32)


def rounded(
    target: NDArray[np.float32], bias: NDArray[np.float32] | None, *, layer: LayerPlan, calib: CalibConfig
) -> QuantizedLayer:
    """Choose a grid for the weight `target` and return the layer with its nearest codes."""
    qparams = weight_qparams(
        target,
        layer.spec,
        axis=layer.axis,
        method=calib.weights,
        percentile=calib.weight_percentile,
        name=f"weight {layer.weight}",
    )
    return QuantizedLayer(nearest_codes(target, qparams), qparams, bias, target)
