"""Moments of what one node makes of one value and its constants: a table by operator."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from dipo.algo.links import REARRANGEMENTS, Passed, rearranged, reduced
from dipo.algo.normal import Moments, clipped, leaky, scaled
from dipo.errors import UserError
from dipo.graph.accessors import array_of, node_name


def refusal(node: ir.Node) -> UserError:
    """That the operator is not known here."""
    return UserError(
        f"node {node_name(node)!r} ({node.op_type}): what it makes cannot be told without samples, give data.path and "
        "another calib.method, or skip bias correction from BatchNormalization"
    )


def _rearranged(node: ir.Node, x: Moments, found: tuple[int, int] | None) -> Moments:
    if found is None:
        raise refusal(node)
    behind, repeat = found
    mean, std, low, high, mu, sigma = (
        np.repeat(array, repeat) for array in (x.mean, x.std, x.low, x.high, x.mu, x.sigma)
    )
    return Moments(mean, std, low, high, mu, sigma, behind)


def _same_order(node: ir.Node, x: Moments) -> Moments:
    return _rearranged(node, x, rearranged(Passed(node, x.num_dims_behind, 1)))


def _averaged(node: ir.Node, x: Moments) -> Moments:
    x = dataclasses.replace(x, mu=x.mean, sigma=x.std)
    return _rearranged(node, x, reduced(Passed(node, x.num_dims_behind, 1)))


def _operand(node: ir.Node, x: Moments) -> NDArray[np.float64]:
    """The constant operand, one number for all channels or one for each."""
    value = next(value for value in node.inputs if value is not None and value.const_value is not None)
    array = array_of(value).astype(np.float64)
    position = array.ndim - 1 - x.num_dims_behind
    sizes = [size for axis, size in enumerate(array.shape) if axis != position]
    if any(size != 1 for size in sizes) or array.size not in (1, len(x.mean)):
        raise refusal(node)
    return array.reshape(-1)


def _inverse(node: ir.Node, x: Moments) -> Moments:
    if node.inputs[1] is None or node.inputs[1].const_value is None:
        raise refusal(node)
    return scaled(x, 1 / _operand(node, x))


def _difference(node: ir.Node, x: Moments) -> Moments:
    comes_first = node.inputs[0] is not None and node.inputs[0].const_value is not None
    operand = _operand(node, x)
    return scaled(x, -1.0, operand) if comes_first else scaled(x, 1.0, -operand)


def _normalized(node: ir.Node, x: Moments) -> Moments:
    """A normalization that is computed at inference: its scale and bias are those of what it makes."""
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


FUNCTIONS: dict[str, Callable[[ir.Node, Moments], Moments]] = {
    "Add": lambda node, x: scaled(x, 1.0, _operand(node, x)),
    "Sub": _difference,
    "Mul": lambda node, x: scaled(x, _operand(node, x)),
    "Div": _inverse,
    "Min": lambda node, x: clipped(x, -np.inf, _operand(node, x)),
    "Max": lambda node, x: clipped(x, _operand(node, x), np.inf),
    "LeakyRelu": lambda node, x: leaky(x, node.attributes.get_float("alpha", 0.01)),
    "PRelu": lambda node, x: leaky(x, _operand(node, x)),
    "ReduceMean": _averaged,
    **dict.fromkeys(REARRANGEMENTS, _same_order),
    "Softmax": _softmax,
    "LayerNormalization": _normalized,
    "InstanceNormalization": _normalized,
}
"""What a node makes of one value, with its constants and attributes."""
