"""How a tensor is quantized (`QuantSpec`), its range, and the numbers that follow from both (`QParams`)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

_TINY = np.finfo(np.float32).tiny


@dataclass(frozen=True)
class Range:
    """The values that a tensor's codes should cover; zero lies within."""

    min: float
    max: float


@dataclass(frozen=True)
class QuantSpec:
    """The integer grid of a tensor, before any range is known."""

    bits: int
    """Width, 2 to 16."""
    signed: bool
    """Two's complement limits instead of 0 .. 2^bits - 1."""
    symmetric: bool
    """Zero point at the middle of the limits (signed: 0, unsigned: 2^(bits-1))."""
    per_channel: bool = False
    """One scale for each output channel instead of one for the tensor."""
    narrow: bool = False
    """The smallest code is left out: -127 .. 127, or 1 .. 255. A symmetric grid then reaches as far on both sides."""
    power_of_two: bool = False
    """The scale is 2^k: rescaling is a shift."""
    block: int | None = None
    """So many weights in a row along the input axis share a scale, for each output channel; None: all of a channel."""
    fixed: Range | None = None
    """The range, whatever was seen; None: what calibration finds."""

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
        """Steps from zero to the end of a symmetric grid, from end to end of another."""
        return self.qmax - (self.middle if self.symmetric else self.qmin)

    def between(self, low: int) -> QuantSpec:
        """The same grid fixed to [low, 1), low being 0 or -1, with the power of two as its step that fills it."""
        step = (1 if self.symmetric else 1 - low) / (self.num_steps + 1)
        first = low * (1 - step) if self.symmetric else float(low)
        return replace(self, power_of_two=True, fixed=Range(first, 1 - step))


@dataclass(frozen=True)
class Blocks:
    """How an axis of a weight is cut into runs that share a scale; the last may be shorter."""

    size: int
    """Weights of a run."""
    axis: int
    length: int
    """Of the axis."""

    def spread(self, array: NDArray[Any]) -> NDArray[Any]:
        """Return numbers of runs, each repeated for all its weights."""
        repeated: NDArray[Any] = np.repeat(array, self.size, self.axis)
        return repeated.take(np.arange(self.length), self.axis)


@dataclass(frozen=True, eq=False)
class QParams:
    """Scale and zero point: `code = clip(round_half_even(x / scale) + zero_point, qmin, qmax)`.

    `scale` is float32 and `zero_point` int32, both of shape [] (per tensor) or [C] along `axis` (per channel). With
    `blocks` they have the shape of the weight, but for one number for each block along the blocks' axis.
    """

    scale: NDArray[np.float32]
    zero_point: NDArray[np.int32]
    qmin: int
    qmax: int
    axis: int | None = None
    power_of_two: bool = False
    """The scale is 2^k and has to stay so: training leaves it alone."""
    blocks: Blocks | None = None

    def broadcast_to(self, num_dims: int) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """Scale and zero point, shaped to broadcast against a tensor of `num_dims` dimensions."""
        if self.axis is None:
            return self.scale, self.zero_point
        if self.blocks is not None:
            return self.blocks.spread(self.scale), self.blocks.spread(self.zero_point)
        shape = [1] * num_dims
        shape[self.axis] = -1
        return self.scale.reshape(shape), self.zero_point.reshape(shape)

    @property
    def num_channels(self) -> int:
        """Channels that have scales of their own; 1 where the tensor has one scale."""
        return (
            int(self.scale.shape[self.axis]) if self.blocks is not None and self.axis is not None else self.scale.size
        )

    def scaled(self, factors: NDArray[Any]) -> NDArray[np.float64]:
        """Return the scales, those of each channel multiplied by its factor."""
        if self.axis is None or self.blocks is None:
            return np.asarray(self.scale * factors)
        shape = [1] * self.scale.ndim
        shape[self.axis] = -1
        return np.asarray(self.scale * factors.reshape(shape))


def input_axis(axis: int) -> int:
    """Return the axis of a layer's weight that counts inputs, beside the one that counts output channels.

    Conv and Gemm with transB have [outputs, inputs, ..], ConvTranspose, Gemm and MatMul [.., inputs, outputs, ..].
    """
    return 1 if axis == 0 else axis - 1


def qparams_of(range_: Range, spec: QuantSpec) -> QParams:
    """Scale and zero point of a whole tensor: `qparams_between` for one range."""
    return qparams_between(range_.min, range_.max, spec)


def qparams_between(low: ArrayLike, high: ArrayLike, spec: QuantSpec, *, axis: int | None = None) -> QParams:
    """Scale and zero point as ONNX's QuantizeLinear wants them, one for each element of `low` and `high`.

    Asymmetric: scale = (high - low) / (qmax - qmin), zero point = clip(round(qmin - low / scale)).
    Symmetric: scale = max(-low, high) / (qmax - middle), zero point = middle.
    Zero is always made part of the range. A range of nothing but zero has scale 1; no scale is below float32's smallest
    normal number. Where it has to be a power of two, it is the next larger one.

    Args:
        low: Lower ends, finite; shape [] or [C].
        high: Upper ends, of the same shape.
        spec: The grid.
        axis: What `QParams.axis` will be.
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
    return QParams(scale, zero_point.astype(np.int32), spec.qmin, spec.qmax, axis, spec.power_of_two)


def _next_power(scale: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the smallest powers of two that are no smaller, up to the largest that float32 has."""
    mantissa, exponent = np.frexp(scale)
    return np.asarray(np.ldexp(np.float32(1), np.minimum(exponent - (mantissa == 0.5), 127)), np.float32)
