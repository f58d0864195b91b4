"""The integer grid of a tensor (`QuantSpec`), its range, and the scale and zero point of both (`QParams`)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

_TINY = np.finfo(np.float32).tiny
_HUGE = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Range:
    """The interval that a tensor's codes should cover; it contains zero."""

    min: float
    max: float

    def stretched(self, factors: tuple[float, float]) -> Range:
        """Return the range with its lower and its upper end multiplied by a factor each."""
        return Range(self.min * factors[0], self.max * factors[1])


@dataclass(frozen=True)
class QuantSpec:
    """The integer grid of a tensor, before any range is known."""

    bits: int
    """Width in bits, 2 to 16."""
    signed: bool
    """Whether the limits are those of two's complement instead of 0 .. 2^bits - 1."""
    symmetric: bool
    """Whether the zero point is in the middle of the limits (signed: 0, unsigned: 2^(bits-1))."""
    per_channel: bool = False
    """Whether each output channel has a scale, instead of one for the tensor."""
    narrow: bool = False
    """Whether the smallest code is left out (-127 .. 127, or 1 .. 255), which makes a symmetric grid's ends equal."""
    power_of_two: bool = False
    """Whether the scale is 2^k, so that rescaling is a shift."""
    block: int | None = None
    """Number of consecutive weights along the input axis of a channel that share a scale; None: all of a channel."""
    fixed: Range | None = None
    """Range that replaces the calibrated one; None: the calibrated one."""

    def __post_init__(self) -> None:
        """Refuse widths that no target has."""
        if not 2 <= self.bits <= 16:
            raise ValueError(f"{self.bits} bits: choose a width from 2 to 16")

    @property
    def qmin(self) -> int:
        """Smallest code."""
        return (-(1 << (self.bits - 1)) if self.signed else 0) + self.narrow

    @property
    def qmax(self) -> int:
        """Largest code."""
        return (1 << (self.bits - 1)) - 1 if self.signed else (1 << self.bits) - 1

    @property
    def middle(self) -> int:
        """The zero point of a symmetric grid."""
        return (self.qmin + self.qmax + 1) // 2

    @property
    def num_steps(self) -> int:
        """Number of steps from zero to the end of a symmetric grid, or from end to end of another."""
        return self.qmax - (self.middle if self.symmetric else self.qmin)

    def between(self, low: int) -> QuantSpec:
        """Return the grid fixed to [low, 1), with low 0 or -1 and the power of two as step that fills the interval."""
        step = (1 if self.symmetric else 1 - low) / (self.num_steps + 1)
        first = low * (1 - step) if self.symmetric else float(low)
        return replace(self, power_of_two=True, fixed=Range(first, 1 - step))


@dataclass(frozen=True)
class Blocks:
    """The partition of a weight's axis into blocks that share a scale; the last may be shorter."""

    size: int
    """Number of weights in a block."""
    axis: int
    length: int
    """Length of the axis."""

    def spread(self, array: NDArray[Any]) -> NDArray[Any]:
        """Return an array of numbers for blocks with each repeated for all weights of its block."""
        repeated: NDArray[Any] = np.repeat(array, self.size, self.axis)
        return repeated.take(np.arange(self.length), self.axis)


