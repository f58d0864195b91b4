import json

import numpy as np
import pytest
import yaml
from exported import write_files
from platform_networks import check_golden, codes_from_range, parsed, platform_case, quantize_all

from dipo.export.ranges import spread, unify_concats
from dipo.export.targets import full_integer, rv
from dipo.graph.plan import make_plan
from dipo.quant.spec import Range
from dipo.recipe import PrecisionConfig

OUTPUTS = {
    "conv1": "c1", "relu1": "r1", "conv2": "c2", "add": "s", "relu2": "r2", "max": "p1", "mean": "p2", "join": "j",
    "gap": "g", "flat": "f", "sig": "y",
}  # fmt: skip


@pytest.fixture
def case():
    return platform_case(rv.TARGET.spec)


@pytest.fixture
def content(tmp_path, case):
    files = write_files(rv.TARGET, *case, tmp_path)
    read = yaml.safe_load(files[2].read_text())
    assert read == json.loads(files[3].read_text())
    assert list(read) == ["customized_quantize_layers", "quantize_parameters"]
    assert read["customized_quantize_layers"] == {}
    return read["quantize_parameters"]


def test_golden(tmp_path, case):
    check_golden("rv", *write_files(rv.TARGET, *case, tmp_path)[2:])


def test_keys(content):
    layers = [f"@{name}:{part}" for name in ("conv1", "conv2", "fc") for part in ("weight", "bias")]
    outputs = [f"@{name}:out0" for name in OUTPUTS]
    assert set(content) == {"@x:out0", *layers, *outputs}, "the input of the Sigmoid is the toolkit's own affair"


def test_round_trip(case, content):
    model, quantized = case
    known = spread(model, quantized.activations)
    for key, value in {"@x:out0": "x", **{f"@{node}:out0": value for node, value in OUTPUTS.items()}}.items():
        entry = content[key]
        joined = value in {"p1", "p2", "r2", "s"}
        qparams = known["j" if joined else value]
        assert (entry["dtype"], entry["method"], entry["qtype"]) == ("asymmetric_affine", "layer", "u8")
        assert entry["scale"] == [float(qparams.scale)] and entry["zero_point"] == [int(qparams.zero_point)]
        low, high = entry["min_value"][0], entry["max_value"][0]
        assert low <= 0 <= high and (high - low) / 255 == pytest.approx(float(qparams.scale))
        assert round(-low / entry["scale"][0]) == qparams.zero_point
    assert content["@conv1:out0"] == content["@relu1:out0"], "a Relu is part of the layer before it"


def test_weights_round_to_their_codes_again(case, content):
    _, quantized = case
    for name, layer in quantized.layers.items():
        entry = content[f"@{name}:weight"]
        found = codes_from_range(layer.weight, entry["min_value"][0], entry["max_value"][0], levels=255)
        np.testing.assert_array_equal(found, layer.codes)


def test_biases(case, content):
    entry = content["@conv2:bias"]
    _, quantized = case
    step = np.float64(quantized.activations["r1"].scale) * np.float64(quantized.layers["conv2"].qparams.scale)
    assert entry["scale"] == [pytest.approx(step)] and entry["zero_point"] == [0]
    assert (entry["qtype"], entry["min_value"], entry["max_value"]) == ("i32", [], [])


BEHIND = """(float[N,3,8,8] x) => (float[N,8,4,4] y) {
    [left] a = Conv<pads=[1,1,1,1]>(x, w1, b1)
    [right] b = Conv<pads=[1,1,1,1]>(x, w1, b1)
    [join] j = Concat<axis=1>(a, b)
    [relu] r = Relu(j)
    [max] m = MaxPool<kernel_shape=[2,2], strides=[2,2]>(r)
    [sig] y = Sigmoid(m)
}"""
BESIDE = """(float[N,3,8,8] x) => (float[N,8,8,8] y) {
    [conv1] a = Conv<pads=[1,1,1,1]>(x, w1, b1)
    [relu1] r = Relu(a)
    [max] m = MaxPool<kernel_shape=[3,3], pads=[1,1,1,1]>(r)
    [conv2] b = Conv<pads=[1,1,1,1]>(m, w2, b2)
    [join] y = Concat<axis=1>(m, b)
    [sum] s = Add(r, r)
}"""


@pytest.mark.parametrize(
    ("text", "one"),
    [(BEHIND, {"a", "b", "m"}), (BESIDE, {"r", "m", "b", "y"})],
    ids=["behind a Relu and a pooling", "moved"],
)
def test_the_network_is_on_the_grids_that_are_written(text, one):
    model = parsed(text)
    plan = make_plan(model, rv.TARGET.spec, PrecisionConfig(weight_bits=8, act_bits=8))
    ranges = {"a": Range(-2.0, 3.0), "b": Range(-1.0, 1.0), "m": Range(0.0, 2.5), "r": Range(0.0, 3.0)}
    quantized = rv.TARGET.on_grids(model, quantize_all(model, plan, ranges))
    assert len({quantized.activations[name] for name in one}) == 1
    written = unify_concats(model, full_integer.ranges_of_all(rv.TARGET.spec, model, quantized))
    assert {name: written[name] for name in quantized.activations} == quantized.activations


def test_an_output_before_a_relu_keeps_its_range():
    model = parsed("""(float[N,3,8,8] x) => (float[N,4,8,8] a, float[N,4,8,8] y) {
        [conv1] a = Conv<pads=[1,1,1,1]>(x, w1, b1)
        [relu] r = Relu(a)
        [sig] y = Sigmoid(r)
    }""")
    plan = make_plan(model, rv.TARGET.spec, PrecisionConfig(weight_bits=8, act_bits=8))
    quantized = quantize_all(model, plan, {"a": Range(-2.0, 3.0), "r": Range(0.0, 3.0)})
    known = unify_concats(model, full_integer.ranges_of_all(rv.TARGET.spec, model, quantized))
    assert known["a"] is quantized.activations["a"]
