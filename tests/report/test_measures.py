import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from dipo.report.measures import NO_NOISE_DB, accuracy, cosine, output_error, sqnr_db


def test_equal_outputs_have_no_error():
    outputs = {"y": np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)}
    error = output_error(outputs, outputs)
    assert (error.agreement, error.sqnr_db) == (100.0, NO_NOISE_DB)
    assert error.cosine == pytest.approx(1, abs=1e-12)


def test_error_by_hand_over_two_outputs():
    reference = {"a": np.array([[3.0, 0.0], [0.0, 4.0]], "f"), "b": np.array([[0.0], [0.0]], "f")}
    other = {"b": np.array([[1.0], [0.0]], "f"), "a": np.array([[3.0, 0.0], [5.0, 4.0]], "f")}
    error = output_error(reference, other)
    assert error.agreement == 50.0, "of the first output of the reference"
    assert error.cosine == pytest.approx(25 / math.sqrt(25 * 51))
    assert error.sqnr_db == pytest.approx(10 * math.log10(25 / 26))


def test_accuracy_counts_top_1_of_the_first_output():
    outputs = {"y": np.array([[0, 1], [1, 0], [0, 1], [0, 1]], np.float32), "z": np.zeros((4, 2), np.float32)}
    assert accuracy(outputs, np.array([1, 0, 1, 0])) == 75.0


def test_integer_and_large_outputs_do_not_overflow():
    reference = {"y": np.full((2, 3), 2**31 - 1, np.int64)}
    assert output_error(reference, {"y": reference["y"] // 2}).sqnr_db == pytest.approx(6.02, abs=0.01)
    huge = {"y": np.full((2, 3), 3e38, np.float32)}
    assert output_error(huge, {"y": huge["y"] / 2}).sqnr_db == pytest.approx(6.02, abs=0.01)


@pytest.mark.parametrize(
    ("products", "expected"),
    [
        ((0, 0, 0), 1), ((1, 0, 0), 0), ((0, 1, 0), 0), ((4, 9, 6), 1), ((4, 9, -6), -1),
        ((math.nan, 1, 1), 0), ((math.inf, 1, 1), 0),
    ],
)  # fmt: skip
def test_cosine(products, expected):
    assert cosine(*products) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("signal", "noise", "expected"),
    [
        (100, 1, 20),
        (1, 0, NO_NOISE_DB),
        (0, 0, NO_NOISE_DB),
        (0, 1, -NO_NOISE_DB),
        (1e-300, 1e300, -NO_NOISE_DB),
        (1, math.nan, -NO_NOISE_DB),
        (1, math.inf, -NO_NOISE_DB),
        (math.nan, 1, -NO_NOISE_DB),
    ],
)
def test_sqnr_is_always_a_number_and_broken_networks_never_look_good(signal, noise, expected):
    assert sqnr_db(signal, noise) == pytest.approx(expected)


FLOATS = arrays(np.float32, (4, 3), elements=st.floats(-1e3, 1e3, width=32))


@given(FLOATS, FLOATS)
def test_measures_stay_inside_their_limits(a, b):
    error = output_error({"y": a}, {"y": b})
    assert 0 <= error.agreement <= 100
    assert -1 <= error.cosine <= 1
    assert abs(error.sqnr_db) <= NO_NOISE_DB


def test_a_network_that_gives_nan_is_far_from_the_reference():
    reference = {"y": np.ones((2, 2), np.float32)}
    error = output_error(reference, {"y": np.full((2, 2), np.nan, np.float32)})
    assert (error.cosine, error.sqnr_db) == (0.0, -NO_NOISE_DB)
