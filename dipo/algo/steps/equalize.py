"""Equalization: the ranges of channels balanced over consecutive layers, the function of the float network kept."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from dipo.algo.step import FloatChange, FloatNetwork, FloatStep, StepOptions
from dipo.errors import UserError

if TYPE_CHECKING:
    from numpy.typing import NDArray

log = logging.getLogger("dipo")


@dataclass(frozen=True)
class EqualizeOptions(StepOptions):
    """What is balanced."""

    equalize_per_channel: bool = False
    """Equalize weights with a scale for each channel, too: they do not need it, and activations get wider ranges."""
    absorb_bias: bool = True
    """Equalization moves what no activation cuts off from a layer's bias into the next one's."""


@dataclass(frozen=True)
class Equalize(FloatStep):
    """Balancing of the channels of layers with one scale for a weight (DFQ, arXiv:1906.04721, section 4.1).

    Reads the weights, the samples (how low each channel goes, so that absorbed biases leave the function as it is) and
    BatchNormalization's statistics, as far as they are there; leaves weights and biases of the float network changed.
    """

    name = "equalize"
    Options: ClassVar[type[StepOptions]] = EqualizeOptions
    options: EqualizeOptions

    @property
    def needs_samples(self) -> bool:
        """Whether it needs samples: it makes do without."""
        return False

    def change(self, network: FloatNetwork, *, record: Mapping[str, NDArray[Any]] | None = None) -> FloatChange:
        """Balance the channels; the record is the least number [C] of each layer's output on the samples."""
        from dipo.algo.bias_absorption import min_outputs
        from dipo.algo.data_free import channel_reaches
        from dipo.algo.equalize import equalize
        from dipo.algo.layer_pairs import Skipped

        if self._leaves_channels(network):
            where = next(iter(network.plan.layers))
            reason = (
                "left out, all weights have a scale for each channel (algo.equalize_per_channel=true equalizes them)"
            )
            return FloatChange(network.model, refusals=[Skipped(where, reason)])
        seen = None if record is None else dict(record)
        if record is None and network.has_samples and network.samples is not None and self.options.absorb_bias:
            seen = min_outputs(network.model, network.samples)
        try:
            reaches = channel_reaches(network.model, network.moments())
        except UserError as error:
            # Without them only the weights' ranges are balanced, as DFQ does.
            log.info("equalization looks at weights alone: %s", error)
            reaches = None
        equalized = equalize(network.model, absorb_bias=self.options.absorb_bias, seen_min=seen, reaches=reaches)
        return FloatChange(equalized.model, seen, equalized.chains, equalized.refusals)

    def _leaves_channels(self, network: FloatNetwork) -> bool:
        """Return whether equalization leaves the network as it is."""
        per_channel = all(layer.spec.per_channel for layer in network.plan.layers.values())
        return per_channel and not self.options.equalize_per_channel
