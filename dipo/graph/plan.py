"""Which tensors are quantized, and how: graph x platform rules x the user's overrides."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dipo.quant.spec import QParams, QuantSpec


@dataclass(frozen=True)
class LayerPlan:
    """A layer with weights: Conv, ConvTranspose, Gemm or MatMul with a constant side."""

    node: str
    """Name of the node."""
    weight: str
    """Name of its weight, an initializer that no other node uses."""
    bias: str | None
    """Name of its bias, an initializer that no other node uses; None for a MatMul, which has none."""
    axis: int
    """Axis of the weight that counts output channels."""
    spec: QuantSpec


@dataclass(frozen=True)
class Plan:
    """What is quantized. A value named in `activations` is quantized for every node that reads it, not as a graph output."""

    layers: dict[str, LayerPlan]
    """By name of the node, in topological order."""
    activations: dict[str, QuantSpec]
    """By name of the value, in topological order."""


@dataclass(frozen=True, eq=False)
class QuantizedLayer:
    """A layer's integer weights and its float bias."""

    codes: NDArray[np.int32]
    """Shaped like the weight."""
    qparams: QParams
    bias: NDArray[np.float32] | None

    @property
    def weight(self) -> NDArray[np.float32]:
        """The weight that the codes stand for."""
        scale, zero_point = self.qparams.along(self.codes.ndim)
        return ((self.codes - zero_point) * scale).astype(np.float32)


@dataclass(frozen=True)
class QuantizedModel:
    """What calibration and reconstruction found: all that an export writes."""

    layers: dict[str, QuantizedLayer]
    """By name of the node."""
    activations: dict[str, QParams]
    """By name of the value."""
