"""GPTQ with an asymmetric target: every layer in closed form behind the quantized ones before it, nothing trained."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, ClassVar, Self

from dipo.algo.step import GuardOptions, NetworkState, StepOptions, UnitStep
from dipo.algo.steps.reconstruction import NEVER_AFTER
from dipo.recipe import CalibConfig
from dipo.section import Between, OneOf

if TYPE_CHECKING:
    from dipo.algo.unit_solver import UnitResult, UnitWork


@dataclass(frozen=True)
class GptqOptions(GuardOptions):
    """How a layer is solved in closed form."""

    gptq_positions: Annotated[int, Between(1)] = 40000
    """Positions of a layer's output that its sums take, spread evenly over the samples."""
    gptq_damping: Annotated[float | None, Between(0, above=True)] = None
    """What is added to the diagonal of H, as a part of its mean; null: what is best on held-out samples."""
    gptq_target: Annotated[str, OneOf(("asymmetric", "symmetric"))] = "asymmetric"
    """What is rounded: the weights that repeat the float network's values best from the quantized inputs, the error of
    a shortcut included (asymmetric, GPTAQ), or the float weights (symmetric, GPTQ)."""
    gptq_new_grids: bool = True
    """Choose scales and zero points anew, as calib.weights says, for the weights that are rounded."""
    gptq_act_order: bool = False
    """Round the columns of the inputs with most power first."""
    gptq_act_grids: Annotated[str, OneOf(("calibrated", "output"))] = "output"
    """Scales of activations below 8 bits: those of calibration, or those with which the layers that read them lose
    least (output)."""
    gptq_descent: bool = True
    """Let coordinate descent follow, with the scales fitted in between (QuantEase)."""

    @property
    def dampings(self) -> tuple[float, ...]:
        """The dampings that held-out samples choose from."""
        return (0.003, 0.03, 0.3, 3.0) if self.gptq_damping is None else (self.gptq_damping,)

    @property
    def few_damping(self) -> float:
        """The damping where no sample is held out."""
        return 10.0 if self.gptq_damping is None else self.gptq_damping


@dataclass(frozen=True)
class Gptq(UnitStep):
    """Least squares, GPTQ's columns and coordinate descent, for one layer after the other.

    Reads both networks in front of the layer; leaves codes, scales, zero points and biases.
    """

    name = "gptq"
    Options: ClassVar[type[StepOptions]] = GptqOptions
    never_after: ClassVar[Mapping[str, str]] = NEVER_AFTER
    learns_rounding = True
    carries_float = True

    options: GptqOptions
    calib: CalibConfig = field(default_factory=CalibConfig, kw_only=True)
    num_samples: int = field(default=0, kw_only=True)
    """Number of calibration samples."""

    @property
    def granularity(self) -> str:
        """Size of a unit: a layer."""
        return "layer"

    def bound(self, state: NetworkState) -> Self:
        """Return the step with the way to choose grids and the number of samples."""
        return dataclasses.replace(self.seeded(state.seed), calib=state.calib, num_samples=state.num_samples)

    def solve(self, work: UnitWork) -> UnitResult:
        """Solve the unit's layers."""
        from dipo.algo.gptq import solve_unit

        return solve_unit(work, cfg=self.options, calib=self.calib, num_samples=self.num_samples, seed=self.seed)
