"""The methods that choose a range: dipo's own, and others' from entry points of group `dipo.range_methods`.

This file is imported for the list of options, so numpy is only imported by what it calls.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dipo.registry import Registry

if TYPE_CHECKING:
    from dipo.quant.observers import Statistics
    from dipo.quant.spec import QuantSpec, Range


@dataclass(frozen=True)
class RangeMethod:
    """A method, named by `calib.method`, that chooses the range of an activation."""

    choose: Callable[[Statistics, QuantSpec, float], Range] | None
    """Function of the statistics, the grid and `calib.percentile`; None: the range follows, without samples, from the
    moments that BatchNormalization's statistics give."""

    @property
    def reads_statistics(self) -> bool:
        """Whether it needs statistics of samples."""
        return self.choose is not None


def _minmax(stats: Statistics, _spec: QuantSpec, _percentile: float) -> Range:
    """Return the observed range."""
    from dipo.quant.ranges import minmax_range

    return minmax_range(stats)


def _percentile(stats: Statistics, _spec: QuantSpec, percentile: float) -> Range:
    """Return the range of the given per cent of the values."""
    from dipo.quant.ranges import percentile_range

    return percentile_range(stats, percentile)


def _mse(stats: Statistics, spec: QuantSpec, _percentile: float) -> Range:
    """Return the range with the least expected squared error."""
    from dipo.quant.mse import mse_range

    return mse_range(stats, spec)


def _kl(stats: Statistics, spec: QuantSpec, _percentile: float) -> Range:
    """Return the range of TensorRT's entropy method."""
    from dipo.quant.entropy import entropy_range
    from dipo.quant.ranges import nearest_power

    return nearest_power(entropy_range(stats, spec), stats, spec)


def _octav(stats: Statistics, spec: QuantSpec, _percentile: float) -> Range:
    """Return the range with the least squared error by OCTAV's model and iteration."""
    from dipo.quant.octav import octav_range
    from dipo.quant.ranges import nearest_power

    return nearest_power(octav_range(stats, spec), stats, spec)


RANGE_METHODS: Registry[RangeMethod] = Registry(
    "range method",
    {
        "minmax": RangeMethod(_minmax),
        "percentile": RangeMethod(_percentile),
        "mse": RangeMethod(_mse),
        "kl": RangeMethod(_kl),
        "octav": RangeMethod(_octav),
        "batchnorm": RangeMethod(None),
    },
    group="dipo.range_methods",
)
"""Range methods by name."""
