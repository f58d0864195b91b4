"""Interpolation along single axes as ONNX defines it, for the forms of Resize that torch's interpolate lacks.

Along each axis, an element of the output is a weighted sum of a few elements of the input, its taps. Positions are
computed in float32, as ONNX Runtime does, so that ties fall to the same side.
"""

from __future__ import annotations

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
COORDINATES = ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric")
"""Values of `coordinate_transformation_mode` that are known here."""
MODES = ("nearest", "linear", "cubic")


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

    def along(self, x: torch.Tensor, axis: int, *, size: int, scale: float) -> torch.Tensor:
        """Resize one axis.

        Args:
            x: The input.
            axis: The axis.
            size: Size of the output along it.
            scale: The factor that positions are divided by: the one given, or the new size over the old.
        """
        indices, weights = self._taps(x.shape[axis], size, scale)
        where = torch.from_numpy(indices).to(x.device)
        if weights is None:
            return x.index_select(axis, where[0])
        shape = [-1 if i == axis else 1 for i in range(x.dim())]
        factors = torch.from_numpy(weights).to(x.device, x.dtype)
        parts = (x.index_select(axis, tap) * factor.reshape(shape) for tap, factor in zip(where, factors, strict=True))
        return torch.stack(list(parts)).sum(0)

    def _taps(self, old: int, new: int, scale: float) -> tuple[NDArray[np.int64], Floats | None]:
        """Return the taps' indices, [taps, new], and their weights; None for a single tap of weight 1."""
        position = _positions(self.coordinates, old, new, np.float32(scale))
        if self.mode == "nearest":
            return _within(_ROUNDINGS[self.rounding](position), old)[None], None
        if self.mode == "linear":
            position = np.clip(position, 0, old - 1)
        first = np.floor(position)
        part = position - first
        if self.mode == "linear":
            return _within(np.stack([first, first + 1]), old), np.stack([1 - part, part])
        taps = np.stack([first + offset for offset in (-1, 0, 1, 2)])
        return _within(taps, old), _cubic(part, np.float32(self.cubic_coefficient))


def _positions(coordinates: str, old: int, new: int, scale: np.float32) -> Floats:
    """Return the positions in the input, in elements, of the elements of the output."""
    index = np.arange(new, dtype=np.float32)
    if coordinates == "asymmetric":
        return index / scale
    if coordinates == "align_corners":
        return index * np.float32(old - 1) / np.float32(max(new - 1, 1))
    if coordinates == "pytorch_half_pixel" and new == 1:
        return np.zeros(1, np.float32)
    return (index + np.float32(0.5)) / scale - np.float32(0.5)


def _within(indices: Floats, size: int) -> NDArray[np.int64]:
    return np.clip(indices, 0, size - 1).astype(np.int64)


def _cubic(part: Floats, a: np.float32) -> Floats:
    """Return the weights of the four taps around a position that lies `part` behind the second one (Keys, 1981)."""
    distance = np.stack([1 + part, part, 1 - part, 2 - part])
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    return np.where(distance <= 1, near, far).astype(np.float32)
