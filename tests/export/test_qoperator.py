from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from export_networks import Case, quantize, random_model, residual_case
from test_ort import round_to_nearest

from dipo.errors import UserError
from dipo.export.qdq import write_qdq
from dipo.export.qoperator import write_qoperator
from dipo.export.storage import Storage
from dipo.export.targets import TARGETS
from dipo.graph.load import load
from dipo.quant.spec import QuantSpec

W8 = QuantSpec(8, signed=True, symmetric=True, per_channel=True)
A8 = QuantSpec(8, signed=False, symmetric=False)
ORT = TARGETS["ort"].spec


def write(case: Case, path: Path, **options) -> onnx.ModelProto:
    write_qoperator(case.model, case.quantized, path, rules=ORT, metadata={}, **options)
    onnx.checker.check_model(str(path), full_check=True)
    return onnx.load(path)


def node_types(proto: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in proto.graph.node]


def small_case(text: str, *, values: list[str], layers: dict[str, int] | None = None, acts: QuantSpec = A8, **shapes):
    """A network of one input [2,4,6,6]."""
    model = random_model(
        f'<ir_version: 8, opset_import: ["": 13]> g (float[2,4,6,6] x) => (float[A,B,C,D] y) {{ {text} }}', **shapes
    )
    feeds = {"x": np.random.default_rng(0).normal(size=(2, 4, 6, 6)).astype(np.float32)}
    return quantize(model, feeds, weights=W8, acts=acts, layers=layers or {}, values=values)


def assert_computes_what_the_definition_says(case: Case, path: Path, run, *, steps: float = 1.01) -> None:
    """Integer kernels round what the definition rounds, but from sums in another order: a step apart at most."""
    expected = case.simulate(int32_bias=True)["y"]
    step = max(float(qparams.scale) for qparams in case.quantized.activations.values())
    for optimize in (False, True):
        y = run(path, case.feeds, optimize=optimize)["y"]
        assert np.abs(y - expected).max() <= steps * step
        assert np.mean(np.abs(y - expected) > 0.01 * step) < 0.02


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize(("weight_bits", "act_bits"), [(8, 8), (4, 8), (8, 4), (2, 3)])
def test_whole_network_is_written_in_integer_operators(tmp_path, run, weight_bits, act_bits, symmetric):
    case = residual_case(
        QuantSpec(weight_bits, signed=symmetric, symmetric=symmetric, per_channel=True),
        QuantSpec(act_bits, signed=symmetric, symmetric=symmetric),
    )
    types = node_types(write(case, tmp_path / "q.onnx"))
    assert [each for each in types if each != "Clip"] == [
        "QuantizeLinear",
        "QLinearConv",
        "QLinearConv",
        "QLinearAdd",
        "QLinearGlobalAveragePool",
        "Flatten",
        "QGemm",
    ]
    write_qdq(case.model, case.quantized, tmp_path / "qdq.onnx", rules=ORT, metadata={})
    expected = run(tmp_path / "qdq.onnx", case.feeds)["y"]
    for optimize in (False, True):
        y = run(tmp_path / "q.onnx", case.feeds, optimize=optimize)["y"]
        np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize(
    ("text", "kernel"),
    [
        ("t = Add(x, x)", "QLinearAdd"),
        ("t = Mul(x, x)", "QLinearMul"),
        (
            "t = AveragePool<kernel_shape=[2,2], strides=[2,2], pads=[1,0,0,1], count_include_pad=1>(x)",
            "QLinearAveragePool",
        ),
        ("t = AveragePool<kernel_shape=[3,3]>(x)", "QLinearAveragePool"),
        ("t = GlobalAveragePool(x)", "QLinearGlobalAveragePool"),
        ("t = Concat<axis=1>(x, x)", "QLinearConcat"),
        ("t = Sigmoid(x)", "QLinearSigmoid"),
        ("t = LeakyRelu<alpha=0.2>(x)", "QLinearLeakyRelu"),
        ("t = MatMul(x, x)", "QLinearMatMul"),
    ],
)
def test_operator_becomes_an_integer_one(tmp_path, run, text, kernel, signed):
    acts = QuantSpec(8, signed=signed, symmetric=signed)
    case = small_case(f"{text} \n y = Neg(t)", values=["x", "t"], acts=acts)
    assert node_types(write(case, tmp_path / "q.onnx")) == ["QuantizeLinear", kernel, "DequantizeLinear", "Neg"]
    assert_computes_what_the_definition_says(case, tmp_path / "q.onnx", run)


