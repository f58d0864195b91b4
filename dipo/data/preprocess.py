"""Conversion of stored arrays to a model's inputs: layout, pixel normalisation, dtype."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dipo.data.samples import InputSpec, shape_text
from dipo.errors import UserError

Layout = Literal["auto", "nchw", "nhwc"]
LAYOUTS: tuple[Layout, ...] = ("auto", "nchw", "nhwc")

_IMAGE_CHANNELS = (1, 3, 4)
_FROM_NHWC = (0, 3, 1, 2)
_FROM_NCHW = (0, 2, 3, 1)


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """Normalisation of pixels, as in the network's training: `(x * scale - mean) / std`."""

    mean: tuple[float, ...]
    """Mean of each channel, or one for all."""
    std: tuple[float, ...]
    scale: float
    size: int | None
    """Length of an image file's shorter side before the crop, in pixels; None: as long as the crop needs."""
    layout: Layout
    """Layout of stored arrays; `auto`: by comparison with the model's input."""


@dataclass(frozen=True, eq=False)
class Fit:
    """Conversion of the samples of one stored array to one of the model's inputs."""

    spec: InputSpec
    stored_shape: tuple[int, ...]
    """Shape of one sample, with the channel axis that a grey image may lack."""
    order: tuple[int, ...] | None
    """Axes of the stored batch in the order of the model's input; None: unchanged."""
    pixels: NDArray[np.float32] | None
    """Value of each pixel code, [channels, 256], or [1, 256] if equal for all channels; None: no normalisation."""

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one sample of the model's input."""
        return _reordered(self.stored_shape, self.order)

    def pixel_text(self) -> str | None:
        """Say what numbers pixels become, for each channel or for all; None without pixels."""
        if self.pixels is None:
            return None
        ends = dict.fromkeys(f"{low:.3g} to {high:.3g}" for low, high in self.pixels[:, [0, -1]])
        return f"0 to 255 become {', '.join(ends)}"

    def apply(self, stored: NDArray[Any], *, first: int, source: str) -> NDArray[Any]:
        """Transpose, normalise and cast samples.

        Args:
            stored: Samples as stored, [n, ...].
            first: Index of the first sample in the dataset, for messages.
            source: File or array that the samples come from, for messages.

        Returns:
            Samples [n, ...] of the input's dtype, C-contiguous, sharing no memory with `stored`.

        Raises:
            UserError: A sample has NaN, Inf, or a value that the input's dtype cannot hold.
        """
        stored = stored.reshape(len(stored), *self.stored_shape)
        if self.order is not None:
            stored = stored.transpose(self.order)
        if self.pixels is not None:
            return self.spec.as_taken(_normalise(stored, self.pixels, _channel_axis(self.spec)), copy=False)
        cast = self.spec.as_taken(stored)
        self._check_values(stored, cast, first=first, source=source)
        return cast

    def _check_values(self, stored: NDArray[Any], cast: NDArray[Any], *, first: int, source: str) -> None:
        if cast.dtype.kind == "f":
            good = np.isfinite(cast)
        elif not np.can_cast(stored.dtype, cast.dtype, "safe"):
            good = cast == stored
        else:
            return
        bad = np.flatnonzero(~good.reshape(len(cast), -1).all(axis=1))
        if len(bad):
            problem = "NaN or Inf" if cast.dtype.kind == "f" else "a value out of range"
            raise UserError(
                f"{source}: sample {first + int(bad[0])} has {problem} for input '{self.spec.name}' "
                f"({self.spec.stored}); repair or remove it"
            )


def fit(spec: InputSpec, *, shape: tuple[int, ...], dtype: np.dtype[Any], how: Preprocessing, source: str) -> Fit:
    """Return the conversion of stored samples to a model's input.

    uint8 samples of a float input are pixels and are normalised; all others are cast. Axes are moved only if a sample
    and the input both have three: as `how.layout` says or, with `auto`, if only that makes the shapes agree.

    Args:
        spec: The model's input.
        shape: Shape of one stored sample.
        dtype: Type of its numbers.
        how: Layout and normalisation.
        source: File or array that the samples come from, for messages.

    Raises:
        UserError: The shape or the type does not fit the input, or mean and std do not fit the channels.
    """
    is_pixels = dtype == np.uint8 and spec.dtype.kind == "f"
    wanted = spec.sample_shape
    stored_shape = _with_channel(shape, wanted)
    order = None if stored_shape != shape else _order(wanted, shape, how.layout, prefer_nhwc=dtype == np.uint8)
    if not _agree(_reordered(stored_shape, order), wanted):
        layout = "" if how.layout == "auto" else f" (data.layout={how.layout})"
        raise UserError(
            f"{source} holds samples of {shape_text(shape)}{layout}, but input '{spec.name}' takes "
            f"{shape_text(wanted)}: give samples of that shape, several of them along the first axis"
        )
    if not is_pixels and not np.can_cast(dtype, spec.dtype, "same_kind"):
        raise UserError(
            f"{source} holds {dtype}, but input '{spec.name}' takes {spec.stored}: store it as {spec.stored}"
        )
    result = Fit(spec, stored_shape, order, None)
    if not is_pixels:
        return result
    axis = _channel_axis(spec)
    channels = 1 if axis is None else (1, *result.sample_shape)[axis]
    return Fit(spec, stored_shape, order, pixel_values(how, channels=channels, source=source))


