"""End-to-end tuning: biases and scales trained on the outputs of the whole network, the codes of weights fixed."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from dipo.algo.phase import Phase
from dipo.algo.step import StepOptions, UnitStep
from dipo.algo.steps.reconstruction import ReconstructionOptions
from dipo.section import Between

if TYPE_CHECKING:
    from dipo.algo.unit_solver import UnitResult, UnitWork


@dataclass(frozen=True)
class TuneOptions(ReconstructionOptions):
    """Training of biases and scales on the network's outputs; the learning rates are reconstruction's."""

    tune_iters: Annotated[int, Between(1)] = 150
    """Optimizer steps of tune, on the whole network."""
    tune_lr: Annotated[float, Between(0)] = 1.0
    """Factor on lr_bias, lr_scale and lr_act in tune, where they are not scaled by reference_iters."""


@dataclass(frozen=True)
class Tune(UnitStep):
    """Training of biases and scales after a reconstruction, as EfficientQAT (arXiv:2407.11062) does with weight scales.

    Here biases and activation scales go along. Reads both networks' inputs; leaves biases and scales.
    """

    name = "tune"
    Options: ClassVar[type[StepOptions]] = TuneOptions
    carries_float = True

    options: TuneOptions

    @property
    def granularity(self) -> str:
        """Size of a unit: the network as a whole."""
        return "network"

    @property
    def num_steps(self) -> int:
        """Number of optimizer steps, `tune_iters`."""
        return self.options.tune_iters

    @property
    def batch_size(self) -> int | None:
        """Number of samples in an optimizer step, from the options."""
        return self.options.batch_size

    @property
    def training(self) -> ReconstructionOptions:
        """Options of reconstruction that the network is tuned with: learning rates as they are given."""
        cfg = self.options
        return dataclasses.replace(
            cfg,
            unit=self.granularity,
            iters=cfg.tune_iters,
            reference_iters=cfg.tune_iters,
            lr_bias=cfg.lr_bias * cfg.tune_lr,
            lr_act=cfg.lr_act * cfg.tune_lr,
            lr_scale=cfg.lr_scale * cfg.tune_lr,
            fp_input_prob=0.0,
            loss="error",
            loss_norm=2.0,
            inputs="quantized",
            train_scale=True,
            train_bias=True,
        )

    def solve(self, work: UnitWork) -> UnitResult:
        """Train the network."""
        from dipo.algo.unit_training import train_unit

        whole = Phase(0, self.options.tune_iters)
        return train_unit(work, cfg=self.training, phase=whole, seed=self.seed, freeze_rounding=True, judges=True)
