"""Statistics of a tensor for calibration: its limits and a histogram that merges exactly.

A bin is 2^exponent wide and anchored at zero: x falls into bin floor(x / 2^exponent), one of -2048 .. 2047. The
exponent is the smallest at which all data fits, so it follows from the minimum and the maximum alone, and growing it
merges neighbouring bins without splitting one. Hence any partition of the data, in any order, ends with the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from dipo.errors import UserError

NUM_BINS = 4096
"""Number of bins, half of them for negative data."""
MIN_EXPONENT = -126
"""Exponent of the narrowest bin, float32's smallest normal number: the factor onto bins, 2^126, is finite."""

NO_ROOM = (1.0, 1.0)
"""Of a range as it is."""

_HALF = NUM_BINS // 2
_HALF_BITS = _HALF.bit_length() - 1
_CPU_CHUNK = 1 << 17
"""Number of elements whose bin indices stay in a core's cache between passes."""
_DEVICE_CHUNK = 1 << 24
"""Number of elements up to which float32 counts, as in `torch.histc`, are exact."""


@dataclass(frozen=True, eq=False)
class Statistics:
    """Limits and histogram of the observed values; the neutral element of `merge` is `Statistics.empty()`."""

    count: int
    """Number of finite values."""
    min: float
    """Smallest value; inf if there is none."""
    max: float
    """Largest value; -inf if there is none."""
    exponent: int
    """Base-2 logarithm of a bin's width."""
    bins: NDArray[np.int64]
    """Counts [NUM_BINS]: bins[i] values lie in [(i - 2048) * width, (i - 2047) * width)."""
    infinite: int = 0
    """Number of infinite values, which nothing else counts."""
    room: tuple[float, float] = NO_ROOM
    """Factors on both ends of a range that is chosen from these statistics, see `dipo.algo.headroom`; of parts that
    merge, only those of the whole count."""

    @classmethod
    def empty(cls) -> Statistics:
        """Return the statistics of no data."""
        return cls(0, math.inf, -math.inf, MIN_EXPONENT, np.zeros(NUM_BINS, np.int64))

    @property
    def width(self) -> float:
        """Width of a bin."""
        return math.ldexp(1.0, self.exponent)

    def merge(self, other: Statistics) -> Statistics:
        """Return the statistics of both sets of values, bit-identical to those of one pass over all.

        Exact, associative and commutative: `functools.reduce(Statistics.merge, parts)` may take the parts in any order.
        """
        exponent = max(self.exponent, other.exponent)
        return Statistics(
            count=self.count + other.count,
            min=min(self.min, other.min),
            max=max(self.max, other.max),
            exponent=exponent,
            bins=_coarsen(self.bins, exponent - self.exponent) + _coarsen(other.bins, exponent - other.exponent),
            infinite=self.infinite + other.infinite,
        )

    def same_as(self, other: Statistics) -> bool:
        """Return whether both hold the same bits."""
        return (self.count, self.min, self.max, self.exponent, self.infinite) == (
            other.count,
            other.min,
            other.max,
            other.exponent,
            other.infinite,
        ) and np.array_equal(self.bins, other.bins)

    def to_arrays(self) -> dict[str, NDArray[np.generic]]:
        """Return the fields as arrays, ready for a safetensors file."""
        arrays: dict[str, NDArray[np.generic]] = {
            "count": np.asarray(self.count, np.int64),
            "min": np.asarray(self.min, np.float32),
            "max": np.asarray(self.max, np.float32),
            "exponent": np.asarray(self.exponent, np.int32),
            "bins": self.bins,
        }
        if self.infinite:
            arrays["infinite"] = np.asarray(self.infinite, np.int64)
        if self.room != NO_ROOM:
            arrays["room"] = np.asarray(self.room, np.float64)
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[np.generic]]) -> Statistics:
        """Return statistics from the arrays of `to_arrays`.

        Raises:
            UserError: a field is missing or the histogram has another shape.
        """
        expected = {"count": (), "min": (), "max": (), "exponent": (), "bins": (NUM_BINS,)}
        found = {key: array.shape for key, array in arrays.items()}
        optional = {"infinite": (), "room": (2,)}
        if found != expected | {key: shape for key, shape in optional.items() if key in found}:
            raise UserError(
                f"stored statistics are damaged or of another version: expected arrays of shapes {expected}, "
                f"found {found}; calibrate again in a new run folder"
            )
        return cls(
            count=int(arrays["count"].item()),
            min=float(arrays["min"].item()),
            max=float(arrays["max"].item()),
            exponent=int(arrays["exponent"].item()),
            bins=arrays["bins"].astype(np.int64),
            infinite=int(arrays["infinite"].item()) if "infinite" in arrays else 0,
            room=(float(arrays["room"][0]), float(arrays["room"][1])) if "room" in arrays else NO_ROOM,
        )