@pytest.mark.parametrize(
    "operator",
    [
        "MaxPool<kernel_shape=[3,3], pads=[1,1,1,1], strides=[2,2]>(r)",
        "Transpose<perm=[0,2,3,1]>(r)",
        "Identity(r)",
    ],
)
def test_what_is_quantized_behind_a_move_is_quantized_before_it(tmp_path, run, operator):
    case = small_case(
        f"[conv] c = Conv(x, w, b) \n r = Relu(c) \n m = {operator} \n y = Sigmoid(m)",
        values=["x", "m"],
        layers={"conv": 0},
        w=(4, 4, 1, 1),
        b=(4,),
    )
    types = node_types(write(case, tmp_path / "q.onnx"))
    assert types == [
        "QuantizeLinear",
        "QLinearConv",
        operator.split("<")[0].split("(")[0],
        "DequantizeLinear",
        "Sigmoid",
    ]
    assert_computes_what_the_definition_says(case, tmp_path / "q.onnx", run)


def test_move_between_two_scales_reads_float(tmp_path, run):
    case = small_case("m = MaxPool<kernel_shape=[2,2]>(x) \n y = Neg(m)", values=["x", "m"])
    case.quantized.activations["m"] = replace(case.quantized.activations["m"], scale=np.float32(0.1))
    types = node_types(write(case, tmp_path / "q.onnx"))
    assert types == ["QuantizeLinear", "DequantizeLinear", "MaxPool", "QuantizeLinear", "DequantizeLinear", "Neg"]
    assert_computes_what_the_definition_says(case, tmp_path / "q.onnx", run)


def test_value_with_another_reader_is_not_quantized_before_a_move(tmp_path, run):
    case = small_case("r = Relu(x) \n m = Identity(r) \n n = Neg(m) \n y = Add(n, r)", values=["m"])
    types = node_types(write(case, tmp_path / "q.onnx"))
    assert types.index("Identity") < types.index("QuantizeLinear")
    assert_computes_what_the_definition_says(case, tmp_path / "q.onnx", run)


def test_a_float_output_of_the_network_is_not_quantized_before_a_move(tmp_path, run):
    model = random_model(
        """<ir_version: 8, opset_import: ["": 13]> g (float[2,4,6,6] x) => (float[2,4,6,6] m, float[2,4,6,6] y) {
            r = Relu(x)
            m = Identity(r)
            y = Sigmoid(m)
        }"""
    )
    feeds = {"x": np.random.default_rng(0).normal(size=(2, 4, 6, 6)).astype(np.float32)}
    case = quantize(model, feeds, weights=W8, acts=A8, layers={}, values=["m"])
    write(case, tmp_path / "q.onnx")
    np.testing.assert_array_equal(run(tmp_path / "q.onnx", feeds)["m"], np.maximum(feeds["x"], 0))


def test_clip_folds_into_the_output_where_the_limits_do_it_exactly(tmp_path, run):
    text = "lo = Constant<value_float=-0.2>() \n hi = Constant<value_float=0.4>() \n [conv] c = Conv(x, w, b)"
    case = small_case(
        f"{text} \n r = Clip(c, lo, hi) \n y = Neg(r)", values=["x", "r"], layers={"conv": 0}, w=(4, 4, 1, 1), b=(4,)
    )
    types = node_types(write(case, tmp_path / "q.onnx"))
    assert types[:2] == ["QuantizeLinear", "QLinearConv"]
    assert_computes_what_the_definition_says(case, tmp_path / "q.onnx", run)


def test_operators_without_a_kernel_go_through_float(tmp_path, run):
    case = small_case(
        "[up] t = ConvTranspose<strides=[2,2]>(x, w, b) \n u = Tanh(t) \n y = Add(u, t)",
        values=["x", "t"],
        layers={"up": 1},
        w=(4, 3, 2, 2),
        b=(3,),
    )
    types = node_types(write(case, tmp_path / "q.onnx"))
    assert {"ConvTranspose", "Tanh", "Add", "DequantizeLinear"} <= set(types)
    assert not any(each.startswith("QLinear") for each in types)
    assert_computes_what_the_definition_says(case, tmp_path / "q.onnx", run)


def test_convolution_whose_output_stays_float(tmp_path, run):
    case = small_case("[conv] y = Conv(x, w, b)", values=["x"], layers={"conv": 0}, w=(4, 4, 1, 1), b=(4,))
    assert "Conv" in node_types(write(case, tmp_path / "q.onnx"))
    assert_computes_what_the_definition_says(case, tmp_path / "q.onnx", run)


