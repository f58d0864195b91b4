import math

import pytest
import torch

from dipo.algo.part_reaches import rows_reach
from dipo.graph.saturation import Interval


def scores(*, spread=3.0):
    return torch.randn(4, 2, 6, 9, generator=torch.Generator().manual_seed(0)) * spread


@pytest.mark.parametrize("levels", [128, 256, 65536])
@pytest.mark.parametrize("axis", [-1, 2])
@pytest.mark.parametrize("masked", [-50.0, -1e4, -3.4e38, -math.inf])
def test_what_lies_lower_changes_no_result_by_half_a_level(levels, axis, masked):
    x = scores()
    x[..., 4:, 5:] += masked
    low = rows_reach(x, axis, levels).low
    assert low == rows_reach(x.clamp(min=-60), axis, levels).low, "the mask does not matter"
    assert low > -60
    exact, clipped = x.double().softmax(axis), x.clamp(min=low).double().softmax(axis)
    assert (exact - clipped).abs().max() < 0.5 / levels


@pytest.mark.parametrize("masked", [-1e4, -3.4e38, -math.inf])
def test_rows_that_are_masked_as_a_whole_do_not_count(masked):
    x = scores()
    expected = rows_reach(x, -1, 256)
    x[1, :, 3] = masked
    assert rows_reach(x, -1, 256).low >= expected.low
    x[:] = -math.inf
    assert rows_reach(x, -1, 256) == Interval()


def test_a_reach_is_none_without_samples():
    assert rows_reach(scores()[:0], -1, 256) == Interval()
