import json
from dataclasses import replace

import numpy as np
import onnx
import pytest
from export_networks import Case, residual_case
from exported import write_files
from onnx.numpy_helper import to_array

from dipo.errors import UserError
from dipo.export.targets import TARGETS, trt
from dipo.quant.spec import QuantSpec

W8 = QuantSpec(8, signed=True, symmetric=True, per_channel=True)
A8 = QuantSpec(8, signed=True, symmetric=True)


@pytest.fixture
def case() -> Case:
    return residual_case(W8, A8)


def test_writes_the_model_and_both_range_files(tmp_path, case):
    files = write_files(TARGETS["trt"], case.model, case.quantized, tmp_path, metadata={"key": "value"})
    assert [path.name for path in files] == ["quantized.onnx", "deploy.onnx", "trt_clip_val.json", "calibration.cache"]
    assert sorted(tmp_path.iterdir()) == sorted(files)


def test_ranges_of_every_quantized_activation(tmp_path, case):
    ranges, _ = write_files(trt.TARGET, case.model, case.quantized, tmp_path)[2:]
    read = json.loads(ranges.read_text())
    assert list(read) == ["blob_range"]
    assert set(read["blob_range"]) >= set(case.quantized.activations)
    biggest = np.abs(case.simulate(int32_bias=False)["x"]).max()
    assert read["blob_range"]["x"] == pytest.approx(biggest, rel=1e-6)


def test_calibration_cache_holds_the_scales_as_big_endian_hex(tmp_path, case):
    _, cache = write_files(trt.TARGET, case.model, case.quantized, tmp_path)[2:]
    header, *lines = cache.read_text().splitlines()
    assert header == "TRT-100000-EntropyCalibration2"
    parsed = dict(line.split(": ") for line in lines)
    assert set(parsed) >= set(case.quantized.activations)
    for name in case.quantized.activations:
        scale = np.frombuffer(bytes.fromhex(parsed[name]), ">f4")[0]
        assert scale == pytest.approx(case.quantized.activations[name].scale, rel=1e-6)


def test_known_hex(tmp_path, case):
    case.quantized.activations["x"] = replace(case.quantized.activations["x"], scale=np.float32(1.0))
    _, cache = write_files(trt.TARGET, case.model, case.quantized, tmp_path)[2:]
    assert "x: 3f800000" in cache.read_text().splitlines()


@pytest.mark.parametrize("bad", [0.0, -1.0, np.nan, np.inf])
def test_tensors_without_a_range_are_named_and_nothing_is_written(tmp_path, case, bad):
    for name in ("r1", "p"):
        case.quantized.activations[name] = replace(case.quantized.activations[name], scale=np.float32(bad))
    with pytest.raises(UserError, match="no range for tensors r1, p"):
        write_files(trt.TARGET, case.model, case.quantized, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("weights", "acts", "culprit"),
    [
        (W8, QuantSpec(8, signed=False, symmetric=False), "x"),
        (W8, QuantSpec(12, signed=True, symmetric=True), "x"),
        (W8, QuantSpec(8, signed=True, symmetric=False), "x"),
        (QuantSpec(8, signed=False, symmetric=True), A8, "conv1"),
    ],
)
def test_what_is_not_symmetric_int8_is_refused(tmp_path, weights, acts, culprit):
    case = residual_case(weights, acts)
    with pytest.raises(UserError, match=rf"'{culprit}'.*symmetric int8"):
        write_files(trt.TARGET, case.model, case.quantized, tmp_path)
    assert not list(tmp_path.iterdir())


def test_file_is_explicit_symmetric_int8_with_float_bias(tmp_path, case):
    proto = onnx.load(write_files(trt.TARGET, case.model, case.quantized, tmp_path)[0])
    stored = {tensor.name: to_array(tensor) for tensor in proto.graph.initializer}
    assert all(array.dtype == np.int8 and not array.any() for name, array in stored.items() if "zero_point" in name)
    assert {name for name, array in stored.items() if array.dtype == np.int32} == set()
    np.testing.assert_array_equal(stored["b1"], case.quantized.layers["conv1"].bias)
    assert "Relu" in [node.op_type for node in proto.graph.node]


@pytest.mark.parametrize("bits", [8, 4])
def test_file_computes_what_the_definition_says(tmp_path, run, bits):
    case = residual_case(replace(W8, bits=bits), replace(A8, bits=bits))
    path = write_files(trt.TARGET, case.model, case.quantized, tmp_path)[0]
    feeds = {"x": 1.5 * case.feeds["x"]}
    expected = case.simulate(int32_bias=False, feeds=feeds)["y"]
    np.testing.assert_allclose(run(path, feeds, keep_float_bias=True)["y"], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("version", "header"),
    [("8.6.1", "TRT-8601"), ("10.13.0", "TRT-101300"), ("10", "TRT-100000"), ("10.0.0.6", "TRT-100000")],
)
def test_cache_names_the_version(tmp_path, case, version, header):
    files = write_files(trt.TARGET, case.model, case.quantized, tmp_path, version=version)
    assert [path.name for path in files] == ["quantized.onnx", "deploy.onnx", "trt_clip_val.json", "calibration.cache"]
    assert files[-1].read_text().splitlines()[0] == f"{header}-EntropyCalibration2"


def test_versions_from_11_on_read_no_ranges(tmp_path, case):
    files = write_files(trt.TARGET, case.model, case.quantized, tmp_path, version="11.0.0")
    assert files == list(tmp_path.iterdir()) == [tmp_path / "quantized.onnx"]


def test_versions_that_are_none(tmp_path, case):
    with pytest.raises(UserError, match=r"platform\.version 'new': give TensorRT's version"):
        write_files(trt.TARGET, case.model, case.quantized, tmp_path, version="new")
    assert not list(tmp_path.iterdir())
