"""Bias absorption: what an activation never cuts off moves from a layer's bias into the next layer's.

DFQ (arXiv:1906.04721), section 4.1.3. It narrows the range of the value between the two.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from dipo.algo.activation_cache import cut
from dipo.algo.layer_pairs import Intermediate, LayerPair, Skipped, keeps_shifts
from dipo.data.samples import Dataset
from dipo.graph.accessors import array_of, name_of, node_name
from dipo.graph.batch_norm import batch_norm_of, set_batch_norm
from dipo.graph.layers import Layer, layers_of
from dipo.graph.limits import clip_limits
from dipo.graph.torch_module import GraphModule, channels_last

ABSORPTION_SAMPLES, ABSORPTION_BATCH = 64, 16
"""Samples on which absorbed biases must leave the network's function as it is."""


@dataclass(frozen=True)
class Absorbed:
    """A record of what moved from one layer's bias into another's."""

    first: str
    second: str
    num_channels: int
    largest: float
    """Largest amount that was taken off a channel."""


def amounts_of(
    link: LayerPair, floor: NDArray[np.float64] | None, scales: NDArray[np.float64]
) -> NDArray[np.float64] | Skipped | None:
    """Return what can be taken off each channel between two layers, [C]; None where there is nothing.

    c = max(0, floor), and no more than a Clip lets pass (DFQ, eq. 15).

    Args:
        link: The two layers.
        floor: Values [C] that the first layer's output hardly falls below, before it was scaled; None where not known.
        scales: Factors [C] that the values between were divided by.
    """
    if floor is None:
        return Skipped(link.first.name, "bias absorption: no BatchNormalization tells what its output falls below")
    amounts = np.maximum(floor / scales, 0.0)
    for passed in link.between:
        limits = clip_limits(passed.node)
        if limits is not None:
            amounts = np.clip(amounts, 0.0, limits.high / scales)
    if not amounts.any():
        return None
    reason = _obstacle(link)
    return amounts if reason is None else Skipped(link.first.name, f"bias absorption: {reason}")


def absorb_bias_of(link: LayerPair, layers: Mapping[str, Layer], amounts: NDArray[np.float64]) -> Absorbed:
    """Move `amounts` [C] from the first layer's bias into the second's, as W c. Limits of a Clip between are left.

    Args:
        link: The two layers.
        layers: Layers of the network to change, by name.
        amounts: Result of `amounts_of`.
    """
    first, second = layers[link.first.name], layers[link.second.name]
    norm = batch_norm_of(first.node)
    assert first.bias is not None and second.bias is not None
    filters = second.layout.filters(second.array).sum(axis=3, dtype=np.float64)
    inputs = np.repeat(amounts, link.repeat).reshape(filters.shape[0], -1)
    given = np.einsum("goi,gi->go", filters, inputs).reshape(-1)
    set_constant(first.bias, array_of(first.bias) - amounts)
    set_constant(second.bias, array_of(second.bias) + given)
    if norm is not None:
        set_batch_norm(first.node, norm.lowered(amounts))
    return Absorbed(first.name, second.name, int((amounts > 0).sum()), float(amounts.max()))


def set_constant(value: ir.Value, array: NDArray[np.floating]) -> None:
    """Give an initializer other numbers, in float32."""
    value.const_value = ir.tensor(np.ascontiguousarray(array, dtype=np.float32), name=value.name)


def _obstacle(link: LayerPair) -> str | None:
    """Return the reason why a constant cannot pass from one layer to the other; None where it can."""
    blocked: Intermediate | None = next((passed for passed in link.between if not keeps_shifts(passed)), None)
    if blocked is not None:
        return f"{node_name(blocked.node)} is {blocked.node.op_type}, which a constant does not pass unchanged"
    second = link.second
    if link.first.bias is None or second.bias is None:
        return "one of the two layers has no bias"
    if second.op_type == "ConvTranspose":
        return f"{second.name} is ConvTranspose, which gives a constant another sum at each position"
    padded = any(second.node.attributes.get_ints("pads", ())) or _pads_itself(second.node)
    return f"{second.name} pads with zeros, so that its borders would change" if padded else None


def _pads_itself(node: ir.Node) -> bool:
    return node.attributes.get_string("auto_pad", "NOTSET") in {"SAME_UPPER", "SAME_LOWER"}


def min_outputs(model: ir.Model, samples: Dataset) -> dict[str, NDArray[np.float32]]:
    """Return the least number [C] of each layer's output on some samples, by name of the layer."""
    outputs = {name_of(layer.output): layer for layer in layers_of(model)}
    module = GraphModule(model, outputs=outputs).eval()
    minima: dict[str, NDArray[np.float32]] = {}
    for batch in cut(min(ABSORPTION_SAMPLES, len(samples)), ABSORPTION_BATCH):
        arrays = samples.read(batch.start, batch.stop).inputs
        with torch.inference_mode():
            values = module({name: channels_last(torch.from_numpy(array)) for name, array in arrays.items()})
        for value, layer in outputs.items():
            channel = -1 if layer.op_type == "MatMul" else 1
            least = values[value].transpose(0, channel).flatten(1).amin(dim=1).numpy()
            minima[layer.name] = np.minimum(minima.get(layer.name, least), least)
    return minima
