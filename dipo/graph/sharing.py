"""Weights that several layers share in the user's file: copied for the work, and stored once again in what is written.

Normalisation gives each layer a weight of its own, because what is folded into one layer, or learned for it, is not the
others'. Layers that end with the same codes share their weight again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from dipo.graph.accessors import array_of, name_of
from dipo.graph.constants import drop_unused
from dipo.graph.layers import Layer, layers_of
from dipo.graph.plan import QuantizedModel
from dipo.quant.spec import QParams

_KEY = "dipo.shared_parameters"


@dataclass(frozen=True)
class SharedWeight:
    """A weight that several layers share in the user's file."""

    name: str
    """Its name in the file."""
    groups: Sequence[Sequence[Layer]]
    """The layers, together where their codes, or float weights, ended as the same numbers."""


def record_copy(model: ir.Model, copy: str, original: str) -> None:
    """Record that an initializer is a copy of another, in the graph's metadata, which is not written into files."""
    origins: dict[str, str] = model.graph.meta.get(_KEY, {})
    model.graph.meta[_KEY] = {**origins, copy: origins.get(original, original)}


def shared_weights(model: ir.Model, quantized: QuantizedModel) -> Iterator[SharedWeight]:
    """Yield the weights that several layers share in the user's file.

    Args:
        model: The float network.
        quantized: Its layers; one that is not among them keeps its float weight.
    """
    by_name = defaultdict[str, list[Layer]](list)
    for layer in layers_of(model):
        by_name[_origin(model, layer.weight)].append(layer)
    for name, layers in by_name.items():
        if len(layers) > 1:
            yield SharedWeight(name, _grouped(layers, lambda one, other: _same_weight(one, other, quantized)))


def stored_apart(model: ir.Model, quantized: QuantizedModel) -> dict[str, str]:
    """Say of each weight of the user's file that is stored several times how often, and why; by its name."""
    return {
        shared.name: f"{sum(map(len, shared.groups))} layers share this weight in the model's file, and it is stored "
        f"{len(shared.groups)} times: {_reason(shared, quantized)}"
        for shared in shared_weights(model, quantized)
        if len(shared.groups) > 1
    }


def _reason(shared: SharedWeight, quantized: QuantizedModel) -> str:
    one, *others = (group[0] for group in shared.groups)
    both = f"{one.name!r} and {others[0].name!r}"
    if not all(np.array_equal(one.array, other.array) for other in others):
        return f"{both} differ by what was folded into them or by their equalization"
    ours, its = (quantized.layers.get(layer.name) for layer in (one, others[0]))
    if ours is None or its is None:
        return f"one of {both} stays float"
    mine, theirs = ours.qparams, its.qparams
    if (mine.qmin, mine.qmax) != (theirs.qmin, theirs.qmax):
        return f"{both} have other widths"
    if (mine.axis, mine.blocks) != (theirs.axis, theirs.blocks):
        return f"the scales of {both} lie along other axes"
    return f"{both} were trained apart"


def with_shared_parameters(model: ir.Model, quantized: QuantizedModel, *, int32_bias: bool) -> ir.Model:
    """Return the network with layers that share weights and biases again, where these ended as the same numbers.

    The shared initializer is the one with the name of the user's file if a layer has it, else the first layer's.

    Args:
        model: The float network, each layer with a weight and a bias of its own; it is not changed.
        quantized: Its layers and activations.
        int32_bias: Whether a bias has the scale of its layer's input, so that layers share it only with that scale.
    """
    if not model.graph.meta.get(_KEY):
        return model
    copy = model.clone()
    grids = quantized.activations if int32_bias else {}
    for shared in shared_weights(copy, quantized):
        for group in shared.groups:
            _share(copy, [layer.weight for layer in group])
            biased = [layer for layer in group if layer.bias is not None]
            for alike in _grouped(biased, lambda one, other: _same_bias(one, other, quantized, grids)):
                _share(copy, [layer.bias for layer in alike if layer.bias is not None])
    return copy


def _origin(model: ir.Model, value: ir.Value) -> str:
    """Return the name that a parameter had in the user's file."""
    origins: Mapping[str, str] = model.graph.meta.get(_KEY, {})
    return origins.get(name_of(value), name_of(value))


def _grouped(layers: Sequence[Layer], same: Callable[[Layer, Layer], bool]) -> list[list[Layer]]:
    """Return the layers in groups, each of those that are the same as its first."""
    groups: list[list[Layer]] = []
    for layer in layers:
        group = next((group for group in groups if same(group[0], layer)), None)
        if group is None:
            groups.append([layer])
        else:
            group.append(layer)
    return groups


def _same_weight(one: Layer, other: Layer, quantized: QuantizedModel) -> bool:
    ours, its = quantized.layers.get(one.name), quantized.layers.get(other.name)
    if ours is None or its is None:
        return ours is its and np.array_equal(one.array, other.array)
    return ours.qparams.same(its.qparams) and np.array_equal(ours.codes, its.codes)


def _same_bias(one: Layer, other: Layer, quantized: QuantizedModel, grids: Mapping[str, QParams]) -> bool:
    """Return whether two layers with the same weight have the same bias, and the same grid for it."""
    ours, its = (_bias(layer, quantized) for layer in (one, other))
    mine, theirs = (None if layer.input is None else grids.get(name_of(layer.input)) for layer in (one, other))
    scales = mine is theirs or (mine is not None and theirs is not None and np.array_equal(mine.scale, theirs.scale))
    return scales and np.array_equal(ours, its)


def _bias(layer: Layer, quantized: QuantizedModel) -> NDArray[Any]:
    own = quantized.layers.get(layer.name)
    assert layer.bias is not None
    return array_of(layer.bias) if own is None or own.bias is None else own.bias


def _share(model: ir.Model, values: Sequence[ir.Value]) -> None:
    """Let one of some constants take the place of all."""
    kept = next((value for value in values if _origin(model, value) == value.name), values[0]) if values else None
    for value in values:
        if kept is not None and value is not kept:
            value.replace_all_uses_with(kept)
            drop_unused(model, value)
