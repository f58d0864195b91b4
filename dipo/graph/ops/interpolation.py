"""Interpolation along single axes as ONNX defines it, for the forms of Resize that torch's interpolate lacks.

Along each axis, an element of the output is a weighted sum of a few elements of the input, its taps. Positions are
computed in float32, as ONNX Runtime does, so that ties fall to the same side.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

Floats = NDArray[np.float32]

_ROUNDINGS: dict[str, Callable[[Floats], Floats]] = {
    "floor": np.floor,
    "ceil": np.ceil,
    "round_prefer_floor": lambda x: np.floor(x) + (x - np.floor(x) > 0.5),
    "round_prefer_ceil": lambda x: np.floor(x) + (x - np.floor(x) >= 0.5),
}
ROUNDINGS = tuple(_ROUNDINGS)
"""Values of `nearest_mode`."""
CROP = "tf_crop_and_resize"
"""The value of `coordinate_transformation_mode` that looks at a part of the input alone."""
COORDINATES = (
    "half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "tf_half_pixel_for_nn", "align_corners", "asymmetric",
    CROP,
)  # fmt: skip
"""Values of `coordinate_transformation_mode`."""
MODES = ("nearest", "linear", "cubic")
_RADIUS = {"linear": 1.0, "cubic": 2.0}


@dataclass(frozen=True)
class Interpolation:
    """How the elements of the output are found."""

    mode: str
    """One of `MODES`."""
    coordinates: str
    """One of `COORDINATES`."""
    rounding: str
    """One of `ROUNDINGS`."""
    cubic_coefficient: float = -0.75
    exclude_outside: bool = False
    """Whether taps outside the input count for nothing; otherwise they stand for the element at its edge."""
    antialias: bool = False
    """Whether taps reach as far as an element of a smaller output does."""
    extrapolation: float = 0.0
    """Number at positions outside the input, if only a part is looked at."""

    def along(
        self, x: torch.Tensor, axis: int, *, size: int, scale: float, part: tuple[float, float] = (0.0, 1.0)
    ) -> torch.Tensor:
        """Resize one axis.

        Args:
            x: The input.
            axis: The axis.
            size: Size of the output along it.
            scale: The factor that positions are divided by: the one given, or the new size over the old.
            part: Where the part that is looked at begins and ends, as shares of the input, for `CROP`.
        """
        position = _positions(self.coordinates, x.shape[axis], size, np.float32(scale), part)
        indices, weights = self._taps(position, x.shape[axis], scale)
        where = torch.from_numpy(indices).to(x.device)
        if weights is None:
            return x.index_select(axis, where[0])
        shape = [-1 if i == axis else 1 for i in range(x.dim())]
        factors = torch.from_numpy(weights).to(x.device, x.dtype)
        parts = (x.index_select(axis, tap) * factor.reshape(shape) for tap, factor in zip(where, factors, strict=True))
        return torch.stack(list(parts)).sum(0)

    def is_outside(self, old: int, new: int, scale: float, part: tuple[float, float]) -> NDArray[np.bool_]:
        """Return which positions of the output's elements, [new], lie outside the input."""
        position = _positions(self.coordinates, old, new, np.float32(scale), part)
        outside: NDArray[np.bool_] = (position < 0) | (position > old - 1)
        return outside

    def _taps(self, position: Floats, old: int, scale: float) -> tuple[NDArray[np.int64], Floats | None]:
        """Return the taps' indices, [taps, new], and their weights; None for a single tap of weight 1."""
        if self.mode == "nearest":
            return _within(_ROUNDINGS[self.rounding](position), old)[None], None
        stretch = 1.0
        if self.antialias:
            stretch = max(1.0, 1 / scale)
        elif self.mode == "linear":
            position = np.clip(position, 0, old - 1)
        reach = math.ceil(_RADIUS[self.mode] * stretch)
        first = np.floor(position)
        taps = np.stack([first + offset for offset in range(1 - reach, reach + 1)]).astype(np.float32)
        weights = self._weights(np.abs(taps - position) / np.float32(stretch))
        if self.exclude_outside:
            weights = np.where((taps < 0) | (taps > old - 1), np.float32(0), weights)
        if self.exclude_outside or self.antialias:
            weights = weights / weights.sum(0, keepdims=True)
        return _within(taps, old), weights.astype(np.float32)

    def _weights(self, distance: Floats) -> Floats:
        """Return the weights of taps at these distances; those of `cubic` are Keys's (1981)."""
        if self.mode == "linear":
            return np.maximum(1 - distance, np.float32(0))
        a = np.float32(self.cubic_coefficient)
        near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
        far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
        return np.where(distance <= 1, near, np.where(distance < 2, far, np.float32(0)))


def _positions(coordinates: str, old: int, new: int, scale: np.float32, part: tuple[float, float]) -> Floats:
    """Return the positions in the input, in elements, of the elements of the output."""
    index = np.arange(new, dtype=np.float32)
    half = np.float32(0.5)
    if coordinates == "asymmetric":
        return index / scale
    if coordinates == "align_corners":
        return index * np.float32(old - 1) / np.float32(max(new - 1, 1))
    if coordinates == CROP:
        return _cropped_positions(index, old, part)
    if coordinates == "pytorch_half_pixel" and new == 1:
        return np.zeros(1, np.float32)
    centre = (index + half) / scale
    if coordinates == "tf_half_pixel_for_nn":
        return centre
    if coordinates == "half_pixel_symmetric":
        # A size that was rounded down leaves as much out on either side.
        adjustment = np.float32(new) / (scale * np.float32(old))
        centre = np.float32(old) / 2 * (1 - adjustment) + centre
    return (centre - half).astype(np.float32)


def _cropped_positions(index: Floats, old: int, part: tuple[float, float]) -> Floats:
    begin, end = (np.float32(share) * np.float32(old - 1) for share in part)
    if len(index) == 1:
        return (np.float32(0.5) * (begin + end)).reshape(1)
    return begin + index * (end - begin) / np.float32(len(index) - 1)


def _within(indices: Floats, size: int) -> NDArray[np.int64]:
    return np.clip(indices, 0, size - 1).astype(np.int64)
