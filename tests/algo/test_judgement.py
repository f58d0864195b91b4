"""What counts as better."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dipo.algo.judgement import MOST_DB, Judgement, squared_error


@pytest.mark.parametrize(
    ("before", "after", "gain", "kept"),
    [
        ({"a": 2.0}, {"a": 1.0}, 10 * math.log10(2), True),
        ({"a": 1.0}, {"a": 2.0}, -10 * math.log10(2), False),
        ({"a": 1.0}, {"a": 1.0}, 0.0, False),
        # The large output gains a tenth of its error, the small one, whose errors are millionths of that, loses half.
        ({"boxes": 1e6, "scores": 1e-3}, {"boxes": 9e5, "scores": 1.5e-3}, None, False),
        ({"boxes": 1e6, "scores": 1e-3}, {"boxes": 9e5, "scores": 1.02e-3}, None, True),
        ({"boxes": 1e6, "scores": 1e-3}, {"boxes": 1e5, "scores": 1.2e-3}, None, False),
        ({"a": 0.0}, {"a": 0.0}, 0.0, False),
        ({"a": 0.0}, {"a": 1e-9}, -MOST_DB, False),
        ({"a": 1e-9}, {"a": 0.0}, MOST_DB, True),
        ({"a": 1.0}, {"a": math.nan}, -MOST_DB, False),
        ({"a": math.inf}, {"a": 5.0}, MOST_DB, True),
        ({"a": math.nan}, {"a": math.inf}, 0.0, False),
    ],
)
def test_each_output_counts_by_its_own_error(before, after, gain, kept):
    judged = Judgement.of(before, after)
    assert judged.kept is kept
    assert gain is None or judged.gain_db == pytest.approx(gain)


def test_what_both_have_is_no_error():
    odd = np.array([np.nan, np.inf, -np.inf, 1.0], np.float32)
    assert squared_error(odd, odd) == 0
    assert squared_error(odd, np.array([np.nan, np.inf, -np.inf, 3.0], np.float32)) == 4
    assert not math.isfinite(squared_error(odd, np.zeros(4, np.float32)))


def test_classes_differ_or_do_not():
    assert squared_error(np.array([[1, 900, 3]]), np.array([[1, 2, 3]])) == 1