def pixel_values(how: Preprocessing, *, channels: int, source: str) -> NDArray[np.float32]:
    """Return `(x * scale - mean) / std` for x = 0 .. 255, computed in float64.

    Returns:
        Table of shape [channels, 256].

    Raises:
        UserError: `mean` or `std` has neither 1 nor `channels` values.
    """
    for key, values in (("mean", how.mean), ("std", how.std)):
        if len(values) not in (1, channels):
            raise UserError(
                f"data.{key} has {len(values)} values, but {source} has {channels} channel(s): give 1 or {channels}"
            )
    mean, std = (np.broadcast_to(np.asarray(values, np.float64), channels)[:, None] for values in (how.mean, how.std))
    return ((np.arange(256, dtype=np.float64) * how.scale - mean) / std).astype(np.float32)


def is_channels_last(shape: tuple[int | None, ...]) -> bool:
    """Return whether a shape is that of an image with its channels last."""
    return len(shape) == 3 and shape[0] not in _IMAGE_CHANNELS and shape[2] in _IMAGE_CHANNELS


def sample_shape_in(spec: InputSpec, layout: Layout) -> tuple[int | None, ...]:
    """Return the shape of a sample stored in a layout; `auto`: as the model takes it."""
    shape = spec.sample_shape
    if len(shape) != 3 or layout == "auto" or (layout == "nhwc") == is_channels_last(shape):
        return shape
    return (shape[1], shape[2], shape[0]) if layout == "nhwc" else (shape[2], shape[0], shape[1])


def _channel_axis(spec: InputSpec) -> int | None:
    if len(spec.sample_shape) != 3:
        return None
    return 3 if is_channels_last(spec.sample_shape) else 1


def _with_channel(shape: tuple[int, ...], wanted: tuple[int | None, ...]) -> tuple[int, ...]:
    """Return the shape of a grey image with its channel axis, if the model has one."""
    if len(shape) != 2 or len(wanted) != 3:
        return shape
    return (*shape, 1) if is_channels_last(wanted) else (1, *shape)


def _order(
    wanted: tuple[int | None, ...], stored: tuple[int, ...], layout: Layout, *, prefer_nhwc: bool
) -> tuple[int, ...] | None:
    if len(wanted) != 3 or len(stored) != 3:
        return None
    model_last = is_channels_last(wanted)
    swap = _FROM_NCHW if model_last else _FROM_NHWC
    if layout != "auto":
        return None if (layout == "nhwc") == model_last else swap
    if not _agree(_reordered(stored, swap), wanted):
        return None
    if not _agree(stored, wanted):
        return swap
    return swap if prefer_nhwc and is_channels_last(stored) != model_last else None


def _agree(shape: tuple[int, ...], wanted: tuple[int | None, ...]) -> bool:
    return len(shape) == len(wanted) and all(want in (None, have) for have, want in zip(shape, wanted, strict=True))


def _reordered(shape: tuple[int, ...], order: tuple[int, ...] | None) -> tuple[int, ...]:
    return shape if order is None else tuple(shape[axis - 1] for axis in order[1:])


def _normalise(codes: NDArray[Any], values: NDArray[np.float32], axis: int | None) -> NDArray[np.float32]:
    # np.take with mode="clip" writes directly into `out`: as fast as float arithmetic, and exact. One sample at a time
    # keeps its indices, which numpy widens to 64 bits, in the cache.
    result = np.empty(codes.shape, np.float32)
    for sample, out in zip(codes, result, strict=True):
        if axis is None:
            np.take(values[0], sample, out=out, mode="clip")
            continue
        planes = np.moveaxis(sample, axis - 1, 0), np.moveaxis(out, axis - 1, 0)
        for channel, plane, out_plane in zip(values, *planes, strict=True):
            np.take(channel, plane, out=out_plane, mode="clip")
    return result
