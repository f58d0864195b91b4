import json

import numpy as np
import pytest
from exported import write_files
from google.protobuf import text_format
from networks import network as made_of
from networks import saved
from platform_networks import ALL_VALUES, check_golden, parsed, platform_case, quantize_all
from text_schemas import TIDL, message_of

from dipo.errors import UserError
from dipo.export.ranges import Encoding, spread
from dipo.export.targets import ti
from dipo.graph.load import load
from dipo.graph.plan import make_plan
from dipo.quant.spec import QuantSpec, Range, qparams_of
from dipo.recipe import PrecisionConfig

FLOAT_MAX = 3.4e38
POSITIVE = {"r1", "r2", "p1", "p2", "j", "g", "f", "y"}
"""What is made by a Relu or a Sigmoid, or of that."""


@pytest.fixture
def case():
    return platform_case(ti.TARGET.spec)


@pytest.fixture
def network(tmp_path, case):
    text = write_files(ti.TARGET, *case, tmp_path)[2].read_text()
    return text_format.Parse(text, message_of(TIDL, "TIDLNetQuantParams"))


def test_golden(tmp_path, case):
    check_golden("ti", *write_files(ti.TARGET, *case, tmp_path)[2:])


def test_layers_are_known_by_type_and_by_what_they_make_behind_their_relu(network):
    assert (network.quant_type, network.calib_type) == (1, 1)
    assert network.num_layers == len(network.layers)
    assert [(layer.layer_name, layer.layer_type) for layer in network.layers] == [
        ("x", "TIDL_DataLayer"),
        ("r1", "TIDL_ConvolutionLayer"),
        ("c2", "TIDL_ConvolutionLayer"),
        ("r2", "TIDL_EltWiseLayer"),
        ("p1", "TIDL_PoolingLayer"),
        ("p2", "TIDL_PoolingLayer"),
        ("j", "TIDL_ConcatLayer"),
        ("g", "TIDL_PoolingLayer"),
        ("f", "TIDL_FlattenLayer"),
        ("z", "TIDL_InnerProductLayer"),
        ("y", "TIDL_SigmoidLayer"),
    ]


def test_nothing_is_missing_for_which_tidl_would_calibrate_itself(network):
    for layer in network.layers:
        tensors = [*layer.outputs, *layer.weights, *layer.bias]
        assert len(layer.outputs) == 1 and len(layer.weights) == len(layer.bias) == (
            layer.layer_name in {"r1", "c2", "z"}
        )
        assert all(-FLOAT_MAX < tensor.min < tensor.max < FLOAT_MAX for tensor in tensors)
        assert all(len(bias.value) == bias.size > 0 for bias in layer.bias)


def test_round_trip(case, network):
    model, quantized = case
    known = spread(model, quantized.activations)
    for layer in network.layers:
        (output,) = layer.outputs
        scale = float(known[layer.layer_name].scale)
        assert np.log2(scale) == round(np.log2(scale)), "TIDL rescales by shifts"
        if layer.layer_name in POSITIVE:
            assert (output.min, output.max, output.element_type) == (0, 255 * scale, 0)
        else:
            assert (output.min, output.max, output.element_type) == (-127 * scale, 127 * scale, 1)
        assert list(output.scale) == [1 / scale] and list(output.zero_point) == [0]
    layers = {layer.layer_name: layer for layer in network.layers}
    for name, made in {"conv1": "r1", "conv2": "c2", "fc": "z"}.items():
        (weights,), (bias,) = layers[made].weights, layers[made].bias
        layer = quantized.layers[name]
        assert weights.max == -weights.min
        np.testing.assert_array_equal(np.rint(layer.weight * 127 / weights.max), layer.codes)
        np.testing.assert_array_equal(np.array(bias.value, np.float32), layer.bias)
        assert (bias.min, bias.max) == (layer.bias.min(), layer.bias.max())


