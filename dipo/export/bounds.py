"""Bounds of numbers: of a Relu or Clip, and of a quantizer that is narrower than the type of its codes."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from dipo.export.storage import type_limits
from dipo.graph.limits import clip_limits
from dipo.quant.codes import nearest_codes
from dipo.quant.spec import QParams


@dataclass(frozen=True)
class Bounds:
    """Bounds on numbers or on codes; None at an unbounded end."""

    low: float | None = None
    high: float | None = None

    @staticmethod
    def of_clip(node: ir.Node) -> Bounds | None:
        """Return the bounds of a Relu, or of a Clip to constants; None for any other node."""
        limits = clip_limits(node)
        if limits is None:
            return None
        low, high = (end if math.isfinite(end) else None for end in (limits.low, limits.high))
        return Bounds(low, high)

    @staticmethod
    def of_codes(qparams: QParams, dtype: ir.DataType) -> Bounds:
        """Return the limits of the codes that are narrower than those of `dtype`, in which they are stored."""
        smallest, largest = type_limits(dtype)
        return Bounds(
            low=qparams.qmin if qparams.qmin > smallest else None,
            high=qparams.qmax if qparams.qmax < largest else None,
        )

    def dequantized(self, qparams: QParams) -> Bounds:
        """Return these bounds on codes as bounds on the dequantized numbers."""
        low, high = (
            None if code is None else float((np.float32(code) - qparams.zero_point) * qparams.scale)
            for code in (self.low, self.high)
        )
        return Bounds(low, high)

    def limit(self, qparams: QParams) -> QParams:
        """Return the parameters with the limits that codes have if numbers are clipped to these bounds first."""

        def code(number: float) -> int:
            return int(nearest_codes(np.asarray(number, np.float32), qparams))

        low = qparams.qmin if self.low is None else code(self.low)
        high = qparams.qmax if self.high is None else code(self.high)
        return dataclasses.replace(qparams, qmin=low, qmax=high)
