import json

import numpy as np
import onnx
import pytest
from exported import write_files
from google.protobuf import text_format
from platform_networks import check_golden, platform_case
from text_schemas import ATLAS, message_of

from dipo.export.ranges import per_tensor
from dipo.export.targets import atlas
from dipo.graph.plan import QuantizedModel
from dipo.quant.spec import QuantSpec, Range, qparams_of


@pytest.fixture
def case():
    return platform_case(atlas.TARGET.spec)


@pytest.fixture
def records(tmp_path, case):
    text = write_files(atlas.TARGET, *case, tmp_path)[2].read_text()
    parsed = text_format.Parse(text, message_of(ATLAS, "ScaleOffsetRecord"))
    return {record.key: record.value for record in parsed.record}


def test_golden(tmp_path, case):
    check_golden("atlas", *write_files(atlas.TARGET, *case, tmp_path)[2:])


def test_records_of_layers_and_poolings(records):
    assert list(records) == ["conv1", "conv2", "mean", "fc"], "a pooling over everything has no record"
    assert not records["mean"].scale_w and not records["mean"].offset_w


def test_round_trip(case, records):
    _, quantized = case
    for name, value in {"conv1": "x", "conv2": "r1", "mean": "r1", "fc": "f"}.items():
        qparams = quantized.activations[value]
        assert records[name].scale_d == qparams.scale and records[name].offset_d == qparams.zero_point
        samples = np.linspace(-3, 5, 50, dtype=np.float32)
        found = np.clip(np.rint(samples / np.float32(records[name].scale_d)) + records[name].offset_d, -128, 127)
        ends = (found[[0, -1]] - records[name].offset_d) * records[name].scale_d
        np.testing.assert_allclose(ends, (np.array([-128, 127]) - qparams.zero_point) * qparams.scale, atol=0.05)


def test_weights_round_to_their_codes_again(case, records):
    _, quantized = case
    for name in ("conv1", "conv2"):
        layer = quantized.layers[name]
        scales = np.array(records[name].scale_w, np.float32)
        assert list(records[name].offset_w) == [0] * len(layer.weight)
        np.testing.assert_array_equal(np.rint(layer.weight / scales[:, None, None, None]), layer.codes)


def test_only_convolutions_have_a_scale_for_each_channel(tmp_path, case, records):
    _, quantized = case
    layer = per_tensor(quantized.layers["fc"])
    assert list(records["fc"].scale_w) == [float(layer.qparams.scale)]
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(tmp_path / "deploy.onnx").graph.initializer}
    np.testing.assert_array_equal(stored["w3"], layer.weight)
    in_integers = onnx.load(tmp_path / "quantized.onnx").graph.initializer
    codes = {t.name: onnx.numpy_helper.to_array(t) for t in in_integers}["w3_quantized"]
    np.testing.assert_array_equal(codes, layer.codes)


def test_skipped_layers_have_no_record(tmp_path):
    model, quantized = platform_case(atlas.TARGET.spec, skip=["conv2"])
    text = write_files(atlas.TARGET, model, quantized, tmp_path)[2].read_text()
    parsed = text_format.Parse(text, message_of(ATLAS, "ScaleOffsetRecord"))
    assert [record.key for record in parsed.record] == ["conv1", "mean", "fc"]


def test_json_for_scripts(tmp_path, case):
    _, quantized = case
    content = json.loads(write_files(atlas.TARGET, *case, tmp_path)[3].read_text())
    assert set(content) == {"x", "r1", "f"}
    assert content["r1"] == {"scale": float(quantized.activations["r1"].scale), "offset": -128}


def test_unsigned_codes_are_moved_to_signed_ones(tmp_path, case):
    model, quantized = case
    unsigned = {
        name: qparams_of(Range(-1.0, 3.0), QuantSpec(8, signed=False, symmetric=False))
        for name in quantized.activations
    }
    file = write_files(atlas.TARGET, model, QuantizedModel(quantized.layers, unsigned), tmp_path)[3]
    assert {entry["offset"] for entry in json.loads(file.read_text()).values()} == {64 - 128}


def test_a_wish_for_channels_changes_convolutions_alone():
    _, quantized = platform_case(atlas.TARGET.spec, weight_per_channel=True)
    assert {name: layer.qparams.axis for name, layer in quantized.layers.items()} == {
        "conv1": 0,
        "conv2": 0,
        "fc": None,
    }
    _, quantized = platform_case(atlas.TARGET.spec, weight_per_channel=False)
    assert {layer.qparams.axis for layer in quantized.layers.values()} == {None}
