import dataclasses

import numpy as np
import pytest
from networks import saved
from written import qdq

from dipo.nightly.compare import compare, first_divergence
from dipo.nightly.history import Past
from dipo.nightly.layers import read_layers


def past(result) -> Past:
    return Past("2026-01-01", "2026-01-01T00:00:00+00:00", result)


def with_layer(result, position, **changes):
    layers = list(result.layers)
    layers[position] = dataclasses.replace(layers[position], **changes)
    return dataclasses.replace(result, layers=tuple(layers))


def test_the_same_twice_differs_nowhere(job_result):
    comparison = compare(job_result(seconds=5.0), past(job_result()))
    assert comparison.first is None
    assert (comparison.accuracy, comparison.cosine, comparison.changed_ranges) == (0, 0, 0)
    assert comparison.num_ranges == 2
    assert comparison.seconds_ratio == 0.5
    assert comparison.sentence == "as in night 2026-01-01, bit by bit"


def test_what_changed_is_told_from_before_to_now(job_result):
    now = with_layer(job_result(accuracy_deployed=88.5, cosine=0.99), 1, act_scale=0.15, act_zero_point=4)
    comparison = compare(now, past(job_result()))
    assert comparison.accuracy == pytest.approx(-0.5)
    assert comparison.cosine == pytest.approx(-0.008)
    assert comparison.changed_ranges == 1
    assert str(comparison.first) == "conv: activation scale 0.1 -> 0.15, activation zero point 0 -> 4"
    assert comparison.sentence.startswith("differs from night 2026-01-01: 1 of 2 ranges changed, first at conv:")


def test_the_first_layer_is_the_first_in_the_graph(job_result):
    now = with_layer(with_layer(job_result(), 2, weights="00" * 16), 0, act_scale=0.021)
    assert str(first_divergence(now, job_result())) == "image: activation scale 0.02 -> 0.021"
    assert first_divergence(with_layer(job_result(), 2, weights="00" * 16), job_result()).layer == "head"


def test_numbers_have_as_many_digits_as_tell_them_apart(job_result):
    now = with_layer(job_result(), 1, act_scale=0.1 + 1e-9)
    assert str(first_divergence(now, job_result())) == "conv: activation scale 0.1 -> 0.100000001"


def test_scales_of_channels_are_counted(job_result):
    now = with_layer(job_result(), 1, weight_scale=(0.5, 0.3))
    assert str(first_divergence(now, job_result())) == "conv: weight scale (1 of 2 channels, most of all 0.25 -> 0.3)"
    now = with_layer(job_result(), 2, weight_scale=(0.75,))
    assert str(first_divergence(now, job_result())) == "head: weight scale 0.5 -> 0.75"
    now = with_layer(job_result(), 1, weight_scale=(0.5,))
    assert str(first_divergence(now, job_result())) == "conv: weight scale (2 -> 1 of them)"


def test_layers_that_came_or_went_are_named(job_result):
    result = job_result()
    fewer = dataclasses.replace(result, layers=result.layers[:2])
    assert str(first_divergence(result, fewer)) == "head: new"
    assert str(first_divergence(fewer, result)) == "head: gone"
    assert str(first_divergence(with_layer(result, 1, range=None, act_scale=None, act_zero_point=None), result)) == (
        "conv: activation scale 0.1 -> none, activation zero point 0 -> none"
    )


def test_other_options_are_told(job_result):
    now = with_layer(job_result(options=("precision=w4a4",)), 0, act_scale=0.5)
    assert "with other options" in compare(now, past(job_result())).sentence


def test_a_job_without_labels_or_ranges_can_be_compared(job_result):
    bare = job_result(accuracy_deployed=None, layers=())
    comparison = compare(bare, past(bare))
    assert (comparison.accuracy, comparison.first, comparison.num_ranges) == (None, None, 0)


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("w", np.maximum(np.arange(108), 11).astype(np.int8).reshape(4, 3, 3, 3), "weights (11 of 108 codes)"),
        ("w", np.zeros((4, 3, 1, 1), np.int8), "weights (4x3x3x3 -> 4x3x1x1 codes)"),
        ("w_zero", np.int8([0, 0, 0, 1]), "zero points of the weights"),
        ("bias", np.int32([0, 1, 2, 4]), "bias (1 of 4 values)"),
    ],
)  # fmt: skip
def test_codes_are_counted_where_both_models_are_there(job_result, tmp_path, name, value, sentence):
    results = []
    for index, changes in enumerate([{}, {name: value}]):
        folder = tmp_path / str(index)
        folder.mkdir()
        path = saved(qdq(**changes), folder, "quantized.onnx")
        results.append(job_result(folder=str(folder), layers=read_layers(path, {})))
    assert str(first_divergence(results[1], results[0])) == f"conv: {sentence}"
    (tmp_path / "0" / "quantized.onnx").unlink()
    kind = "bias" if "bias" in sentence else "weights"
    assert str(first_divergence(results[1], results[0])) == f"conv: {kind}"


def test_another_model_in_the_old_folder_is_not_counted(job_result, tmp_path):
    folders = [tmp_path / name for name in ("old", "new")]
    paths = []
    for folder, changes in zip(folders, ({}, {"bias": np.int32([0, 0, 0, 0])}), strict=True):
        folder.mkdir()
        paths.append(saved(qdq(**changes), folder, "quantized.onnx"))
    old, new = (
        job_result(folder=str(folder), layers=read_layers(path, {}))
        for folder, path in zip(folders, paths, strict=True)
    )
    saved(qdq(bias=np.int32([9, 9, 9, 9])), folders[0], "quantized.onnx")
    assert str(first_divergence(new, old)) == "conv: bias"
