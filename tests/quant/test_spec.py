"""Scales and zero points from ranges."""

import numpy as np
import pytest

from dipo.quant.spec import QuantSpec, qparams_between


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(("low", "high"), [(-3.4028235e38, 0), (0, 3.4028235e38), (-3.4028235e38, 3.4028235e38)])
def test_no_code_stands_for_an_infinite_number(symmetric, low, high):
    """The least float32 is a mask of many exporters."""
    spec = QuantSpec(8, signed=True, symmetric=symmetric)
    found = qparams_between(low, high, spec)
    codes = np.array([found.qmin, found.qmax], np.float32)
    assert np.isfinite((codes - found.zero_point.astype(np.float32)) * found.scale).all()