@dataclass(frozen=True, eq=False)
class QParams:
    """Scale and zero point: `code = clip(round_half_even(x / scale) + zero_point, qmin, qmax)`.

    `scale` is float32 and `zero_point` int32, both of shape [] (per tensor) or [C] along `axis` (per channel). With
    `blocks` they have the shape of the weight, except for one number for each block along the blocks' axis.
    """

    scale: NDArray[np.float32]
    zero_point: NDArray[np.int32]
    qmin: int
    qmax: int
    axis: int | None = None
    power_of_two: bool = False
    """Whether the scale is 2^k and has to stay so: it is not trained."""
    blocks: Blocks | None = None

    def broadcast_to(self, num_dims: int) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """Return scale and zero point, shaped to broadcast against a tensor of `num_dims` dimensions."""
        if self.axis is None:
            return self.scale, self.zero_point
        if self.blocks is not None:
            return self.blocks.spread(self.scale), self.blocks.spread(self.zero_point)
        shape = [1] * num_dims
        shape[self.axis] = -1
        return self.scale.reshape(shape), self.zero_point.reshape(shape)

    def same(self, other: QParams) -> bool:
        """Return whether every code means the same number on the two grids, and both have the same limits."""
        ours, its = ((each.qmin, each.qmax, each.axis, each.blocks) for each in (self, other))
        equal = np.array_equal(self.scale, other.scale) and np.array_equal(self.zero_point, other.zero_point)
        return ours == its and equal

    @property
    def num_channels(self) -> int:
        """Number of channels with scales of their own; 1 if the tensor has one scale."""
        return (
            int(self.scale.shape[self.axis]) if self.blocks is not None and self.axis is not None else self.scale.size
        )

    def scaled(self, factors: NDArray[Any]) -> NDArray[np.float64]:
        """Return the scales, with those of each channel multiplied by its factor."""
        if self.axis is None or self.blocks is None:
            return np.asarray(self.scale * factors)
        shape = [1] * self.scale.ndim
        shape[self.axis] = -1
        return np.asarray(self.scale * factors.reshape(shape))


def input_axis(axis: int) -> int:
    """Return the axis of a layer's weight that counts inputs, from the one that counts output channels.

    Conv and Gemm with transB have [outputs, inputs, ..], ConvTranspose, Gemm and MatMul [.., inputs, outputs, ..].
    """
    return 1 if axis == 0 else axis - 1


def qparams_of(range_: Range, spec: QuantSpec) -> QParams:
    """Return scale and zero point of a whole tensor: `qparams_between` for one range."""
    return qparams_between(range_.min, range_.max, spec)


def qparams_between(low: ArrayLike, high: ArrayLike, spec: QuantSpec, *, axis: int | None = None) -> QParams:
    """Return scale and zero point as ONNX's QuantizeLinear takes them, one for each element of `low` and `high`.

    Asymmetric: scale = (high - low) / (qmax - qmin), zero point = clip(round(qmin - low / scale)).
    Symmetric: scale = max(-low, high) / (qmax - middle), zero point = middle.
    The range is extended to zero. A range of zero alone has scale 1; no scale is below float32's smallest normal
    number, nor so large that a code stands for an infinite one. If the scale has to be a power of two, it is the next
    larger one, whatever the codes at the ends stand for.

    Args:
        low: Lower ends, finite; shape [] or [C].
        high: Upper ends, of the same shape.
        spec: The grid.
        axis: Value of `QParams.axis`.
    """
    low = np.minimum(np.asarray(low, np.float64), 0)
    high = np.maximum(np.asarray(high, np.float64), 0)
    assert np.isfinite(low).all() and np.isfinite(high).all()
    span = (np.maximum(-low, high) if spec.symmetric else high - low) / spec.num_steps
    scale = np.where(span == 0, 1, np.maximum(span, _TINY)).astype(np.float32)
    if spec.power_of_two:
        scale = _next_power(scale)
    if spec.symmetric:
        zero_point = np.full(scale.shape, spec.middle)
    else:
        zero_point = np.clip(np.rint(spec.qmin - low / scale.astype(np.float64)), spec.qmin, spec.qmax)
    if not spec.power_of_two:
        reach = np.maximum(spec.qmax - zero_point, zero_point - spec.qmin)
        finite = np.nextafter((_HUGE / reach).astype(np.float32), np.float32(0))
        scale = np.where(scale.astype(np.float64) * reach > _HUGE, finite, scale).astype(np.float32)
    return QParams(scale, zero_point.astype(np.int32), spec.qmin, spec.qmax, axis, spec.power_of_two)


def _next_power(scale: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the smallest powers of two not below the scales, at most float32's largest."""
    mantissa, exponent = np.frexp(scale)
    return np.asarray(np.ldexp(np.float32(1), np.minimum(exponent - (mantissa == 0.5), 127)), np.float32)
