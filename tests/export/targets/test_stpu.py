import json
import math

import numpy as np
import pytest
from exported import write_files
from platform_networks import ALL_VALUES, check_golden, parsed, platform_case, quantize_all

from dipo.export.ranges import spread
from dipo.export.targets import stpu
from dipo.graph.plan import make_plan
from dipo.recipe import PrecisionConfig

LAYERS = {"conv1": ("x", "c1", 27), "conv2": ("r1", "c2", 36), "fc": ("f", "z", 8)}


@pytest.fixture
def case():
    return platform_case(stpu.TARGET.spec)


def content_in(folder, case, **options):
    return json.loads(write_files(stpu.TARGET, *case, folder, **options)[2].read_text())


@pytest.mark.parametrize("winograd", [False, True])
def test_golden(tmp_path, case, winograd):
    file = write_files(stpu.TARGET, *case, tmp_path, winograd=winograd)[2]
    check_golden("stpu", file.rename(tmp_path / f"winograd-{file.name}") if winograd else file)


def test_round_trip(tmp_path, case):
    model, quantized = case
    content = content_in(tmp_path, case)
    parameters = {f"{name}_{part}" for name in LAYERS for part in ("weights", "bias")}
    assert set(content) == {*ALL_VALUES, *parameters}
    for name, qparams in spread(model, quantized.activations).items():
        assert content[name]["max"] == -content[name]["min"]
        assert (content[name]["max"] - content[name]["min"]) / 254 == pytest.approx(float(qparams.scale))
    assert content["s"] == content["r2"], "a Relu's range is that of what it reads"
    for name in LAYERS:
        layer, entry = quantized.layers[name], content[f"{name}_weights"]
        np.testing.assert_array_equal(np.rint(layer.weight / ((entry["max"] - entry["min"]) / 254)), layer.codes)


def test_biases_have_the_step_of_the_accumulator(tmp_path, case):
    _, quantized = case
    content = content_in(tmp_path, case)
    for name, (data, _, _) in LAYERS.items():
        step = float(quantized.activations[data].scale) * float(quantized.layers[name].qparams.scale)
        assert content[f"{name}_bias"] == {"alpha": pytest.approx(step), "zero_point": 0}


def test_exponents_of_accumulators(tmp_path, case):
    content = content_in(tmp_path, case)
    assert {name for name, entry in content.items() if "emin" in entry} == {made for _, made, _ in LAYERS.values()}
    for name, (data, made, terms) in LAYERS.items():
        sums = math.sqrt(terms) * content[data]["max"] * content[f"{name}_weights"]["max"]
        largest = max(sums, content[made]["max"])
        assert 2.0 ** (content[made]["emin"] - 127 + 10) <= largest < 2.0 ** (content[made]["emin"] - 127 + 11)


def test_exponents_of_interpolations(tmp_path):
    model = parsed(
        '(float[1,2,4,4] x) => (float[1,2,8,8] y) { a = Neg(x) \n y = Resize<mode="nearest">(a, , scales) }',
        scales=np.array([1, 1, 2, 2], np.float32),
    )
    plan = make_plan(model, stpu.TARGET.spec, PrecisionConfig(weight_bits=8, act_bits=8))
    content = content_in(tmp_path, (model, quantize_all(model, plan, {})))
    assert content["y"]["max"] == pytest.approx(3) and content["y"]["emin"] == 128 - 20


@pytest.mark.parametrize("value", [1e-44, 2.0**-126, 0.3, 1.0, 1.5, 2.0, 300.0, 3e38])
def test_exponent_is_the_one_that_float32_stores(value):
    stored = int(np.float32(value).view(np.uint32)) >> 23
    assert stpu.exponent(value) == max(stored, 1)
    assert stpu.exponent(0.0) == 0 and stpu.exponent(1e60) == 254


def test_winograd(tmp_path, case):
    _, quantized = case
    plain = content_in(tmp_path, case)
    content = content_in(tmp_path, case, winograd=True)
    assert {name for name in content if name.startswith("layer_")} == {"layer_conv1", "layer_conv2"}
    assert content["layer_conv1"] == {"wg": True} and content["fc_weights"] == plain["fc_weights"]
    kernel = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]]) * 2
    largest = max(np.abs(kernel @ each @ kernel.T).max() for row in quantized.layers["conv1"].weight for each in row)
    assert content["conv1_weights"]["max"] == -content["conv1_weights"]["min"] == pytest.approx(largest)


@pytest.mark.parametrize("attributes", ["strides=[2,2]", "dilations=[2,2]", "group=4"])
def test_winograd_is_for_plain_convolutions(tmp_path, attributes):
    channels = 1 if "group" in attributes else 4
    model = parsed(
        f"(float[N,4,8,8] x) => (float[N,4,H,W] y) {{ [conv] y = Conv<{attributes}>(x, w, b) }}",
        w=np.linspace(-1, 1, 36 * channels, dtype=np.float32).reshape(4, channels, 3, 3),
        b=np.zeros(4, np.float32),
    )
    plan = make_plan(model, stpu.TARGET.spec, PrecisionConfig(weight_bits=8, act_bits=8))
    assert "layer_conv" not in content_in(tmp_path, (model, quantize_all(model, plan, {})), winograd=True)
