"""Which samples are held out follows from their number alone."""

from __future__ import annotations

import collections

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dipo.algo.activation_cache import cut
from dipo.algo.held_out import held_out_samples, places


@pytest.mark.parametrize(
    ("num", "count"),
    [(1, 0), (3, 0), (4, 1), (16, 4), (32, 8), (64, 8), (128, 8), (129, 8), (256, 16), (1024, 64)],
)
def test_a_sixteenth_is_held_out_and_a_quarter_of_few(num, count):
    assert len(held_out_samples(num)) == count


@given(st.integers(4, 3000))
def test_they_are_spread_over_all_samples(num):
    held = held_out_samples(num)
    assert list(held) == sorted(set(held))
    for index, sample in enumerate(held):
        assert index * num // len(held) <= sample < (index + 1) * num // len(held)
    assert num - len(held) >= 3 * len(held)


@pytest.mark.parametrize("classes", [2, 3, 4, 8, 10, 16])
def test_samples_that_take_turns_are_all_met(classes):
    """Every sixteenth sample of eight classes in turn would be of one class."""
    counts = collections.Counter(sample % classes for sample in held_out_samples(2048))
    assert len(counts) == classes
    assert max(counts.values()) <= 2 * sum(counts.values()) / classes


@given(st.integers(4, 300), st.integers(1, 40))
def test_batches_have_all_of_them_wherever_they_are_cut(num, batch_size):
    held = held_out_samples(num)
    found = [batch.start + place for batch in cut(num, batch_size) for place in places(batch, held)]
    assert found == list(held)
