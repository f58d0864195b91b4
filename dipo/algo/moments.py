"""Mean and standard deviation of every channel of every value, from BatchNormalization's statistics: without samples.

What a layer with a folded BatchNormalization makes is taken for normal, with the mean and the standard deviation that
it had in training (DFQ, arXiv:1906.04721, section 4.2.1 and appendix C); other values follow from what they are made
of, which is taken for independent and alike at all positions. Of a pooling and a Resize the mean and the standard
deviation are those of what they read: neighbours are taken for equal, and borders are not looked at.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from dipo.algo.layer_pairs import mean_response
from dipo.algo.moment_ops import RULES, refusal
from dipo.errors import UserError
from dipo.graph import operators, torch_ops
from dipo.graph.accessors import array_of, name_of, opset_of
from dipo.graph.batch_norm import batch_norm_in, batch_norm_of
from dipo.graph.layers import Layer, layer_of
from dipo.graph.operators import MomentRule
from dipo.graph.placement import is_moved
from dipo.quant.gaussian import Moments, mapped


def input_moments(
    model: ir.Model,
    *,
    mean: float | NDArray[np.floating] = 0.0,
    std: float | NDArray[np.floating] = 1.0,
    low: float | NDArray[np.floating] = -np.inf,
    high: float | NDArray[np.floating] = np.inf,
) -> dict[str, Moments]:
    """Return the moments that each of the network's inputs is assumed to have, by name.

    Args:
        model: A model that `graph.load` has normalised.
        mean: Mean of all channels, or of each.
        std: Standard deviation, likewise.
        low: Lower bound of the numbers, likewise; images have such bounds.
        high: Upper bound of the numbers, likewise.

    Raises:
        UserError: The network has another number of channels, or it is not known.
    """
    moments = {}
    for value in model.graph.inputs:
        shape = value.shape
        channels = None if shape is None or len(shape) < 2 else shape[1]
        if not isinstance(channels, int) or shape is None:
            raise UserError(
                f"input {value.name!r}: its number of channels is not known, so nothing can be said about it without "
                "samples, give data.path or export the model with fixed channels"
            )
        try:
            arrays = [np.broadcast_to(np.asarray(each, np.float64), (channels,)) for each in (mean, std, low, high)]
        except ValueError as error:
            raise UserError(
                f"input {value.name!r} has {channels} channels, give data.mean and data.std for each of them, or one "
                "number for all"
            ) from error
        moments[name_of(value)] = Moments.of(*arrays[:2], low=arrays[2], high=arrays[3], num_dims_behind=len(shape) - 2)
    return moments


def moments_of(model: ir.Model, inputs: Mapping[str, Moments] | None = None) -> dict[str, Moments]:
    """Return the moments of every value, by name.

    Args:
        model: A model that `graph.load` has normalised, equalized or not.
        inputs: Moments of the network's inputs, by name; by default mean 0 and standard deviation 1.

    Raises:
        UserError: The moments of an operator's output cannot be told without samples.
    """
    known = dict(input_moments(model) if inputs is None else inputs)
    for node in model.graph:
        made = _made_by(node, known, opset_of(model))
        known |= {name_of(value): each for value, each in zip(node.outputs, made, strict=False) if value.name}
    return known


def _made_by(node: ir.Node, known: Mapping[str, Moments], opset: int) -> list[Moments]:
    values = [value for value in node.inputs if value is not None and value.const_value is None]
    unknown = next((value for value in values if name_of(value) not in known), None)
    if unknown is not None or not values:
        raise refusal(node)
    read = [known[name_of(value)] for value in values]
    rule = operators.of(node).moments
    if rule is MomentRule.MOVED:
        return _moved(node, read, opset)
    layer, norm = layer_of(node), batch_norm_in(node) or batch_norm_of(node)
    if norm is not None:
        num_dims_behind = read[0].num_dims_behind if layer is None else layer.num_spatial
        return [Moments.of(norm.beta, norm.std, num_dims_behind=num_dims_behind)]
    return [_followed(node, read, rule, opset)]


def _followed(
    node: ir.Node, read: list[Moments], rule: MomentRule | operators.MomentFunction | None, opset: int
) -> Moments:
    """Return the moments of a node's only output."""
    if rule is None:
        raise refusal(node)
    if not isinstance(rule, MomentRule):
        return rule(node, read)
    if rule is MomentRule.LAYER and (layer := layer_of(node)) is not None:
        return _layer(layer, read[0])
    if rule is MomentRule.CURVE and len(read) == 1:
        return _mapped(node, read[0], _curve(node, opset))
    if rule is MomentRule.PRODUCT and len(read) == 2 and (gated := _gated(node, read[0], read[1], opset)) is not None:
        return gated
    if rule not in RULES:
        raise refusal(node)
    return RULES[rule](node, read)


