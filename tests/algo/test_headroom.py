"""Room beyond what few samples show: as wide as their tail says, and none where values are bounded."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dipo.algo.calibrate import extremes_of
from dipo.algo.headroom import AS_IT_IS, EXCEEDED, ROOMS, Room, are_few, reach
from dipo.quant.spec import Range


@pytest.mark.parametrize("share", EXCEEDED)
@pytest.mark.parametrize("num", [8, 16, 64])
def test_so_many_further_samples_reach_beyond(num, share):
    rng = np.random.default_rng(num)
    shares = []
    for _ in range(400):
        seen = 5 + rng.exponential(size=num)
        end = seen.max() * reach(seen, share=share)
        shares.append(np.exp(5 - end))  # of an exponential tail, known
    # The scale is taken from four numbers, so the share is the wanted one within a factor; without room it is 1 / num.
    assert share / 2 < np.median(shares) < 2 * share
    assert np.mean(shares) < 1 / num


def test_bounded_values_get_no_room():
    assert reach(np.array([6.0, 6.0, 6.0, 6.0, 6.0, 3.0]), share=0.001) == 1
    assert reach(np.zeros(9), share=0.001) == 1
    assert reach(np.array([2.0]), share=0.001) == 1


def test_a_share_that_the_samples_show_is_no_reason_for_room():
    assert reach(np.linspace(1, 2, 200), share=0.01) == 1


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=50), st.sampled_from(EXCEEDED))
def test_room_never_narrows_and_does_not_depend_on_the_order(values, share):
    extremes = np.array(values)
    assert reach(extremes, share=share) >= 1
    assert reach(extremes, share=share) == reach(extremes[::-1], share=share)
    assert reach(extremes, share=EXCEEDED[-1]) >= reach(extremes, share=EXCEEDED[0])


def test_ends_follow_the_samples_that_count():
    extremes = np.array([[-1.0, 2.0], [-2.0, 3.0], [-4.0, 1.0], [-3.0, 0.5]])
    clipped = Range(-2.0, 3.0)
    assert AS_IT_IS.factors(clipped, extremes, samples=range(4)) == (1, 1)
    # The ends keep their proportion to what was seen: the method left half of -4.
    assert AS_IT_IS.factors(clipped, extremes, samples=[0, 1]) == (0.5, 1)
    assert Room(from_seen=True).factors(clipped, extremes, samples=range(4)) == (2, 1)
    low, high = Room(0.001, from_seen=True).factors(clipped, extremes, samples=range(4))
    assert low > 2
    assert high > 1
    # Beyond the samples, as what is read from a table may be, nothing is narrowed.
    assert Room(from_seen=True).factors(Range(-9.0, 9.0), extremes, samples=range(4)) == (1, 1)
    assert AS_IT_IS.factors(Range(0.0, 3.0), extremes, samples=[0]) == (1, 2 / 3)


def test_what_is_tried_begins_with_no_room():
    assert ROOMS[0] == AS_IT_IS
    assert len(set(ROOMS)) == len(ROOMS) == 6
    assert [are_few(num) for num in (1, 3, 4, 98, 99)] == [False, False, True, True, False]


def test_extremes_are_those_of_finite_values():
    import torch

    rows = torch.tensor([[1.0, -2.0, 0.5], [torch.inf, 3.0, -torch.inf], [torch.inf, torch.inf, torch.inf]])
    assert extremes_of(rows).tolist() == [[-2, 1], [3, 3], [0, 0]]
    assert extremes_of(rows[:1]).tolist() == [[-2, 1]]
