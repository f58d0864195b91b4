"""Bias correction: a layer's output gets the channel means that it has in the float network (DFQ, arXiv:1906.04721)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, ClassVar, Self

from dipo.algo.step import GuardOptions, NetworkChange, NetworkState, NetworkStep, StepOptions, UnitStep, Workers
from dipo.algo.steps.reconstruction import NEVER_AFTER
from dipo.section import OneOf

if TYPE_CHECKING:
    from dipo.algo.channel_means import ChannelMeans
    from dipo.algo.unit_solver import UnitResult, UnitWork


@dataclass(frozen=True)
class BiasCorrectionOptions(GuardOptions):
    """Where the mean input of a layer comes from."""

    bias_source: Annotated[str, OneOf(("auto", "data", "batchnorm"))] = "auto"
    """Where bias_correction takes a layer's mean input from: the samples, or the BatchNormalization before it; auto:
    the samples, where there are any."""


@dataclass(frozen=True)
class BiasCorrection(UnitStep, NetworkStep):
    """Correction of each layer's bias, on the outputs of the quantized and corrected layers before it.

    With samples it goes from layer to layer: the float network's channel means are those that calibration saw, the
    quantized network's are measured (section 4.2). Without, it takes the means from BatchNormalization's statistics,
    for the network as a whole (section 4.2.1). Leaves the bias alone changed.
    """

    name = "bias_correction"
    Options: ClassVar[type[StepOptions]] = BiasCorrectionOptions
    never_after: ClassVar[Mapping[str, str]] = {"tune": NEVER_AFTER["tune"]}
    reads_outputs = True

    options: BiasCorrectionOptions
    fp_means: Mapping[str, ChannelMeans] = field(default_factory=dict, kw_only=True)
    """Channel means of each layer's output in the float network, by name of the layer."""

    @property
    def needs_samples(self) -> bool:
        """Whether samples are asked for by `bias_source=data`."""
        return self.options.bias_source == "data"

    def reads_channel_means(self, *, has_samples: bool) -> bool:
        """Return whether the means come from samples: they do unless asked otherwise or there are none."""
        source = self.options.bias_source
        return source == "data" or (source == "auto" and has_samples)

    def solves_units(self, *, has_samples: bool) -> bool:
        """Return whether it goes from layer to layer: it does where the means come from samples."""
        return self.reads_channel_means(has_samples=has_samples)

    @property
    def granularity(self) -> str:
        """Size of a unit: a layer."""
        return "layer"

    def bound(self, state: NetworkState) -> Self:
        """Return the step with the float network's means."""
        return dataclasses.replace(self, fp_means=state.calibration.channel_means)

    def solve(self, work: UnitWork) -> UnitResult:
        """Measure the layer's means and move its bias by the difference, where that helps."""
        from dipo.algo.bias_correction import corrected_layer
        from dipo.algo.unit_solver import UnitResult

        if work.outputs is None:
            return UnitResult({}, {}, bias_corrected=True)
        fp_means = self.fp_means[work.outputs.layer]
        layer, judged = corrected_layer(work.pair, work.outputs, fp_means, held_out=work.held_out)
        corrected = judged is None or judged.kept
        return UnitResult({work.outputs.layer: layer}, {}, bias_corrected=corrected, judged=judged)

    def run(self, state: NetworkState, workers: Workers) -> NetworkChange:
        """Correct all biases by the moments of the float network's values."""
        from dipo.algo.data_free import analytic_bias_correction

        del workers
        quantized = analytic_bias_correction(
            state.model, plan=state.plan, quantized=state.quantized, moments=state.moments()
        )
        return NetworkChange(quantized)