def _gated(node: ir.Node, x: Moments, y: Moments, opset: int) -> Moments | None:
    """Return the moments of x * f(x), such as a SiLU in two nodes, whose factors are anything but independent.

    None where neither factor is a function of the other.
    """
    values = [value for value in node.inputs if value is not None]
    for value, other, moments in (*zip(values, reversed(values), (x, y), strict=True),):
        gate = other.producer()
        is_curve = gate is not None and operators.of(gate).moments is MomentRule.CURVE
        if gate is not None and is_curve and gate.inputs[0] is value:
            curve = _curve(gate, opset)
            return _mapped(gate, moments, lambda numbers, curve=curve: numbers * curve(numbers))  # type: ignore[misc]
    return None


def _layer(layer: Layer, x: Moments) -> Moments:
    """Return the moments of a layer's output: mean W E[x] + b and variance W^2 Var[x]."""
    if layer.layout.num_inputs != len(x.mean) or x.num_dims_behind != layer.num_spatial:
        raise refusal(layer.node)
    weight = layer.array.astype(np.float64)
    mean, var = mean_response(layer, weight, x.mean), mean_response(layer, weight**2, x.std**2)
    mean = mean if layer.bias is None else mean + array_of(layer.bias)
    return Moments.of(mean, np.sqrt(var), num_dims_behind=x.num_dims_behind)


def _moved(node: ir.Node, read: list[Moments], opset: int) -> list[Moments]:
    """Run the operator on the numbers themselves, laid out like the values; positions are averaged."""
    # Rows that are chosen by computed numbers, such as a table's by a token, may be any.
    num_data = operators.of(node).data_inputs
    options = [] if num_data is None else node.inputs[num_data:]
    if not is_moved(node) or any(value is not None and value.const_value is None for value in options):
        raise refusal(node)
    function = torch_ops.bind(node, opset)
    parts: list[list[NDArray[np.float64]]] = []
    for name in ("mean", "square", "low", "high", "mu", "sigma"):
        moments = iter(read)
        arguments = [
            None if value is None else _constant(value) if value.const_value is not None
            else _laid_out(node, value, next(moments), name) for value in node.inputs
        ]  # fmt: skip
        results = function(*arguments)
        parts.append([each.numpy() for each in (results if isinstance(results, tuple) else (results,))])
    num_dims_behind = read[0].num_dims_behind
    outputs: list[Moments] = []
    for arrays in zip(*parts, strict=True):
        axis = arrays[0].ndim - 1 - num_dims_behind
        if axis < 0:
            raise refusal(node)
        outputs.append(
            _over_positions([np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1) for array in arrays])
        )
    return [dataclasses.replace(each, num_dims_behind=num_dims_behind) for each in outputs]


def _over_positions(arrays: list[NDArray[np.float64]]) -> Moments:
    """Return the moments over positions, from an array [C, positions] of each."""
    mean, square, low, high, mu, sigma = arrays
    first = mean.mean(axis=1)
    std = np.sqrt(np.maximum(square.mean(axis=1) - first**2, 0.0))
    alike = (np.ptp(mean, axis=1) == 0) & (np.ptp(square, axis=1) == 0)
    return Moments(
        first,
        std,
        low.min(axis=1),
        high.max(axis=1),
        np.where(alike, mu[:, 0], first),
        np.where(alike, sigma[:, 0], std),
    )


def _laid_out(node: ir.Node, value: ir.Value, moments: Moments, name: str) -> torch.Tensor:
    channels = moments.mean**2 + moments.std**2 if name == "square" else getattr(moments, name)
    shape = [] if value.shape is None else [size if isinstance(size, int) else None for size in value.shape]
    if len(shape) < moments.num_dims_behind + 2 or None in shape[1:]:
        raise refusal(node)
    ones = [1] * moments.num_dims_behind
    return torch.from_numpy(np.array(channels).reshape(-1, *ones)).expand([1, *(size or 1 for size in shape[1:])])


def _constant(value: ir.Value) -> torch.Tensor:
    return torch.from_numpy(np.array(array_of(value)))


def _mapped(node: ir.Node, x: Moments, curve: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> Moments:
    with np.errstate(invalid="ignore", over="ignore"):
        made = mapped(x, curve)
    # A root of what may be negative.
    if not (np.isfinite(made.mean).all() and np.isfinite(made.std).all()):
        raise refusal(node)
    return made


def _curve(node: ir.Node, opset: int) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    function = torch_ops.bind(node, opset)

    def curve(numbers: NDArray[np.float64]) -> NDArray[np.float64]:
        made = function(torch.from_numpy(numbers))
        assert isinstance(made, torch.Tensor)
        return np.asarray(made.numpy())

    return curve
