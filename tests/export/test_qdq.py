from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from export_networks import Case, fit, quantize, random_model, residual_case
from onnx.numpy_helper import to_array

from dipo.export.qdq import insert_qdq, storage_type, write_qdq
from dipo.export.targets import TARGETS
from dipo.quant.spec import QParams, QuantSpec

W8 = QuantSpec(8, signed=True, symmetric=True, per_channel=True)
A8 = QuantSpec(8, signed=False, symmetric=False)
ORT = TARGETS["ort"].spec
PLAIN = replace(ORT, int8_kernels=False)


def write(case: Case, path, *, rules=ORT) -> onnx.ModelProto:
    write_qdq(case.model, case.quantized, path, rules=rules, metadata={})
    return onnx.load(path)


def constants(proto: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: to_array(tensor) for tensor in proto.graph.initializer}


def node_types(proto: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in proto.graph.node]


def one_conv(
    text_after_conv: str, *, acts: QuantSpec, values: list[str], output: str = "y", scale: float = 4.0
) -> Case:
    model = random_model(
        f'<ir_version: 8, opset_import: ["": 13]> g (float[N,3,6,6] x) => (float[N,4,6,6] {output})'
        f"{{ [conv] c = Conv(x, w, b) \n {text_after_conv} }}",
        w=(4, 3, 1, 1),
        b=(4,),
    )
    feeds = {"x": scale * np.random.default_rng(3).normal(size=(2, 3, 6, 6)).astype(np.float32)}
    return quantize(model, feeds, weights=W8, acts=acts, layers={"conv": 0}, values=values)


@pytest.mark.parametrize("rules", [ORT, PLAIN, replace(PLAIN, int32_bias=False)], ids=["ort", "plain", "float bias"])
@pytest.mark.parametrize(
    ("weight_bits", "act_bits"), [(8, 8), (4, 4), (4, 8), (8, 4), (2, 3), (7, 6), (8, 16), (16, 8), (12, 10), (16, 16)]
)
@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
def test_file_computes_what_the_definition_says(tmp_path, run, rules, weight_bits, act_bits, symmetric):
    case = residual_case(
        QuantSpec(weight_bits, signed=symmetric, symmetric=symmetric, per_channel=True),
        QuantSpec(act_bits, signed=symmetric, symmetric=symmetric),
    )
    write(case, tmp_path / "q.onnx", rules=rules)
    feeds = {"x": 2 * case.feeds["x"]}
    expected = case.simulate(int32_bias=rules.int32_bias, feeds=feeds)["y"]
    for optimize in (False, True):
        y = run(tmp_path / "q.onnx", feeds, optimize=optimize, keep_float_bias=not rules.int32_bias)["y"]
        np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)


def test_float_model_is_left_as_it_is(tmp_path):
    case = residual_case(QuantSpec(4, signed=False, symmetric=False), A8)
    before = ir.to_proto(case.model).SerializeToString(deterministic=True)
    write(case, tmp_path / "q.onnx")
    assert ir.to_proto(case.model).SerializeToString(deterministic=True) == before


def test_weights_are_the_codes(tmp_path):
    case = residual_case(QuantSpec(4, signed=False, symmetric=False, per_channel=True), A8)
    stored = constants(write(case, tmp_path / "q.onnx", rules=PLAIN))
    for layer, weight in (("conv1", "w1"), ("conv2", "w2"), ("fc", "w3")):
        quantized = case.quantized.layers[layer]
        assert stored[f"{weight}_quantized"].dtype == np.uint8
        np.testing.assert_array_equal(stored[f"{weight}_quantized"], quantized.codes)
        np.testing.assert_array_equal(stored[f"{weight}_zero_point"], quantized.qparams.zero_point)
        np.testing.assert_array_equal(stored[f"{weight}_scale"], quantized.qparams.scale)
        assert weight not in stored


def test_weights_for_int8_kernels_have_no_zero_point_and_the_same_values(tmp_path):
    case = residual_case(QuantSpec(4, signed=False, symmetric=False, per_channel=True), A8)
    assert case.quantized.layers["conv1"].qparams.zero_point.any()
    stored = constants(write(case, tmp_path / "q.onnx"))
    codes, scale = stored["w1_quantized"], stored["w1_scale"]
    assert codes.dtype == np.int8
    assert "w1_zero_point" not in stored
    np.testing.assert_array_equal(stored["zero_point_int8_4"], [0] * 4)
    assert all(np.ptp(channel) <= 15 for channel in codes)
    np.testing.assert_array_equal(codes * scale.reshape(-1, 1, 1, 1), case.quantized.layers["conv1"].weight)


