"""The common loop of AdaRound, BRECQ and QDrop, which differ in the size of a unit and in what is dropped."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, ClassVar, Self

from dipo.algo.phase import Phase
from dipo.algo.step import GuardOptions, StepOptions, UnitStep
from dipo.section import Between, OneOf

if TYPE_CHECKING:
    from dipo.algo.unit_solver import UnitResult, UnitWork

_AGAIN = "it would round the float weights once more and forget what was found"
NEVER_AFTER = {
    "adaround": _AGAIN,
    "brecq": _AGAIN,
    "qdrop": _AGAIN,
    "gptq": _AGAIN,
    "tune": "it would undo what was tuned end to end",
}


@dataclass(frozen=True)
class ReconstructionOptions(GuardOptions):
    """Training of a unit's rounding, biases and activation scales."""

    unit: Annotated[str | None, OneOf(("layer", "block", "stage", "network"))] = None
    """What is reconstructed together; null: a layer by adaround, else a block."""
    iters: Annotated[int, Between(1)] = 320
    """Optimizer steps for each unit."""
    polish_iters: Annotated[int | None, Between(0)] = None
    """Of those steps, the last that cluster.schedule=parallel runs behind the quantized units before; null: 15 %."""
    polish_lr: Annotated[float, Between(0)] = 2.0
    """Factor on all learning rates in those steps: they are few, and biases and scales have all but come to rest."""
    batch_size: Annotated[int, Between(1)] = 32
    """Samples in an optimizer step."""
    loss: Annotated[str, OneOf(("error", "fisher"))] = "error"
    """What a unit's outputs are judged by: their error, or their error times the squared gradients of the network's
    likelihood (BRECQ's Fisher diagonal)."""
    loss_norm: Annotated[float, Between(1)] = 2.0
    """Exponent of the error in the loss."""
    inputs: Annotated[str, OneOf(("quantized", "float"))] = "quantized"
    """What a unit reads while it is reconstructed: what the quantized units before it give (asymmetric), or the float
    network's values (symmetric)."""
    fp_input_prob: Annotated[float | None, Between(0, 0.99)] = None
    """Probability, in steps of 1/256, that an element of an activation keeps its float value during reconstruction;
    null: 0.5 by qdrop, else 0."""
    rounding: Annotated[str, OneOf(("sigmoid", "straight_through"))] = "sigmoid"
    """How rounding is learned: up or down from each weight by a rectified sigmoid (AdaRound), or any code, with
    gradients that pass the rounding as if it were not there."""
    train_scale: bool = False
    """Train the weights' scales together with the rounding (Genie)."""
    lr_round: Annotated[float, Between(0)] = 1.5e-3
    """Learning rate of the rounding, for algo.reference_iters steps; multiplied by reference_iters / iters."""
    lr_bias: Annotated[float, Between(0)] = 1e-3
    """Learning rate of the biases, scaled like lr_round."""
    lr_act: Annotated[float, Between(0)] = 4e-4
    """Learning rate of the activation scales' logarithms, scaled like lr_round."""
    lr_scale: Annotated[float, Between(0)] = 5e-4
    """Learning rate of the weight scales' logarithms, scaled like lr_round (algo.train_scale, and tune)."""
    reference_iters: Annotated[int, Between(1)] = 2000
    """Optimizer steps for which the learning rates are quoted."""
    reg_strength: Annotated[float, Between(0)] = 0.01
    """Weight of the regulariser that drives the rounding to 0 or 1."""
    warmup: Annotated[float, Between(0, 1)] = 0.2
    """Fraction of the steps before the regulariser sets in."""
    beta_start: Annotated[float, Between(0, above=True)] = 20.0
    """Exponent of the regulariser as it sets in."""
    beta_end: Annotated[float, Between(0, above=True)] = 2.0
    """Exponent of the regulariser at the last step."""
    correct_bias: bool = True
    """Correct the biases after each unit; kept only where that lowers the error of the unit's output."""
    train_bias: bool = True
    """Train the biases together with the rounding."""


@dataclass(frozen=True)
class Reconstruction(UnitStep):
    """Training of a unit's rounding, so that its outputs come near the float network's.

    Reads both networks in front of the unit; leaves codes, biases and activation scales, and `rounding`, which a later
    phase resumes. With cluster.schedule=parallel the first phases run on all units at the same time.
    """

    Options: ClassVar[type[StepOptions]] = ReconstructionOptions
    never_after = NEVER_AFTER
    learns_rounding = True
    carries_float = True
    default_unit: ClassVar[str] = "block"
    default_fp_input_prob: ClassVar[float] = 0.0

    options: ReconstructionOptions
    part: Phase | None = field(default=None, kw_only=True)
    """The steps of the schedule to run; None: all."""

    @property
    def granularity(self) -> str:
        """Size of a unit: a block, unless asked otherwise."""
        return self.options.unit or self.default_unit

    @property
    def phase(self) -> Phase:
        """The part of the schedule that is run."""
        return self.part or Phase(0, self.options.iters)

    @property
    def num_steps(self) -> int:
        """Number of optimizer steps of the phase for each unit."""
        return len(self.phase)

    @property
    def unit_title(self) -> str:
        """The terminal's word for a unit; a later phase polishes it."""
        return "polish unit" if self.phase.first else "unit"

    @property
    def batch_size(self) -> int | None:
        """Number of samples in an optimizer step, from the options."""
        return self.options.batch_size

    @property
    def training(self) -> ReconstructionOptions:
        """The options, with the step's own defaults where they are null."""
        prob = self.options.fp_input_prob
        return dataclasses.replace(
            self.options,
            unit=self.granularity,
            fp_input_prob=self.default_fp_input_prob if prob is None else prob,
        )

    def for_phase(self, phase: Phase | None) -> Self:
        """Return the step for a part of its schedule; None: all of it."""
        return dataclasses.replace(self, part=phase)

    def solve(self, work: UnitWork) -> UnitResult:
        """Train the unit; after the last phase correct its biases where that helps, and judge it."""
        from dipo.algo.unit_training import train_unit

        ends = self.phase.stop == self.options.iters
        return train_unit(
            work, cfg=self.training, phase=self.phase, seed=self.seed, corrects=ends and self.options.correct_bias,
            judges=ends,
        )  # fmt: skip
