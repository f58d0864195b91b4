"""The ways in which a range may be chosen: ours listed once, others' announced as entry points of `dipo.range_methods`.

This file is read for the list of options, so it leaves numpy to what it calls.
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
    """How `calib.method` chooses the range of an activation."""

    choose: Callable[[Statistics, QuantSpec, float], Range] | None
    """From what was observed, the grid that the range is for, and `calib.percentile`; None: from the moments that
    BatchNormalization's statistics give, without samples."""

    @property
    def reads_statistics(self) -> bool:
        """Whether samples have to be observed for it."""
        return self.choose is not None


def _minmax(stats: Statistics, _spec: QuantSpec, _percentile: float) -> Range:
    """Return all that was seen."""
    from dipo.quant.ranges import minmax_range

    return minmax_range(stats)


def _percentile(stats: Statistics, _spec: QuantSpec, percentile: float) -> Range:
    """Return a part of what was seen."""
    from dipo.quant.ranges import percentile_range

    return percentile_range(stats, percentile)


def _mse(stats: Statistics, spec: QuantSpec, _percentile: float) -> Range:
    """Return the least expected squared error."""
    from dipo.quant.mse import mse_range

    return mse_range(stats, spec)


def _kl(stats: Statistics, spec: QuantSpec, _percentile: float) -> Range:
    """TensorRT's entropy method."""
    from dipo.quant.entropy import entropy_range
    from dipo.quant.ranges import nearest_power

    return nearest_power(entropy_range(stats, spec), stats, spec)


def _octav(stats: Statistics, spec: QuantSpec, _percentile: float) -> Range:
    """Return the least squared error by OCTAV's model and iteration."""
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
"""By name."""
