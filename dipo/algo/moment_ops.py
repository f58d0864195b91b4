"""Moments of one node's output from those of its inputs and its constants: the rules that operators name."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import reduce

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from dipo.algo.layer_pairs import Intermediate, rearranged, reduced
from dipo.errors import UserError
from dipo.graph.accessors import array_of, node_name
from dipo.graph.limits import clip_limits
from dipo.graph.operators import MomentFunction, MomentRule
from dipo.quant.gaussian import Moments, clipped, leaky, multiplied, scaled, summed


def refusal(node: ir.Node) -> UserError:
    """Return the error for an operator whose output's moments cannot be told without samples."""
    return UserError(
        f"node {node_name(node)!r} ({node.op_type}): what it makes cannot be told without samples, give data.path and "
        "another calib.method, or skip bias correction from BatchNormalization"
    )


def _of_one(rule: Callable[[ir.Node, Moments], Moments]) -> MomentFunction:
    """Return the rule as a function of the inputs' moments; it raises where there is more than one input."""

    def apply(node: ir.Node, read: Sequence[Moments]) -> Moments:
        if len(read) != 1:
            raise refusal(node)
        return rule(node, read[0])

    return apply


def _clipped(node: ir.Node, x: Moments) -> Moments:
    limits = clip_limits(node)
    if limits is None:
        raise refusal(node)
    return clipped(x, limits.low, limits.high)


def _pooled(_: ir.Node, x: Moments) -> Moments:
    return dataclasses.replace(x, mu=x.mean, sigma=x.std)


def _rearranged(node: ir.Node, x: Moments, found: tuple[int, int] | None) -> Moments:
    if found is None:
        raise refusal(node)
    num_dims_behind, repeat = found
    mean, std, low, high, mu, sigma = (
        np.repeat(array, repeat) for array in (x.mean, x.std, x.low, x.high, x.mu, x.sigma)
    )
    return Moments(mean, std, low, high, mu, sigma, num_dims_behind)


def _same_order(node: ir.Node, x: Moments) -> Moments:
    return _rearranged(node, x, rearranged(Intermediate(node, x.num_dims_behind, 1)))


def _averaged(node: ir.Node, x: Moments) -> Moments:
    return _rearranged(node, _pooled(node, x), reduced(Intermediate(node, x.num_dims_behind, 1)))


def _operands(node: ir.Node, x: Moments) -> Iterable[NDArray[np.float64]]:
    """Yield the constant operands, each as one number for all channels or one for each."""
    for value in node.inputs:
        if value is None or value.const_value is None:
            continue
        array = array_of(value).astype(np.float64)
        position = array.ndim - 1 - x.num_dims_behind
        sizes = [size for axis, size in enumerate(array.shape) if axis != position]
        if any(size != 1 for size in sizes) or array.size not in (1, len(x.mean)):
            raise refusal(node)
        yield array.reshape(-1)


def _sum(node: ir.Node, read: Sequence[Moments]) -> Moments:
    if any(len(each.mean) != len(read[0].mean) for each in read):
        raise refusal(node)
    made = reduce(summed, read)
    return reduce(lambda x, operand: scaled(x, 1.0, operand), _operands(node, made), made)


def _difference(node: ir.Node, read: Sequence[Moments]) -> Moments:
    if len(read) == 2:
        return _sum(node, [read[0], scaled(read[1], -1.0)])
    comes_first = node.inputs[0] is not None and node.inputs[0].const_value is not None
    (operand,) = _operands(node, read[0])
    return scaled(read[0], -1.0, operand) if comes_first else scaled(read[0], 1.0, -operand)


def _product(node: ir.Node, read: Sequence[Moments]) -> Moments:
    if len(read) == 2:
        if len(read[0].mean) != len(read[1].mean):
            raise refusal(node)
        return multiplied(*read)
    (operand,) = _operands(node, read[0])
    return scaled(read[0], operand)


def _quotient(node: ir.Node, x: Moments) -> Moments:
    if node.inputs[1] is None or node.inputs[1].const_value is None:
        raise refusal(node)
    (operand,) = _operands(node, x)
    return scaled(x, 1 / operand)


def _minimum(node: ir.Node, x: Moments) -> Moments:
    return reduce(lambda made, operand: clipped(made, -np.inf, operand), _operands(node, x), x)


def _maximum(node: ir.Node, x: Moments) -> Moments:
    return reduce(lambda made, operand: clipped(made, operand, np.inf), _operands(node, x), x)


def _prelu(node: ir.Node, x: Moments) -> Moments:
    (slopes,) = _operands(node, x)
    return leaky(x, slopes)


def _normalized(node: ir.Node, x: Moments) -> Moments:
    """Return the moments after a normalization at inference: mean and deviation are its bias and scale."""
    parameters = [value for value in node.inputs[1:3] if value is not None and value.const_value is not None]
    arrays = [array_of(value).astype(np.float64).reshape(-1) for value in parameters]
    if not arrays or any(len(array) != len(x.mean) for array in arrays):
        raise refusal(node)
    return Moments.of(arrays[1] if len(arrays) > 1 else 0.0, np.abs(arrays[0]), num_dims_behind=x.num_dims_behind)


def _softmax(node: ir.Node, x: Moments) -> Moments:
    if node.attributes.get_int("axis", -1) not in {-1, 1} or x.num_dims_behind:
        raise refusal(node)
    mean = np.full(len(x.mean), 1 / len(x.mean))
    # That of numbers that are all 0 or 1: the largest possible.
    return Moments.of(mean, np.sqrt(mean * (1 - mean)), low=0, high=1)


RULES: Mapping[MomentRule, MomentFunction] = {
    MomentRule.SAME: _of_one(lambda _, x: x),
    MomentRule.POOLED: _of_one(_pooled),
    MomentRule.CLIPPED: _of_one(_clipped),
    MomentRule.NORMALIZED: _of_one(_normalized),
    MomentRule.SOFTMAX: _of_one(_softmax),
    MomentRule.SUM: _sum,
    MomentRule.DIFFERENCE: _difference,
    MomentRule.PRODUCT: _product,
    MomentRule.QUOTIENT: _of_one(_quotient),
    MomentRule.MINIMUM: _of_one(_minimum),
    MomentRule.MAXIMUM: _of_one(_maximum),
    MomentRule.LEAKY_RELU: _of_one(lambda node, x: leaky(x, node.attributes.get_float("alpha", 0.01))),
    MomentRule.PRELU: _of_one(_prelu),
    MomentRule.AVERAGED: _of_one(_averaged),
    MomentRule.REARRANGED: _of_one(_same_order),
}
"""Functions of all rules but those that need more than the node, which `algo.moments` has."""
