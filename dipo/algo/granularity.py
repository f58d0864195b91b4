"""Per-channel against per-tensor scales of weights: the rounding error of either."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from dipo.graph.accessors import array_of
from dipo.graph.plan import Plan, QuantizedModel
from dipo.quant.codes import nearest_codes
from dipo.quant.ranges import weight_qparams
from dipo.quant.spec import QParams
from dipo.recipe import CalibConfig


@dataclass(frozen=True)
class WeightSums:
    """Rounding errors of a layer's weight with one scale and with one for each channel, at the same width."""

    signal: float
    """Sum of the weight's squares."""
    per_tensor: float
    """Sum of the squared rounding errors with one scale."""
    per_channel: float
    """Sum of the squared rounding errors with a scale for each channel."""


def compare_granularities(
    model: ir.Model, *, plan: Plan, quantized: QuantizedModel, cfg: CalibConfig
) -> dict[str, WeightSums]:
    """Return the rounding errors with per-channel and per-tensor scales, by name of the layer; no sample is needed.

        The layer's own kind keeps its scales; the other gets those that calibration would choose at the same width.

    Args:
        model: The float network.
        plan: Layers and activations that are quantized.
        quantized: The scales in use; a layer's `target` takes the float weight's place.
        cfg: How a weight's range is chosen.
    """
    sums = {}
    for name, layer in plan.layers.items():
        own = quantized.layers[name]
        target = array_of(model.graph.initializers[layer.weight]) if own.target is None else own.target
        weight = target.astype(np.float32)
        other_spec = replace(layer.spec, per_channel=not layer.spec.per_channel, block=None)
        other = weight_qparams(
            weight,
            other_spec,
            axis=layer.axis,
            method=cfg.weights,
            percentile=cfg.weight_percentile,
            name=f"weight {layer.weight}",
        )
        noise, other_noise = _rounding_noise(weight, own.qparams), _rounding_noise(weight, other)
        if layer.spec.per_channel:
            noise, other_noise = other_noise, noise
        sums[name] = WeightSums(float(np.square(weight, dtype=np.float64).sum()), noise, other_noise)
    return sums


def _rounding_noise(weight: NDArray[np.float32], qparams: QParams) -> float:
    """Return the sum of (Q(w) - w)^2 with every weight at its nearest code."""
    scale, zero_point = qparams.broadcast_to(weight.ndim)
    codes = nearest_codes(weight, qparams)
    return float(np.square(((codes - zero_point) * scale).astype(np.float32) - weight, dtype=np.float64).sum())
