"""Peculiarities of a network that can be quantized nevertheless; the report lists them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from dipo.graph.accessors import array_of
from dipo.graph.float_products import float_products, tables_of_layers
from dipo.graph.layers import layers_of
from dipo.graph.plan import Plan, QuantizedLayer
from dipo.quant.observers import Statistics


@dataclass(frozen=True)
class Diagnostic:
    """A peculiarity that the user may want to look at."""

    name: str
    """Name of the layer or of the activation."""
    what: str


def lost_channels(model: ir.Model, layers: Mapping[str, QuantizedLayer]) -> list[Diagnostic]:
    """Return diagnostics of output channels whose weights are all rounded to zero, by a scale that others need larger.

    Args:
        model: The float network.
        layers: The quantized layers, by name. Channels that a step pruned do not count.
    """
    diagnostics = []
    for layer in layers_of(model):
        own = layers.get(layer.name)
        if own is None:
            continue
        kept, wanted = (
            layer.layout.split(each).reshape(layer.num_channels, -1).any(axis=1)
            for each in (own.weight, layer.array if own.target is None else own.target)
        )
        num_lost = int((wanted & ~kept).sum())
        if num_lost:
            what = f"{num_lost} of its {layer.num_channels} channels are rounded to zero, their weights share a scale"
            diagnostics.append(Diagnostic(layer.name, f"{what}: keep it float (precision.skip), or try +algo=equalize"))
    return diagnostics


def diagnose(model: ir.Model, plan: Plan, statistics: Mapping[str, Statistics]) -> list[Diagnostic]:
    """Return diagnostics of zero weights and channels, of constant or infinite activations, and of what stays float.

    Args:
        model: The float network.
        plan: Layers and activations that are quantized.
        statistics: Statistics of calibration, by name of the activation; activations that are missing are passed over.
    """
    diagnostics = []
    for name, layer in plan.layers.items():
        weight = array_of(model.graph.initializers[layer.weight])
        rows = np.moveaxis(weight, layer.axis, 0).reshape(weight.shape[layer.axis], -1)
        num_dead = int((~rows.any(axis=1)).sum())
        if num_dead == len(rows):
            diagnostics.append(Diagnostic(name, "its weight is all zero"))
        elif num_dead:
            diagnostics.append(Diagnostic(name, f"{num_dead} of its {len(rows)} channels have no weight but zero"))
    for name in plan.activations:
        seen = statistics.get(name)
        if seen is not None and seen.count and seen.min == seen.max:
            diagnostics.append(Diagnostic(name, f"it is {seen.min:g} everywhere, on all samples"))
        if seen is not None and seen.infinite:
            share = 100 * seen.infinite / (seen.count + seen.infinite)
            what = f"{share:.3g} % of it are infinite, for which the ends of its range stand"
            diagnostics.append(Diagnostic(name, what))
    diagnostics += [Diagnostic(name, reason) for name, reason in float_products(model).items()]
    diagnostics += [
        Diagnostic(name, f"its table holds the numbers of layer {layer!r} once more, beside that layer's integers")
        for name, layer in tables_of_layers(model, plan.layers.keys()).items()
    ]
    return diagnostics
