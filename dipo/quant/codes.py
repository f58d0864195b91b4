"""Rounding of weights to codes, in NumPy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dipo.quant.spec import QParams


def nearest_codes(weight: NDArray[np.float32], qparams: QParams) -> NDArray[np.int32]:
    """Return the nearest code of every weight, shaped like `weight`."""
    scale, zero_point = qparams.broadcast_to(weight.ndim)
    codes = np.clip(np.rint(weight / scale) + zero_point, qparams.qmin, qparams.qmax)
    return np.asarray(codes, np.int32)
