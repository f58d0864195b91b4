"""BatchNorm re-estimation: a layer's folded BatchNormalization gets the statistics of the quantized network."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Self

from dipo.algo.step import NetworkState, UnitStep
from dipo.algo.steps.reconstruction import NEVER_AFTER
from dipo.recipe import CalibConfig

if TYPE_CHECKING:
    from dipo.algo.unit_solver import UnitResult, UnitWork
    from dipo.graph.batch_norm import BatchNorm


@dataclass(frozen=True)
class UpdateBatchNorm(UnitStep):
    """Measurement of each layer's output's mean and variance in the quantized network, which are folded anew.

    Reads the quantized network's values; leaves scales and biases changed, and codes where the weight has one scale.
    Layers without a BatchNormalization stay as they are.
    """

    name = "update_bn"
    never_after: ClassVar[Mapping[str, str]] = {
        "bias_correction": "it sets the channel means itself, and the correction would be lost",
        "tune": NEVER_AFTER["tune"],
    }

    norms: Mapping[str, BatchNorm | None] = field(default_factory=dict, kw_only=True)
    """The BatchNormalization folded into each layer, by name: nodes lose it on their way to a worker."""
    calib: CalibConfig = field(default_factory=CalibConfig, kw_only=True)

    @property
    def granularity(self) -> str:
        """Size of a unit: a layer."""
        return "layer"

    def bound(self, state: NetworkState) -> Self:
        """Return the step with the network's BatchNormalizations."""
        from dipo.graph.batch_norm import batch_norm_of
        from dipo.graph.layers import layers_of

        norms = {layer.name: batch_norm_of(layer.node) for layer in layers_of(state.model)}
        return dataclasses.replace(self, norms=norms, calib=state.calib)

    def solve(self, work: UnitWork) -> UnitResult:
        """Re-estimate the BatchNormalization of the unit's layer."""
        from dipo.algo.unit_solver import UnitResult
        from dipo.algo.update_bn import updated_layers

        norm = next((self.norms[name] for name in work.unit.layers), None)
        return UnitResult(updated_layers(work.pair, work.unit, norm, calib=self.calib), {})
