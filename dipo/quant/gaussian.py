"""Mean and standard deviation of functions of normally distributed numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(64)
_WEIGHTS = _WEIGHTS / _WEIGHTS.sum()
_erfc = np.vectorize(math.erfc, otypes=[np.float64])


@dataclass(frozen=True, eq=False)
class Moments:
    """Moments and limits of the elements of each channel; float64 [C] each.

    `mu` and `sigma` are the parameters of the normal distribution that, clipped to `low` and `high`, the elements have.
    If no such distribution is known, they are the mean and the standard deviation themselves.
    """

    mean: NDArray[np.float64]
    std: NDArray[np.float64]
    low: NDArray[np.float64]
    """Lower limit of the elements; may be infinite."""
    high: NDArray[np.float64]
    """Upper limit of the elements; may be infinite."""
    mu: NDArray[np.float64]
    sigma: NDArray[np.float64]
    num_dims_behind: int = 0
    """Number of dimensions behind that of the channels."""

    @staticmethod
    def of(
        mean: ArrayLike, std: ArrayLike, *, low: ArrayLike = -np.inf, high: ArrayLike = np.inf, num_dims_behind: int = 0
    ) -> Moments:
        """Return moments without a known normal distribution; scalars hold for all channels."""
        arrays = np.broadcast_arrays(*(np.asarray(each, np.float64) for each in (mean, std, low, high)))
        mean, std, low, high = (np.atleast_1d(array) for array in arrays)
        return Moments(mean, std, low, high, mean, std, num_dims_behind)

    def spread(self, sigmas: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the ends of mu +- `sigmas` * sigma, clipped to the limits."""
        return tuple(  # type: ignore[return-value]
            np.clip(self.mu + sign * sigmas * self.sigma, self.low, self.high) for sign in (-1, 1)
        )


def clipped(x: Moments, low: ArrayLike, high: ArrayLike) -> Moments:
    """Return the moments of clip(x, low, high), with limits for all channels or for each, in closed form.

    With Z a standard normal number clipped to a and b:
    E[Z] = a F(a) + b (1 - F(b)) + f(a) - f(b) and
    E[Z^2] = a^2 F(a) + b^2 (1 - F(b)) + F(b) - F(a) + a f(a) - b f(b),
    f being the density and F the distribution function; clip(x) = mu + sigma Z.
    """
    low, high = (np.broadcast_to(np.asarray(end, np.float64), x.mean.shape) for end in (low, high))
    inside = (x.low >= low) & (x.high <= high)
    new_low, new_high = np.clip(x.low, low, high), np.clip(x.high, low, high)
    sigma = np.where(x.sigma > 0, x.sigma, 1.0)
    a, b = (new_low - x.mu) / sigma, (new_high - x.mu) / sigma
    below, above = _distribution(a), _distribution(-b)
    first = _times(a, below) + _times(b, above) + _density(a) - _density(b)
    second = _times(a * a, below) + _times(b * b, above) + (1 - below - above) + _slope(a) - _slope(b)
    flat = x.sigma == 0
    mean = np.where(flat, np.clip(x.mu, new_low, new_high), x.mu + sigma * first)
    std = np.where(flat, 0.0, sigma * np.sqrt(np.maximum(second - first * first, 0.0)))
    return Moments(
        np.where(inside, x.mean, np.clip(mean, new_low, new_high)),
        np.where(inside, x.std, std),
        new_low,
        new_high,
        x.mu,
        x.sigma,
        x.num_dims_behind,
    )


def leaky(x: Moments, slopes: ArrayLike) -> Moments:
    """Return the moments of x for x >= 0 and slope * x below: of x+ - slope * x-, of which one is always 0."""
    if (x.low >= 0).all():
        return x
    slopes = np.asarray(slopes, np.float64)
    positive, negative = clipped(x, 0, np.inf), clipped(negated(x), 0, np.inf)
    mean = positive.mean - slopes * negative.mean
    squares = _square(positive) + slopes**2 * _square(negative)
    ends = np.stack([np.where(end >= 0, end, _times(slopes, end)) for end in (x.low, x.high)])
    low = np.minimum(ends.min(axis=0), np.where((x.low < 0) & (x.high > 0), 0.0, np.inf))
    return Moments.of(
        mean, np.sqrt(np.maximum(squares - mean**2, 0.0)), low=low, high=ends.max(axis=0),
        num_dims_behind=x.num_dims_behind,
    )  # fmt: skip


def mapped(x: Moments, function: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> Moments:
    """Return the moments of an element-wise function of x, by Gauss-Hermite quadrature.

    Args:
        x: Moments of C channels.
        function: Function of numbers [C, n]. Its limits outside of the quadrature's nodes are not known.
    """
    nodes = x.mu[:, None] + x.sigma[:, None] * _NODES
    values = function(np.clip(nodes, x.low[:, None], x.high[:, None]))
    mean = values @ _WEIGHTS
    std = np.sqrt(((values - mean[:, None]) ** 2) @ _WEIGHTS)
    return Moments.of(mean, std, num_dims_behind=x.num_dims_behind)


def scaled(x: Moments, factor: ArrayLike, shift: ArrayLike = 0.0) -> Moments:
    """Return the moments of factor * x + shift, with numbers for all channels or for each."""
    factor, shift = np.asarray(factor, np.float64), np.asarray(shift, np.float64)
    ends = [_times(factor, end) + shift for end in (x.low, x.high)]
    size = np.abs(factor)
    return Moments(
        factor * x.mean + shift, size * x.std, np.minimum(*ends), np.maximum(*ends), factor * x.mu + shift,
        size * x.sigma, x.num_dims_behind,
    )  # fmt: skip


def negated(x: Moments) -> Moments:
    """Return the moments of -x."""
    return scaled(x, -1.0)


def summed(x: Moments, y: Moments) -> Moments:
    """Return the moments of x + y, which are assumed to be independent."""
    return Moments.of(
        x.mean + y.mean, np.hypot(x.std, y.std), low=x.low + y.low, high=x.high + y.high,
        num_dims_behind=max(x.num_dims_behind, y.num_dims_behind),
    )  # fmt: skip


def multiplied(x: Moments, y: Moments) -> Moments:
    """Return the moments of x * y, which are assumed to be independent."""
    mean = x.mean * y.mean
    ends = np.stack(np.broadcast_arrays(*(_times(a, b) for a in (x.low, x.high) for b in (y.low, y.high))))
    return Moments.of(
        mean, np.sqrt(np.maximum(_square(x) * _square(y) - mean**2, 0.0)), low=ends.min(axis=0),
        high=ends.max(axis=0), num_dims_behind=max(x.num_dims_behind, y.num_dims_behind),
    )  # fmt: skip


def _square(x: Moments) -> NDArray[np.float64]:
    square: NDArray[np.float64] = x.mean**2 + x.std**2
    return square


def _times(a: ArrayLike, b: ArrayLike) -> NDArray[np.float64]:
    """Return the product, 0 where a factor is 0: as for an infinite bound and its probability, 0."""
    a, b = np.broadcast_arrays(np.asarray(a, np.float64), np.asarray(b, np.float64))
    zero = (a == 0) | (b == 0)
    return np.where(zero, 0.0, np.where(zero, 1.0, a) * np.where(zero, 1.0, b))


def _density(x: NDArray[np.float64]) -> NDArray[np.float64]:
    density: NDArray[np.float64] = np.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
    return density


def _slope(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return _times(x, _density(x))


def _distribution(x: NDArray[np.float64]) -> NDArray[np.float64]:
    distribution: NDArray[np.float64] = 0.5 * _erfc(-x / math.sqrt(2))
    return distribution
