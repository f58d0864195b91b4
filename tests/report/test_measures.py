import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from dipo.report.measures import (
    NO_NOISE_DB,
    OutputFigures,
    accuracy,
    cosine,
    has_top1,
    least_sqnr_db,
    output_error,
    output_figures,
    sqnr_db,
    worst_error,
)


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


def test_agreement_is_that_of_the_first_output_with_classes():
    boxes = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    scores = np.array([[[3, 1], [1, 3], [3, 1]], [[1, 3], [3, 1], [1, 3]]], np.float32)
    other = {"boxes": boxes + 1, "scores": scores.copy()}
    other["scores"][0, 0] = (1, 3)
    reference = {"boxes": boxes, "scores": scores}
    assert output_error(reference, other, class_axes={"boxes": None, "scores": 2}).agreement == pytest.approx(500 / 6)
    assert output_error(reference, other, class_axes={"boxes": None, "scores": 1}).agreement == pytest.approx(50)
    assert output_error(reference, other, class_axes={"boxes": None, "scores": None}).agreement is None
    assert output_error(reference, other).agreement is None, "nothing is known of them"


def test_integers_are_equal_or_not():
    reference = {"y": np.zeros((2, 2), np.float16), "k": np.array([[1, 2], [3, 4]]), "m": np.array([[True], [False]])}
    other = {**reference, "k": np.array([[1, 2], [3, 5]])}
    error = output_error(reference, other, class_axes={"y": None, "k": None, "m": None})
    assert (error.agreement, error.cosine, error.sqnr_db) == (75.0, 1.0, NO_NOISE_DB), "floats alone have a distance"
    assert output_error(reference, other).agreement == 100.0, "the first output with classes"
    assert output_figures(reference["k"], other["k"], axis=None) == OutputFigures(None, None, None, None, 75.0)
    assert output_figures(reference["m"], other["m"], axis=None).equal == 100.0
    alone = output_error({"k": reference["k"]}, {"k": other["k"]})
    assert (alone.agreement, alone.sqnr_db) == (75.0, pytest.approx(10 * math.log10(30)))


def test_figures_of_an_output_by_hand():
    reference, other = np.array([[3.0, 0.0], [0.0, 4.0]], "f2"), np.array([[3.0, 0.0], [5.0, 4.0]], "f2")
    figures = output_figures(reference, other, axis=1)
    assert (figures.agreement, figures.max_error, figures.equal) == (50.0, 5.0, None)
    assert figures.sqnr_db == pytest.approx(0)
    assert output_figures(reference, other, axis=None).agreement is None
    assert output_figures(reference, np.full_like(other, np.inf), axis=None).max_error is None


def test_infinities_that_both_have_are_no_error():
    masked = np.array([[-np.inf, 1.0], [2.0, -np.inf]], np.float32)
    figures = output_figures(masked, masked, axis=1)
    assert (figures.sqnr_db, figures.max_error, figures.agreement) == (NO_NOISE_DB, 0.0, 100.0)
    assert output_figures(masked, -masked, axis=None).sqnr_db == -NO_NOISE_DB


def test_accuracy_of_a_class_is_the_class():
    assert accuracy({"k": np.array([[1], [2], [3]])}, np.array([1, 2, 0])) == pytest.approx(200 / 3)


@pytest.mark.parametrize(
    ("shape", "found"),
    [((2,), True), ((2, 10), True), ((2, 10, 1, 1), True), ((2, 1, 10), True), ((2, 3, 8, 8), False)],
)
def test_an_output_with_numbers_along_one_axis_has_a_top_1(shape, found):
    assert has_top1({"y": np.zeros(shape), "image": np.zeros((2, 3, 8, 8))}) == found


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


def test_outputs_that_are_infinite_in_the_reference_are_left_out():
    reference, other = np.array([[1.0, -np.inf, 2.0]], np.float32), np.array([[1.5, -9.0, 2.0]], np.float32)
    assert output_error({"y": reference}, {"y": other}) == output_error({"y": reference[:, ::2]}, {"y": other[:, ::2]})


def test_the_worst_output_counts_and_differences_that_nobody_hears_do_not():
    good, small = np.ones((4, 3), np.float32), np.full((4, 2), 1e-13, np.float32)
    assert least_sqnr_db({"a": good, "b": small}, {"a": good, "b": np.zeros_like(small)}) == NO_NOISE_DB
    assert least_sqnr_db({"a": good, "b": good}, {"a": good, "b": 0.9 * good}) == pytest.approx(20, abs=0.1)
    assert least_sqnr_db({"a": good}, {"a": np.full_like(good, np.nan)}) == -NO_NOISE_DB
    assert least_sqnr_db({"a": np.arange(3)}, {"a": np.arange(3)[::-1]}) == NO_NOISE_DB


def test_the_error_of_the_worst_output():
    boxes, scores = np.full((4, 3), 500, np.float32), np.full((4, 2), 0.5, np.float32)
    reference, other = {"boxes": boxes, "scores": scores}, {"boxes": boxes, "scores": np.zeros_like(scores)}
    assert output_error(reference, other).sqnr_db > 50
    assert worst_error(reference, other).sqnr_db == pytest.approx(0)
    assert worst_error(reference, reference).sqnr_db == NO_NOISE_DB
