"""What all platforms have in common."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from exported import write_files
from platform_networks import platform_case, quantize_all, without

from dipo.errors import UserError
from dipo.export.target import Export, write_target
from dipo.export.targets import atlas, imx, magicmind, openvino, qnn, rk, rv, snpe, stpu, ti
from dipo.graph.load import load
from dipo.graph.plan import make_plan
from dipo.graph.target_spec import ALL_WIDTHS
from dipo.recipe import PrecisionConfig

WHOLE = [snpe, qnn, rv, rk, stpu, ti, imx]
RANGES = [*WHOLE, atlas, magicmind]
FILES = {
    "snpe": ["snpe_encodings.json"],
    "qnn": ["qnn_encodings.json"],
    "rv": ["rv_quantized_param.yaml", "rv_quantized_param.json"],
    "rk": ["rk_quantized_param.yaml", "rk_quantized_param.json"],
    "stpu": ["stpu_minmax.json"],
    "ti": ["tidl_quant_params.prototxt", "ti_blob_range.txt", "ti_blob_range.json"],
    "imx": ["imx_scale.json"],
    "atlas": ["scale_offset_record.txt", "atlas_quant_param.json"],
    "magicmind": ["magicmind_quant_param.json"],
}


def name_of(platform: object) -> str:
    return platform.TARGET.spec.name


@pytest.mark.parametrize("platform", RANGES, ids=name_of)
def test_writes_both_models_and_the_ranges(tmp_path, platform):
    model, quantized = platform_case(platform.TARGET.spec)
    files = write_files(platform.TARGET, model, quantized, tmp_path, metadata={"key": "value"})
    assert [file.name for file in files] == ["quantized.onnx", "deploy.onnx", *FILES[platform.TARGET.spec.name]]
    assert sorted(tmp_path.iterdir()) == sorted(files)
    for file in files[:2]:
        proto = onnx.load(file)
        onnx.checker.check_model(proto)
        assert {prop.key: prop.value for prop in proto.metadata_props}["key"] == "value"


@pytest.mark.parametrize("platform", RANGES, ids=name_of)
def test_both_models_compute_nearly_the_same(tmp_path, platform, run):
    model, quantized = platform_case(platform.TARGET.spec)
    files = write_files(platform.TARGET, model, quantized, tmp_path)
    feeds = {"x": np.random.default_rng(0).uniform(-2, 2.2, (3, 3, 8, 8)).astype(np.float32)}
    in_float, in_integers = (run(file, feeds, optimize=False)["y"] for file in files[:2][::-1])
    assert np.abs(in_float - in_integers).max() < 0.2
    assert np.abs(in_float - in_integers).max() > 0, "one of them rounds activations"


@pytest.mark.parametrize("platform", WHOLE, ids=name_of)
def test_every_tensor_without_a_range_is_named_and_nothing_is_written(tmp_path, platform):
    model, quantized = platform_case(platform.TARGET.spec)
    with pytest.raises(UserError, match=f"platform={platform.TARGET.spec.name}: no range for tensors c2, j, z, and"):
        write_files(platform.TARGET, model, without(quantized, "c2", "z", "j"), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("platform", [atlas, magicmind], ids=name_of)
def test_what_layers_read_has_to_have_a_range(tmp_path, platform):
    model, quantized = platform_case(platform.TARGET.spec)
    with pytest.raises(UserError, match=f"platform={platform.TARGET.spec.name}: no range for tensors x, f, and"):
        write_files(platform.TARGET, model, without(quantized, "x", "f"), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("platform", [rv, rk, stpu, ti, imx, atlas, magicmind], ids=name_of)
@pytest.mark.parametrize("kind", ["weight", "act"])
def test_widths_that_a_file_cannot_say_are_refused(tmp_path, platform, kind):
    bits = {f"{kind}_bits": 6, "first_last_bits": None}
    with pytest.raises(UserError, match=f"has 6 bits and the target takes 8, set precision.{kind}_bits"):
        platform_case(platform.TARGET.spec, **bits)
    lenient = dataclasses.replace(platform.TARGET.spec, weight_widths=ALL_WIDTHS, act_widths=ALL_WIDTHS)
    model, quantized = platform_case(lenient, **bits)
    with pytest.raises(UserError, match=f"has 6 bits and the target takes 8, set precision.{kind}_bits"):
        write_files(platform.TARGET, model, quantized, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_range_file_has_the_scale_at_which_a_bias_fits(tmp_path):
    model, quantized = platform_case(qnn.TARGET.spec)
    layer = quantized.layers["conv2"]
    next_to_nothing = layer.qparams.scale * np.float32([1, 1e-12, 1, 1])
    qparams = dataclasses.replace(layer.qparams, scale=next_to_nothing)
    dead = dataclasses.replace(layer, qparams=qparams, bias=np.float32([0.5, 2.0, 0.5, 0.5]))
    quantized = dataclasses.replace(quantized, layers={**quantized.layers, "conv2": dead})
    files = write_target(qnn.TARGET, Export(model, quantized, tmp_path, metadata={}), {"schema": "2.0.0"})
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(files[0]).graph.initializer}
    found = {each["name"]: each["y_scale"] for each in json.loads(files[2].read_text())["encodings"]}
    np.testing.assert_array_equal(np.float32(found["w2"]), stored["w2_scale"])
    assert np.abs(dead.bias / found["b2"]).max() < 2**31


@pytest.mark.parametrize("platform", [*RANGES, openvino], ids=name_of)
@pytest.mark.parametrize("name", ["resnet20_cifar10.onnx", "mobilenet_v1_025_224.onnx"])
def test_rules_cover_real_networks(tmp_path, platform, name, shared_file):
    model = load(shared_file(name))
    plan = make_plan(model, platform.TARGET.spec, PrecisionConfig(weight_bits=8, act_bits=8))
    quantized = quantize_all(model, plan, {})
    files = write_files(platform.TARGET, model, quantized, tmp_path)
    assert all(Path(file).stat().st_size for file in files)