def test_zero_point_that_int8_cannot_take_up_is_kept(tmp_path):
    case = residual_case(QuantSpec(8, signed=False, symmetric=False, per_channel=True), A8)
    layer = case.quantized.layers["conv1"]
    positive = replace(
        layer,
        codes=np.full_like(layer.codes, 255),
        qparams=replace(layer.qparams, zero_point=np.zeros(4, np.int32) + 3),
    )
    case.quantized.layers["conv1"] = positive
    stored = constants(write(case, tmp_path / "q.onnx"))
    assert stored["w1_quantized"].dtype == np.uint8
    np.testing.assert_array_equal(stored["w1_zero_point"], [3] * 4)


def test_symmetric_weights_keep_their_type_whatever_their_values(tmp_path):
    case = residual_case(replace(W8, bits=16), A8)
    layer = case.quantized.layers["conv1"]
    case.quantized.layers["conv1"] = replace(layer, codes=np.sign(layer.codes))
    assert constants(write(case, tmp_path / "q.onnx"))["w1_quantized"].dtype == np.int16


def test_bias_is_on_the_accumulators_grid(tmp_path):
    case = residual_case(W8, A8)
    stored = constants(write(case, tmp_path / "q.onnx"))
    layer = case.quantized.layers["conv2"]
    scale = case.quantized.activations["r1"].scale * layer.qparams.scale
    assert stored["b2_quantized"].dtype == np.int32
    np.testing.assert_array_equal(stored["b2_scale"], scale)
    np.testing.assert_array_equal(stored["b2_quantized"], np.rint(layer.bias.astype(np.float64) / scale))


def test_bias_stays_float_where_the_layers_input_does(tmp_path):
    case = residual_case(W8, A8)
    del case.quantized.activations["r1"]
    changed = case.quantized.layers["conv2"].bias + 1
    case.quantized.layers["conv2"] = replace(case.quantized.layers["conv2"], bias=changed)
    stored = constants(write(case, tmp_path / "q.onnx"))
    np.testing.assert_array_equal(stored["b2"], changed)
    assert stored["b1_quantized"].dtype == np.int32


