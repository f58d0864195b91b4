import dataclasses

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from exported import write_files
from platform_networks import ALL_VALUES, platform_case, small_network, without

from dipo.errors import UserError
from dipo.export import ranges
from dipo.export.dequantized_model import write_float
from dipo.export.ranges import Encoding
from dipo.export.targets import atlas, qnn, snpe
from dipo.graph.plan import QuantizedLayer
from dipo.quant.spec import QuantSpec, Range, qparams_of


def grid(low, high, bits=8, *, signed=False, symmetric=False, narrow=False) -> Encoding:
    return Encoding(qparams_of(Range(low, high), QuantSpec(bits, signed=signed, symmetric=symmetric, narrow=narrow)))


def model_of(text: str) -> ir.Model:
    return ir.from_proto(onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 13]> g {text}'))


def test_unsigned_grid():
    found = grid(-1.0, 3.0)
    assert (found.bits, found.signed, found.symmetric) == (8, False, False)
    assert found.zero_point == 64 and found.offset(8) == -64
    assert float(found.min) == pytest.approx(-1, abs=0.01) and float(found.max) == pytest.approx(3, abs=0.01)
    assert float(found.max - found.min) == pytest.approx(255 * float(found.scale))


def test_signed_grid_counts_its_offset_from_the_smallest_code():
    found = grid(-1.0, 3.0, signed=True)
    assert found.zero_point == -64 and found.offset(8) == -64
    assert found.offset(16) == -32768 + 64


@pytest.mark.parametrize("narrow", [False, True])
def test_symmetric_grid(narrow):
    found = grid(-1.0, 0.5, signed=True, symmetric=True, narrow=narrow)
    assert found.symmetric and found.bits == 8 and found.offset(8) == -128
    assert float(found.amax) == pytest.approx(1.0) and float(found.max) == pytest.approx(1.0)
    assert float(found.min) == pytest.approx(-1.0 if narrow else -128 / 127)


@pytest.mark.parametrize("bits", range(2, 17))
@pytest.mark.parametrize("signed", [False, True])
def test_width(bits, signed):
    assert grid(-1.0, 1.0, bits, signed=signed).bits == bits


def test_values_that_hold_floats():
    assert ranges.float_values(small_network()) == ALL_VALUES
    shaped = model_of(
        "(float[2,3] x) => (float[2,3] y) <int64[2] n, float[2,3] a>{ n = Shape(x) \n a = Neg(x) \n y = Reshape(a, n) }"
    )
    assert ranges.float_values(shaped) == ["x", "a", "y"]


def test_what_a_relu_reads_and_a_pooling_moves_has_the_range_behind_it():
    model, quantized = platform_case(snpe.TARGET.spec)
    assert {"c1", "s"}.isdisjoint(quantized.activations)
    known = ranges.spread(model, quantized.activations)
    assert list(known) != [] and set(known) == set(ALL_VALUES)
    assert known["c1"] is known["r1"]
    assert known["s"] is known["r2"] is known["p1"]
    assert known["c2"] is quantized.activations["c2"], "has a grid of its own"


def test_ranges_go_backward_before_they_go_forward():
    model = model_of("(float[4] x) => (float[4] y) { a = Relu(x) \n b = Identity(a) \n y = Neg(b) }")
    wide, narrow = (grid(-9.0, 9.0).qparams, grid(0.0, 1.0).qparams)
    known = ranges.spread(model, {"x": wide, "b": narrow})
    assert known["a"] is narrow and known["x"] is wide


def test_what_is_moved_from_a_grid_has_that_whatever_is_cut_from_it():
    model = model_of(
        "(float[2,4] x) => (float[1,4] y, float[1,4] z) { a = Transpose<perm=[0,1]>(x) \n y, z = Split(a) }"
    )
    wide, narrow = grid(0.0, 2.0).qparams, grid(0.0, 1.0).qparams
    assert ranges.spread(model, {"x": wide, "y": narrow, "z": narrow})["a"] is wide


