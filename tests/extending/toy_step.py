"""A step as another package brings it: this file, and its entry point in the group `dipo.steps`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, ClassVar

from dipo.algo.step import StepOptions, UnitStep
from dipo.section import Between

if TYPE_CHECKING:
    from dipo.algo.unit_solver import UnitResult, UnitWork


@dataclass(frozen=True)
class FitScalesOptions(StepOptions):
    """How far scales go."""

    strength: Annotated[float, Between(0, 1)] = 1.0
    """0: scales stay as they are; 1: they become the best ones for the codes."""


@dataclass(frozen=True)
class FitScales(UnitStep):
    """Gives each weight the scales with which its codes come nearest to the float weight.

    For a channel with float weights w and codes less their zero point c, that is s = <w, c> / <c, c>.
    """

    name = "fit_scales"
    Options: ClassVar[type[StepOptions]] = FitScalesOptions
    never_after: ClassVar[dict[str, str]] = {"tune": "it would undo what was tuned end to end"}

    options: FitScalesOptions

    @property
    def needs_samples(self) -> bool:
        """It looks at weights alone."""
        return False

    @property
    def granularity(self) -> str:
        """A layer."""
        return "layer"

    def solve(self, work: UnitWork) -> UnitResult:
        """Fit the scales of the unit's layer."""
        import numpy as np

        from dipo.algo.reference_weights import target_of
        from dipo.algo.unit_solver import UnitResult

        found = {}
        for name in work.layers:
            layer = work.pair.layers[name]
            old, zero_point = layer.qparams.broadcast_to(layer.codes.ndim)
            codes = (layer.codes - zero_point).astype(np.float64)
            others = tuple(axis for axis in range(codes.ndim) if axis != layer.qparams.axis)
            power = np.square(codes).sum(others, keepdims=True)
            best = (target_of(work.pair, name) * codes).sum(others, keepdims=True) / np.maximum(power, 1)
            best = np.where(best > 0, best, old)
            scale = (1 - self.options.strength) * old + self.options.strength * best
            scale = scale.reshape(layer.qparams.scale.shape).astype(np.float32)
            found[name] = replace(layer, qparams=replace(layer.qparams, scale=scale))
        return UnitResult(found, {})