def test_bias_of_a_dead_channel_survives(tmp_path, run):
    case = residual_case(W8, A8)
    layer = case.quantized.layers["conv2"]
    scale = layer.qparams.scale.copy()
    scale[1] = 1e-13
    bias = np.array([0.1, 1.5, 0.2, 0.3], np.float32)
    case.quantized.layers["conv2"] = replace(layer, qparams=replace(layer.qparams, scale=scale), bias=bias)
    expected = case.simulate(int32_bias=True)["y"]
    stored = constants(write(case, tmp_path / "q.onnx"))
    assert not stored["w2_quantized"][1].any()
    np.testing.assert_array_equal(stored["w2_quantized"][[0, 2, 3]], layer.codes[[0, 2, 3]])
    for optimize in (False, True):
        np.testing.assert_allclose(
            run(tmp_path / "q.onnx", case.feeds, optimize=optimize)["y"], expected, rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("rules", [ORT, PLAIN], ids=["ort", "plain"])
@pytest.mark.parametrize(("low", "high"), [(0.0, 6.0), (-1.0, 2.5), (0.3, 0.4)])
def test_clip_narrower_than_the_quantizer_still_cuts(tmp_path, run, rules, low, high):
    case = one_conv(
        f"lo = Constant<value_float={low}>() \n hi = Constant<value_float={high}>() \n"
        "r = Clip(c, lo, hi) \n y = Neg(r)",
        acts=A8,
        values=["x", "r"],
    )
    case.quantized.activations["r"] = fit(np.array([-9.0, 11.0]), A8)
    proto = write(case, tmp_path / "q.onnx", rules=rules)
    expected = case.simulate(int32_bias=True)["y"]
    assert expected.min() < -low, "the case does not reach its bounds"
    for optimize in (False, True):
        y = run(tmp_path / "q.onnx", case.feeds, optimize=optimize)["y"]
        np.testing.assert_allclose(y, expected, atol=1e-5)
    types = node_types(proto)
    assert types.index("QuantizeLinear") < types.index("Clip")
    if rules.int8_kernels:
        clip = next(node for node in proto.graph.node if node.op_type == "Clip")
        assert clip.input[0] == "r_quantized"


@pytest.mark.parametrize("clip", ["Clip(c, lo, hi)", "Clip(c, lo)", "Clip(c, , hi)", "Clip(c)", "Relu(c)"])
def test_clip_that_the_quantizer_does_anyway_is_left_out(tmp_path, run, clip):
    bounds = "lo = Constant<value_float=-1.0>() \n hi = Constant<value_float=6.0>()"
    case = one_conv(f"{bounds} \n r = {clip} \n y = Neg(r)", acts=A8, values=["x", "r"])
    covered = np.array([0.0 if clip == "Relu(c)" else -1.0, 6.0])
    case.quantized.activations["r"] = fit(covered, A8)
    assert {"Clip", "Relu"}.isdisjoint(node_types(write(case, tmp_path / "q.onnx")))
    expected = case.simulate(int32_bias=True)["y"]
    np.testing.assert_allclose(run(tmp_path / "q.onnx", case.feeds)["y"], expected, atol=1e-5)


def test_clip_with_a_bound_that_is_computed_stays(tmp_path, run):
    case = one_conv("m = ReduceMean<keepdims=0>(c) \n r = Clip(c, m) \n y = Neg(r)", acts=A8, values=["x", "r"])
    clip = next(node for node in write(case, tmp_path / "q.onnx").graph.node if node.op_type == "Clip")
    assert list(clip.input) == ["c", "m"]
    expected = case.simulate(int32_bias=True)["y"]
    np.testing.assert_allclose(run(tmp_path / "q.onnx", case.feeds)["y"], expected, atol=1e-5)


@pytest.mark.parametrize("rules", [ORT, PLAIN], ids=["ort", "plain"])
def test_narrow_activation_saturates_at_its_own_limits(tmp_path, run, rules):
    case = one_conv("y = Neg(c)", acts=QuantSpec(3, signed=False, symmetric=False), values=["x", "c"])
    write(case, tmp_path / "q.onnx", rules=rules)
    qparams = case.quantized.activations["c"]
    y = run(tmp_path / "q.onnx", {"x": 100 * case.feeds["x"]})["y"]
    codes = np.rint(-y / qparams.scale) + qparams.zero_point
    assert codes.min() == 0
    assert codes.max() == 7


def test_graph_output_stays_float_and_its_readers_do_not(tmp_path, run):
    model = random_model(
        '<ir_version: 8, opset_import: ["": 13]> g (float[N,4] x) => (float[N,4] r, float[N,4] y)'
        "{ r = Relu(x) \n y = Neg(r) }"
    )
    feeds = {"x": np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)}
    case = quantize(model, feeds, weights=W8, acts=QuantSpec(4, signed=False, symmetric=False), layers={}, values=["r"])
    write(case, tmp_path / "q.onnx")
    outputs, expected = run(tmp_path / "q.onnx", feeds), case.simulate(int32_bias=True)
    np.testing.assert_array_equal(outputs["r"], np.maximum(feeds["x"], 0))
    np.testing.assert_allclose(outputs["y"], expected["y"], atol=1e-6)
    assert np.abs(outputs["y"] + outputs["r"]).max() > 0.01


def test_network_outputs_are_quantized_where_the_rules_say_so(tmp_path, run):
    case = one_conv("y = Relu(c)", acts=A8, values=["x", "y"])
    proto = write(case, tmp_path / "q.onnx", rules=replace(ORT, quantize_outputs=True))
    assert [output.name for output in proto.graph.output] == ["y"]
    y = run(tmp_path / "q.onnx", case.feeds)["y"]
    codes = y / case.quantized.activations["y"].scale
    np.testing.assert_allclose(codes, np.rint(codes), atol=1e-3)


def test_value_read_twice_by_one_node_and_a_branch(tmp_path, run):
    model = random_model(
        """<ir_version: 8, opset_import: ["": 13]> g (float[N,4] x) => (float[N,4] y) {
            twice = Add(x, x)
            t = Constant<value: tensor = bool {1}>()
            z = If (t) <
                then_branch = a () => (float[N,4] u) { u = Identity(x) },
                else_branch = b () => (float[N,4] v) { v = Neg(x) }
            >
            y = Add(twice, z)
        }"""
    )
    feeds = {"x": np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)}
    case = quantize(
        random_model('<ir_version: 8, opset_import: ["": 13]> g (float[N,4] x) => (float[N,4] y) { y = Identity(x) }'),
        feeds,
        weights=W8,
        acts=QuantSpec(3, signed=True, symmetric=True),
        layers={},
        values=["x"],
    )
    quantized_x = case.simulate(int32_bias=True)["y"]
    write(replace(case, model=model), tmp_path / "q.onnx")
    np.testing.assert_allclose(run(tmp_path / "q.onnx", feeds)["y"], 3 * quantized_x, atol=1e-6)