def test_value_that_two_rearrangements_read_takes_the_wider():
    model = model_of(
        "(float[1,4] x) => (float[4,1] y, float[4] z) { a = Relu(x) \n y = Transpose(a) \n z = Squeeze(a) }"
    )
    wide, narrow = grid(0.0, 2.0).qparams, grid(0.0, 1.0).qparams
    assert ranges.spread(model, {"y": narrow, "z": wide})["x"] is wide


@pytest.mark.parametrize("bad", [0.0, -1.0, np.nan, np.inf])
def test_scales_that_are_none_count_as_missing(bad):
    model, quantized = platform_case(snpe.TARGET.spec)
    quantized.activations["y"] = Encoding(quantized.activations["x"]).qparams.__class__(
        np.float32(bad), np.int32(0), 0, 255
    )
    assert "y" not in ranges.spread(model, quantized.activations)


def test_concat_reads_what_it_writes():
    model, quantized = platform_case(snpe.TARGET.spec)
    unified = ranges.unify_concats(model, ranges.spread(model, quantized.activations))
    joined = quantized.activations["j"]
    assert {name for name, each in unified.items() if each is joined} == {"j", "p1", "p2", "r2", "s"}
    assert unified["r1"] is quantized.activations["r1"], "the pooling computes: its input has a range of its own"


def test_coverage_names_each_tensor_once():
    assert ranges.coverage(["a", "b", "c", "b"], {"a"}) == ["b", "c"]
    with pytest.raises(UserError, match="platform=snpe: no range for tensors b, c, and"):
        ranges.check_coverage("snpe", ["a", "b", "c", "b"], {"a"})


@pytest.mark.parametrize("platform", [snpe, qnn])
def test_skipped_layers_lack_their_weight(tmp_path, platform):
    model, quantized = platform_case(platform.TARGET.spec, skip=["conv2"])
    with pytest.raises(UserError, match="tensors c2, w2, and"):
        write_files(platform.TARGET, model, without(quantized, "c2"), tmp_path)
    assert not list(tmp_path.iterdir())


def test_float_file_holds_what_the_codes_stand_for(tmp_path):
    model, quantized = platform_case(qnn.TARGET.spec)
    write_float(model, quantized, tmp_path / "deploy.onnx", metadata={"key": "value"})
    proto = onnx.load(tmp_path / "deploy.onnx")
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    for name, weight in {"conv1": "w1", "conv2": "w2", "fc": "w3"}.items():
        layer = quantized.layers[name]
        np.testing.assert_array_equal(stored[weight], layer.weight)
        scale, zero_point = layer.qparams.broadcast_to(layer.codes.ndim)
        np.testing.assert_array_equal(np.rint(stored[weight] / scale) + zero_point, layer.codes)
    assert {node.op_type for node in proto.graph.node}.isdisjoint({"QuantizeLinear", "DequantizeLinear"})
    assert [prop.key for prop in proto.metadata_props] == ["key"]
    untouched = {node.name: node for node in model.graph}["conv1"].inputs[1].const_value.numpy()
    assert np.abs(untouched - quantized.layers["conv1"].weight).max() > 0


def test_one_scale_for_a_layer():
    assert platform_case(atlas.TARGET.spec)[1].layers["fc"].qparams.axis is None, "it is rounded once"
    _, quantized = platform_case(dataclasses.replace(atlas.TARGET.spec, channel_operators=None))
    layer = quantized.layers["fc"]
    assert layer.qparams.axis == 0
    whole = ranges.per_tensor(layer)
    assert isinstance(whole, QuantizedLayer) and whole.qparams.axis is None
    assert whole.qparams.scale == layer.qparams.scale.max() and whole.qparams.scale.shape == ()
    assert np.abs(whole.weight - layer.weight).max() <= 0.5 * whole.qparams.scale * 1.001
    assert ranges.per_tensor(whole) is whole
