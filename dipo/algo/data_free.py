"""Quantization without samples: ranges and bias correction from the moments of the values."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from dipo.algo.layer_pairs import find_layer_pairs, mean_response
from dipo.graph.accessors import name_of
from dipo.graph.layers import layers_of
from dipo.graph.plan import Plan, QuantizedModel
from dipo.quant.gaussian import Moments
from dipo.quant.ranges import Range


def analytic_bias_correction(
    model: ir.Model, *, plan: Plan, quantized: QuantizedModel, moments: Mapping[str, Moments]
) -> QuantizedModel:
    """Subtract from each bias what the errors of the weights add to the mean of the layer's output.

    b - (W_q - W) E[x] (DFQ, arXiv:1906.04721, section 4.2.1), E[x] being the mean of the float layer's input. A MatMul,
    which has no bias, stays as it is.

    Args:
        model: The float network.
        plan: Its layers and activations that are quantized.
        quantized: Its integer weights.
        moments: Moments of its values, by name.
    """
    corrected = {}
    for layer in layers_of(model):
        own = quantized.layers.get(layer.name)
        if layer.name not in plan.layers or own is None or own.bias is None or layer.input is None:
            continue
        error = own.weight.astype(np.float64) - layer.array
        shift = mean_response(layer, error, moments[name_of(layer.input)].mean)
        corrected[layer.name] = dataclasses.replace(own, bias=(own.bias - shift).astype(np.float32))
    return dataclasses.replace(quantized, layers={**quantized.layers, **corrected})


def data_free_ranges(plan: Plan, moments: Mapping[str, Moments], *, sigmas: float = 6.0) -> dict[str, Range]:
    """Return the ranges of all activations: `sigmas` standard deviations around each channel's mean (DFQ, section 5).

    What a Relu or Clip cuts off of that is left out; the range spans all channels, and zero.

    Args:
        plan: Layers and activations that are quantized.
        moments: Moments of the values, by name.
        sigmas: Standard deviations to either side.
    """
    ranges = {}
    for name, spec in plan.activations.items():
        if spec.fixed is not None:
            ranges[name] = spec.fixed
            continue
        low, high = moments[name].spread(sigmas)
        ranges[name] = Range(min(0.0, float(low.min())), max(0.0, float(high.max())))
    return ranges


def channel_reaches(
    model: ir.Model, moments: Mapping[str, Moments], *, sigmas: float = 4.0
) -> dict[str, NDArray[np.float64]]:
    """Return the largest magnitude of each channel between two layers, which `equalize` can even out.

    Args:
        model: The float network.
        moments: Moments of its values, by name.
        sigmas: Standard deviations to either side of the mean that count.

    Returns:
        Magnitudes [C] by name of the first layer of each pair.
    """
    reaches = {}
    for link in find_layer_pairs(model)[0]:
        last = link.between[-1].node if link.between else link.first.node
        low, high = moments[name_of(last.outputs[0])].spread(sigmas)
        reaches[link.first.name] = np.maximum(-low, high).reshape(-1, link.repeat).max(axis=1)
    return reaches