def test_ranges_for_scripts(tmp_path, case):
    model, quantized = case
    *_, text, content = write_files(ti.TARGET, model, quantized, tmp_path)
    ranges = json.loads(content.read_text())["blob_range"]
    lines = [line.split() for line in text.read_text().splitlines()]
    assert {name: [float(low), float(high)] for name, low, high in lines} == ranges
    assert list(ranges) == ALL_VALUES
    for name, qparams in spread(model, quantized.activations).items():
        grid = Encoding(qparams)
        amax = float(grid.amax)
        assert ranges[name] == ([-amax, amax] if grid.signed else [0.0, float(grid.max)])
        assert grid.signed == (name not in {*POSITIVE, "c1", "s"}), "c1 and s are written behind their Relu alone"


def test_unsigned_grids_begin_at_zero(tmp_path, case):
    model, quantized = case
    quantized.activations["y"] = qparams_of(Range(0.0, 1.0), QuantSpec(8, signed=False, symmetric=False))
    files = write_files(ti.TARGET, model, quantized, tmp_path)
    assert json.loads(files[-1].read_text())["blob_range"]["y"] == [0.0, pytest.approx(1.0)]
    network = text_format.Parse(files[2].read_text(), message_of(TIDL, "TIDLNetQuantParams"))
    (output,) = network.layers[-1].outputs
    assert output.element_type == 0 and list(output.scale) == [pytest.approx(255.0)]


def test_relu_that_shares_its_input_is_a_layer_of_its_own(tmp_path):
    model = parsed(
        "(float[N,3,8,8] x) => (float[N,4,8,8] y) { [conv1] c = Conv<pads=[1,1,1,1]>(x, w1, b1) \n"
        "[relu] r = Relu(c) \n [add] y = Add(c, r) }"
    )
    plan = make_plan(model, ti.TARGET.spec, PrecisionConfig(weight_bits=8, act_bits=8))
    file = write_files(ti.TARGET, model, quantize_all(model, plan, {}), tmp_path)[2]
    network = text_format.Parse(file.read_text(), message_of(TIDL, "TIDLNetQuantParams"))
    assert [(layer.layer_name, layer.layer_type) for layer in network.layers] == [
        ("x", "TIDL_DataLayer"), ("c", "TIDL_ConvolutionLayer"), ("r", "TIDL_ReLULayer"), ("y", "TIDL_EltWiseLayer"),
    ]  # fmt: skip


def test_an_operator_that_tidl_has_no_layer_for_is_named_and_nothing_is_written(tmp_path):
    model = made_of(
        "(float[N,3,8,8] x) => (float[N,3,8,8] y) { [conv] a = Conv(x, w) [odd] y = Erf(a) }", w=(3, 3, 1, 1)
    )
    loaded = load(saved(model, tmp_path))
    plan = make_plan(loaded, ti.TARGET.spec, PrecisionConfig(weight_bits=8, act_bits=8))
    folder = tmp_path / "out"
    folder.mkdir()
    with pytest.raises(UserError, match=r"no layer for node 'odd' \(Erf\), whose output 'y'"):
        write_files(ti.TARGET, loaded, quantize_all(loaded, plan, {}), folder)
    assert not list(folder.iterdir())


def test_each_output_of_a_layer_has_its_range(tmp_path):
    text = """(float[N,4,8,8] x) => (float[N,2,8,8] y) {
      [conv] a = Conv(x, w) [two] b, c = Split<axis=1>(a, sizes) [cut] d = Relu(c) [sum] y = Add(b, d)
    }"""
    loaded = load(saved(made_of(text, w=(4, 4, 1, 1), sizes=np.int64([2, 2])), tmp_path))
    plan = make_plan(loaded, ti.TARGET.spec, PrecisionConfig(weight_bits=8, act_bits=8))
    content = write_files(ti.TARGET, loaded, quantize_all(loaded, plan, {}), tmp_path)[2].read_text()
    layers = text_format.Parse(content, message_of(TIDL, "TIDLNetQuantParams")).layers
    assert [layer.layer_name for layer in layers] == ["x", "a", "b", "d", "y"]