def test_matmul_and_grouped_transposed_convolution(tmp_path, run):
    model = random_model(
        """<ir_version: 8, opset_import: ["": 13]> g (float[N,4,3,3] x) => (float[N,6,5,7] y) {
            [up] t = ConvTranspose<group=2, strides=[2,2], pads=[1,1,1,1]>(x, w, b)
            [mm] y = MatMul(t, m)
        }""",
        w=(4, 3, 3, 3),
        b=(6,),
        m=(5, 7),
    )
    feeds = {"x": np.random.default_rng(0).normal(size=(2, 4, 3, 3)).astype(np.float32)}
    case = quantize(model, feeds, weights=W8, acts=A8, layers={"up": 1, "mm": 1}, values=["x", "t"])
    bias_scale = constants(write(case, tmp_path / "q.onnx"))["b_scale"]
    one_group = case.quantized.layers["up"].qparams.scale * case.quantized.activations["x"].scale
    np.testing.assert_array_equal(bias_scale, np.concatenate([one_group, one_group]))
    expected = case.simulate(int32_bias=True)["y"]
    np.testing.assert_allclose(run(tmp_path / "q.onnx", feeds)["y"], expected, rtol=1e-4, atol=1e-4)


def test_names_that_the_graph_has_already_get_a_number(tmp_path, run):
    case = one_conv("c_scale = Relu(c) \n y = Neg(c_scale)", acts=A8, values=["x", "c", "c_scale"])
    proto = write(case, tmp_path / "q.onnx")
    names = [name for node in proto.graph.node for name in node.output] + [t.name for t in proto.graph.initializer]
    assert len(names) == len(set(names))
    assert "c_scale_1" in names
    expected = case.simulate(int32_bias=True)["y"]
    np.testing.assert_allclose(run(tmp_path / "q.onnx", case.feeds)["y"], expected, atol=1e-5)


def test_added_names_are_readable(tmp_path):
    proto = write(residual_case(W8, A8), tmp_path / "q.onnx")
    assert {node.name for node in proto.graph.node} >= {"x_QuantizeLinear", "x_DequantizeLinear", "w1_DequantizeLinear"}
    assert set(constants(proto)) >= {"x_scale", "x_zero_point", "w1_quantized", "w1_scale", "b1_quantized"}


@pytest.mark.parametrize(
    ("opset", "act_bits", "expected"), [(11, 8, 13), (13, 8, 13), (18, 4, 18), (18, 16, 21), (22, 16, 22)]
)
def test_opset_is_raised_only_as_needed(tmp_path, run, opset, act_bits, expected):
    case = residual_case(W8, QuantSpec(act_bits, signed=False, symmetric=False))
    proto = ir.to_proto(case.model)
    proto.opset_import[0].version = opset
    proto.ir_version = 6
    older = replace(case, model=ir.from_proto(proto))
    written = write(older, tmp_path / "q.onnx")
    assert written.opset_import[0].version == expected
    assert written.ir_version == max(6, onnx.helper.find_min_ir_version_for(written.opset_import))
    np.testing.assert_allclose(
        run(tmp_path / "q.onnx", case.feeds)["y"], case.simulate(int32_bias=True)["y"], rtol=1e-4, atol=1e-4
    )


def test_metadata_is_in_the_file(tmp_path):
    case = residual_case(W8, A8)
    write_qdq(case.model, case.quantized, tmp_path / "q.onnx", rules=ORT, metadata={"dipo.version": "1"})
    assert {p.key: p.value for p in onnx.load(tmp_path / "q.onnx").metadata_props}["dipo.version"] == "1"


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ((-8, 7), "INT8"),
        ((0, 15), "UINT8"),
        ((-128, 127), "INT8"),
        ((0, 255), "UINT8"),
        ((0, 256), "UINT16"),
        ((-129, 0), "INT16"),
    ],
)
def test_storage_type(limits, expected):
    qparams = QParams(np.float32(1), np.int32(0), *limits)
    assert storage_type(qparams).name == expected


def test_readers_of_a_quantized_value_read_it_dequantized():
    case = residual_case(W8, A8)
    graph = insert_qdq(case.model, case.quantized, rules=ORT).graph
    for node in graph:
        if node.op_type in {"Conv", "Add", "GlobalAveragePool", "Gemm"}:
            assert {value.producer().op_type for value in node.inputs} == {"DequantizeLinear"}