class Observer:
    """A collector of one tensor's statistics, batch by batch, on the device of the batches.

    Each batch costs one pass for the limits, one for the bins and, on a GPU, one synchronisation with the host.
    """

    def __init__(self, name: str) -> None:
        """Observe the tensor that errors will call `name`."""
        self._name = name
        self._count = 0
        self._infinite = 0
        self._min = math.inf
        self._max = -math.inf
        self._exponent = MIN_EXPONENT
        self._bins: torch.Tensor | None = None

    def update(self, x: torch.Tensor) -> None:
        """Add the values of `x`: float32, any shape and strides, always on the same device; infinite ones are counted.

        Raises:
            UserError: a value is NaN.
        """
        assert x.dtype == torch.float32, f"{self._name}: {x.dtype}"
        if x.numel() == 0:
            return
        x = _flat(x.detach())
        low, high = torch.stack(torch.aminmax(x)).tolist()
        if math.isnan(low) or math.isnan(high):
            raise UserError(
                f"tensor '{self._name}' has NaN values on the calibration data: "
                "check the samples and their preprocessing, and that the float model runs on them"
            )
        if math.isinf(low) or math.isinf(high):
            finite = x[torch.isfinite(x)]
            self._infinite += x.numel() - finite.numel()
            self.update(finite)
            return
        self._count += x.numel()
        # Adding 0.0 turns -0.0, which compares equal to 0.0 and would survive by chance, into 0.0.
        self._min = min(self._min, low + 0.0)
        self._max = max(self._max, high + 0.0)
        self._grow(max(self._exponent, _exponent_of(low, high)))
        bins = _histogram(x, self._exponent)
        self._bins = bins if self._bins is None else self._bins.add_(bins)

    def _grow(self, exponent: int) -> None:
        """Widen the bins to 2^exponent."""
        if self._bins is not None and exponent > self._exponent:
            coarse = _coarsen(self._bins.cpu().numpy(), exponent - self._exponent)
            self._bins = torch.from_numpy(coarse).to(self._bins.device)
        self._exponent = exponent

    def result(self) -> Statistics:
        """Return the statistics of all values so far."""
        bins = np.zeros(NUM_BINS, np.int64) if self._bins is None else self._bins.cpu().numpy().copy()
        return Statistics(self._count, self._min, self._max, self._exponent, bins, self._infinite)


def _exponent_of(low: float, high: float) -> int:
    """Return the smallest exponent e >= MIN_EXPONENT with -2048 * 2^e <= low and high < 2048 * 2^e."""
    exponent = MIN_EXPONENT
    if high > 0:
        exponent = max(exponent, math.frexp(high)[1] - _HALF_BITS)
    if low < 0:
        mantissa, power = math.frexp(-low)
        exponent = max(exponent, power - (mantissa == 0.5) - _HALF_BITS)
    return exponent


def _coarsen(bins: NDArray[np.int64], shift: int) -> NDArray[np.int64]:
    """Return the histogram at an exponent larger by `shift`: bin i goes to bin floor(i / 2^shift)."""
    if shift == 0:
        return bins
    # From here on only the bins on either side of zero are left, and growing further changes nothing.
    shift = min(shift, _HALF_BITS)
    merged = bins.reshape(-1, 1 << shift).sum(axis=1)
    coarse = np.zeros_like(bins)
    start = _HALF - (_HALF >> shift)
    coarse[start : start + len(merged)] = merged
    return coarse


def _flat(x: torch.Tensor) -> torch.Tensor:
    """Return all elements in memory order, without a copy of channels-last tensors."""
    order = sorted(range(x.ndim), key=x.stride, reverse=True)
    return x.permute(order).reshape(-1)


def _histogram(x: torch.Tensor, exponent: int) -> torch.Tensor:
    """Return counts of floor(x / 2^exponent) + 2048, int64 [NUM_BINS] on the device of `x`, for flat data that fits."""
    size, count = (_CPU_CHUNK, count_bins) if x.device.type == "cpu" else (_DEVICE_CHUNK, count_bins_on_device)
    bins = torch.zeros(NUM_BINS, dtype=torch.int64, device=x.device)
    scratch = torch.empty(min(size, len(x)), device=x.device)
    for chunk in torch.split(x, size):
        index = scratch[: len(chunk)]
        if exponent > 0:
            # The factor is below 1: a small negative number could vanish unless it is rounded down before.
            torch.floor(chunk, out=index).mul_(2.0**-exponent)
        else:
            torch.mul(chunk, 2.0**-exponent, out=index)
        bins += count(index.floor_())
    return bins


def count_bins(index: torch.Tensor) -> torch.Tensor:
    """Return the histogram [NUM_BINS] of integers from -2048 to 2047 held as floats, which are overwritten."""
    return torch.bincount(index.add_(_HALF).to(torch.int16), minlength=NUM_BINS)


def count_bins_on_device(index: torch.Tensor) -> torch.Tensor:
    """Return `count_bins` of up to 2^24 elements; unlike `torch.bincount`, the host does not wait for the device."""
    return torch.histc(index, bins=NUM_BINS, min=-_HALF, max=_HALF).to(torch.int64)
