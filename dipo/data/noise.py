"""Random samples for networks without data: they show that a quantized network runs and is close to float."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from dipo.data.samples import InputSpec, Samples, shape_text
from dipo.errors import UserError


@dataclass(frozen=True)
class NoiseDataset:
    """Smooth noise with the spectrum of photographs, within the limits of pixels.

    Where `mean` is given, numbers are those of pixels that are normalised by it: normal with mean 0 and deviation 1.
    Otherwise they are pixels, with the mean and the deviation of an even distribution from 0 to 1, over `std`.
    """

    inputs: tuple[InputSpec, ...]
    num: int
    seed: int
    mean: tuple[float, ...] | None = None
    """Mean of pixels in 0 .. 1, for each channel or for all; None: they are not centred."""
    std: tuple[float, ...] | None = None
    """What they are divided by, likewise; None: 1."""

    def __len__(self) -> int:
        return self.num

    def read(self, start: int, stop: int) -> Samples:
        """Return samples `start` to `stop` (not included), the same numbers in every process."""
        assert 0 <= start < stop <= self.num
        inputs = {
            spec.name: np.stack([self._sample(number, spec, 0 if spec.axis is None else i) for i in range(start, stop)])
            for number, spec in enumerate(self.inputs)
        }
        return Samples(inputs, None)

    def digest(self) -> str:
        """Return the SHA-256 of the parameters of the noise."""
        text = repr((self.seed, self.num, self.mean, self.std, [(each.name, each.shape) for each in self.inputs]))
        return hashlib.sha256(text.encode()).hexdigest()

    def describe(self) -> str:
        """Return a short description for the log."""
        shapes = ", ".join(f"{spec.name} {shape_text(spec.sample_shape)}" for spec in self.inputs)
        return f"{self.num} samples of noise, no data ({shapes})"

    def pixels(self) -> str | None:
        """Return None: nothing is read."""
        return None

    def take(self, num: int) -> NoiseDataset:
        """Return the dataset of the first `num` samples."""
        return replace(self, num=num)

    def _sample(self, number: int, spec: InputSpec, index: int) -> NDArray[np.floating]:
        generator = np.random.default_rng([self.seed, number, index])
        noise = _smooth_noise(tuple(size or 1 for size in spec.sample_shape), generator)
        behind = (1,) * (noise.ndim - 1)
        mean, std = (
            np.asarray(default if each is None else each).reshape(-1, *behind)
            for each, default in ((self.mean, 0.0), (self.std, 1.0))
        )
        low, high = (0 - mean) / std, (1 - mean) / std
        if self.mean is None:
            noise = (low + high) / 2 + noise * (high - low) / math.sqrt(12)
        noise = np.clip(noise, low, high)
        return spec.as_taken(noise, copy=False)


def make_noise(
    inputs: Sequence[InputSpec],
    *,
    num: int,
    seed: int,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> NoiseDataset:
    """Return noise for a network's inputs.

    Args:
        inputs: The network's inputs.
        num: Number of samples.
        seed: Seed of the numbers.
        mean: Mean of pixels in 0 .. 1, for each channel or for all; None: they are not centred.
        std: Their standard deviation, likewise; None: 1.

    Raises:
        UserError: An input is no float tensor of a fixed shape, or has another number of channels.
    """
    for spec in inputs:
        if not np.issubdtype(spec.dtype, np.floating) or None in spec.sample_shape:
            raise UserError(
                f"input '{spec.name}' ({spec.dtype}, {shape_text(spec.sample_shape)}) cannot be filled with noise, "
                "give data.path"
            )
        channels = spec.sample_shape[0] if spec.sample_shape else 1
        for key, values in (("mean", mean), ("std", std)):
            if values is not None and len(values) not in (1, channels):
                raise UserError(
                    f"data.{key} has {len(values)} numbers for {channels} channels of input '{spec.name}', give one "
                    "for each or one for all"
                )
    given = (None if values is None else tuple(values) for values in (mean, std))
    return NoiseDataset(tuple(inputs), num, seed, *given)


def _smooth_noise(shape: tuple[int, ...], generator: np.random.Generator) -> NDArray[np.float64]:
    """Return normal numbers whose amplitude falls with the frequency along the dimensions behind the first."""
    noise = generator.standard_normal(shape)
    axes = tuple(range(1, len(shape)))
    if not axes:
        return noise
    frequencies = np.meshgrid(*(np.fft.fftfreq(shape[axis]) for axis in axes), indexing="ij")
    lowest = 1 / max(shape[axis] for axis in axes)
    amplitudes = 1 / np.maximum(np.sqrt(sum(each**2 for each in frequencies)), lowest)
    amplitudes /= np.sqrt((amplitudes**2).mean())
    smooth: NDArray[np.float64] = np.fft.ifftn(np.fft.fftn(noise, axes=axes) * amplitudes, axes=axes).real
    return smooth
