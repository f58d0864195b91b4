"""How a tensor is quantized (`QuantSpec`) and the numbers that follow from its range (`QParams`)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


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

    def __post_init__(self) -> None:
        """Refuse widths that no target has."""
        if not 2 <= self.bits <= 16:
            raise ValueError(f"{self.bits} bits: choose a width from 2 to 16")

    @property
    def qmin(self) -> int:
        """Smallest code."""
        return -(1 << (self.bits - 1)) if self.signed else 0

    @property
    def qmax(self) -> int:
        """Largest code."""
        return (1 << (self.bits - 1)) - 1 if self.signed else (1 << self.bits) - 1


@dataclass(frozen=True, eq=False)
class QParams:
    """Scale and zero point: `code = clip(round_half_even(x / scale) + zero_point, qmin, qmax)`.

    `scale` is float32 and `zero_point` int32, both of shape [] (per tensor) or [C] along `axis` (per channel).
    """

    scale: NDArray[np.float32]
    zero_point: NDArray[np.int32]
    qmin: int
    qmax: int
    axis: int | None = None

    def along(self, num_dims: int) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """Scale and zero point, shaped to broadcast against a tensor of `num_dims` dimensions."""
        if self.axis is None:
            return self.scale, self.zero_point
        shape = [1] * num_dims
        shape[self.axis] = -1
        return self.scale.reshape(shape), self.zero_point.reshape(shape)
