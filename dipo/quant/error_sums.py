"""Sums over the elements of a value in two networks, from which cosine, SQNR and mean squared error follow."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class ErrorSums:
    """Sums over the elements of a float and a quantized value, additive over batches.

    Elements whose float number is infinite, such as masked scores, are left out: no grid holds them, and no error of
    theirs can be told.
    """

    fp_fp: float = 0.0
    """Sum of the squares of the float value."""
    q_q: float = 0.0
    """Sum of the squares of the quantized value."""
    fp_q: float = 0.0
    """Sum of the products of both."""
    noise: float = 0.0
    """Sum of the squared differences."""
    count: int = 0
    """Number of elements."""

    def __add__(self, other: ErrorSums) -> ErrorSums:
        return ErrorSums(
            self.fp_fp + other.fp_fp,
            self.q_q + other.q_q,
            self.fp_q + other.fp_q,
            self.noise + other.noise,
            self.count + other.count,
        )

    @staticmethod
    def between(fp: torch.Tensor, q: torch.Tensor) -> ErrorSums:
        """Return the sums of one batch, computed in float32."""
        import torch

        from dipo.quant.rounding import flat

        a, b = flat(fp.float()), flat(q.float())
        fp_fp = float(a @ a)
        if not math.isfinite(fp_fp):
            told = ~torch.isinf(a)
            a, b = a[told], b[told]
            fp_fp = float(a @ a)
        noise = a - b
        return ErrorSums(fp_fp, float(b @ b), float(a @ b), float(noise @ noise), a.numel())