def test_output_that_is_read_as_float_too_is_computed_in_float(tmp_path, run):
    model = random_model(
        """<ir_version: 8, opset_import: ["": 13]> g (float[2,4,6,6] x) => (float[2,4,6,6] c, float[2,4,6,6] y) {
            [conv] c = Conv(x, w, b)
            y = Neg(c)
        }""",
        w=(4, 4, 1, 1),
        b=(4,),
    )
    feeds = {"x": np.random.default_rng(0).normal(size=(2, 4, 6, 6)).astype(np.float32)}
    case = quantize(model, feeds, weights=W8, acts=A8, layers={"conv": 0}, values=["x", "c"])
    assert "Conv" in node_types(write(case, tmp_path / "q.onnx"))
    assert_computes_what_the_definition_says(case, tmp_path / "q.onnx", run)
    c, step = run(tmp_path / "q.onnx", feeds)["c"], case.quantized.activations["c"].scale
    assert np.abs(c / step - np.rint(c / step)).max() > 0.1, "the network's output is not rounded"


@pytest.mark.parametrize("bits", [16, 12])
def test_wide_codes_stay_in_qdq_form(tmp_path, run, bits):
    case = residual_case(W8, QuantSpec(bits, signed=False, symmetric=False))
    types = node_types(write(case, tmp_path / "q.onnx"))
    assert {"Conv", "Gemm", "Add"} <= set(types)
    y = run(tmp_path / "q.onnx", case.feeds)["y"]
    np.testing.assert_allclose(y, case.simulate(int32_bias=True)["y"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("quantized_output", [True, False])
def test_matmul_with_a_constant_side(tmp_path, run, quantized_output):
    values = ["x", "m"] if quantized_output else ["x"]
    case = small_case("[mm] m = MatMul(x, w) \n y = Neg(m)", values=values, layers={"mm": 1}, w=(6, 5))
    types = node_types(write(case, tmp_path / "q.onnx"))
    assert ("QLinearMatMul" if quantized_output else "MatMulIntegerToFloat") in types
    assert_computes_what_the_definition_says(case, tmp_path / "q.onnx", run)


def test_packed_weights_are_widened_for_the_kernels(tmp_path, run, kernels):
    case = residual_case(QuantSpec(4, signed=False, symmetric=False, per_channel=True), A8)
    write(case, tmp_path / "plain.onnx")
    proto = write(case, tmp_path / "q.onnx", storage=Storage(packed=True))
    stored = {tensor.name: tensor.data_type for tensor in proto.graph.initializer}
    assert stored["w1_quantized"] == onnx.TensorProto.UINT4
    assert kernels(tmp_path / "q.onnx") == kernels(tmp_path / "plain.onnx")
    for optimize in (False, True):
        y = run(tmp_path / "q.onnx", case.feeds, optimize=optimize)["y"]
        np.testing.assert_array_equal(y, run(tmp_path / "plain.onnx", case.feeds)["y"])


def test_float_biases_are_refused(tmp_path):
    case = residual_case(W8, A8)
    with pytest.raises(UserError, match="platform trt keeps biases float"):
        write_qoperator(case.model, case.quantized, tmp_path / "q.onnx", rules=TARGETS["trt"].spec, metadata={})
    assert not list(tmp_path.iterdir())


def test_metadata_and_names_are_in_the_file(tmp_path):
    case = residual_case(W8, A8)
    write_qoperator(case.model, case.quantized, tmp_path / "q.onnx", rules=ORT, metadata={"dipo_version": "1"})
    proto = onnx.load(tmp_path / "q.onnx")
    assert {prop.key: prop.value for prop in proto.metadata_props}["dipo_version"] == "1"
    assert {"conv1", "conv2", "add", "fc"} <= {node.name for node in proto.graph.node}
    assert [output.name for output in proto.graph.output] == ["y"]
    assert {each.domain: each.version for each in proto.opset_import} == {"": 13, "com.microsoft": 1}


@pytest.mark.parametrize(("name", "size"), [("resnet20_cifar10", 32), ("mobilenet_v1_025_224", 224)])
def test_real_networks_agree_with_their_qdq_form(tmp_path, shared_file, run, name, size):
    model = load(shared_file(f"{name}.onnx"))
    samples = np.random.default_rng(0).normal(size=(2, 3, size, size)).astype(np.float32)
    quantized = round_to_nearest(model, samples, 8)
    case = Case(model, quantized, {model.graph.inputs[0].name: samples})
    types = node_types(write(case, tmp_path / "q.onnx"))
    assert {"Relu", "Clip", "Add"}.isdisjoint(types)
    assert types.count("Conv") <= 1, "only a last layer with float output may stay float"
    write_qdq(model, quantized, tmp_path / "qdq.onnx", rules=ORT, metadata={})
    for ours, theirs in zip(
        run(tmp_path / "q.onnx", case.feeds).values(), run(tmp_path / "qdq.onnx", case.feeds).values(), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)
