from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from export_networks import codes_of, evaluate, fit, quantize, random_model, residual_case
from exported import write_files

from dipo.export.targets import TARGETS, ort
from dipo.graph.accessors import array_of, node_name
from dipo.graph.load import load
from dipo.graph.plan import QuantizedLayer, QuantizedModel, make_plan
from dipo.quant.spec import QuantSpec
from dipo.recipe import PrecisionConfig

W8 = QuantSpec(8, signed=True, symmetric=True, per_channel=True)
W4 = QuantSpec(4, signed=False, symmetric=False, per_channel=True)
A8 = QuantSpec(8, signed=False, symmetric=False)
DATA = Path(__file__).parents[2] / ".." / "shared" / "data"


def test_writes_one_file(tmp_path):
    case = residual_case(W8, A8)
    files = write_files(TARGETS["ort"], case.model, case.quantized, tmp_path)
    assert files == [tmp_path / "quantized.onnx"]
    assert list(tmp_path.iterdir()) == files


@pytest.mark.parametrize("weights", [W8, W4], ids=["w8", "w4"])
@pytest.mark.parametrize("act_bits", [8, 4])
def test_whole_network_runs_on_integers(tmp_path, kernels, weights, act_bits):
    case = residual_case(weights, QuantSpec(act_bits, signed=False, symmetric=False))
    operators = kernels(write_files(ort.TARGET, case.model, case.quantized, tmp_path)[0])
    assert operators.count("QLinearConv") == 2
    assert {"QLinearAdd", "QLinearGlobalAveragePool", "QGemm"} <= set(operators)
    assert {"Conv", "FusedConv", "Relu", "Gemm", "Add"}.isdisjoint(operators)


@pytest.mark.parametrize(
    ("operator", "text", "kernel"),
    [
        ("Add", "t = Add(x, x)", "QLinearAdd"),
        ("Mul", "t = Mul(x, x)", "QLinearMul"),
        ("AveragePool", "t = AveragePool<kernel_shape=[2,2]>(x)", "QLinearAveragePool"),
        ("GlobalAveragePool", "t = GlobalAveragePool(x)", "QLinearGlobalAveragePool"),
        ("Concat", "t = Concat<axis=1>(x, x)", "QLinearConcat"),
        ("Sigmoid", "t = Sigmoid(x)", "QLinearSigmoid"),
        ("LeakyRelu", "t = LeakyRelu(x)", "QLinearLeakyRelu"),
    ],
)
def test_listed_operators_have_integer_kernels(tmp_path, kernels, operator, text, kernel):
    assert operator in ort.TARGET.spec.operators
    model = random_model(
        f'<ir_version: 8, opset_import: ["": 13]> g (float[2,4,6,6] x) => (float[A,B,C,D] y) {{ {text} \n y = Neg(t) }}'
    )
    feeds = {"x": np.random.default_rng(0).normal(size=(2, 4, 6, 6)).astype(np.float32)}
    case = quantize(model, feeds, weights=W8, acts=A8, layers={}, values=["x", "t"])
    assert kernel in kernels(write_files(ort.TARGET, case.model, case.quantized, tmp_path)[0])


@pytest.mark.parametrize("operator", ["MaxPool<kernel_shape=[2,2]>(r)", "Transpose<perm=[0,2,3,1]>(r)"])
def test_quantization_behind_operators_that_only_move_values_reaches_the_layer_before(tmp_path, kernels, operator):
    model = random_model(
        '<ir_version: 8, opset_import: ["": 13]> g (float[2,3,6,6] x) => (float[A,B,C,D] y)'
        f"{{ [conv] c = Conv(x, w, b) \n r = Relu(c) \n m = {operator} \n y = Sigmoid(m) }}",
        w=(4, 3, 1, 1),
        b=(4,),
    )
    feeds = {"x": np.random.default_rng(0).normal(size=(2, 3, 6, 6)).astype(np.float32)}
    case = quantize(model, feeds, weights=W8, acts=A8, layers={"conv": 0}, values=["x", "m"])
    assert "QLinearConv" in kernels(write_files(ort.TARGET, case.model, case.quantized, tmp_path)[0])


@pytest.mark.skipif(not DATA.exists(), reason="the shared models are not here")
@pytest.mark.parametrize(
    ("name", "size", "float_convs"), [("resnet20_cifar10", 32, 0), ("mobilenet_v1_025_224", 224, 1)]
)
@pytest.mark.parametrize("bits", [8, 4])
def test_real_networks_run_on_integers(tmp_path, kernels, name, size, float_convs, bits):
    model = load(DATA / f"{name}.onnx")
    num_convs = sum(node.op_type == "Conv" for node in model.graph)
    quantized = round_to_nearest(model, np.random.default_rng(0).normal(size=(2, 3, size, size)), bits)
    operators = kernels(write_files(ort.TARGET, model, quantized, tmp_path)[0])
    assert operators.count("QLinearConv") == num_convs - float_convs
    assert operators.count("Conv") == float_convs, "only a last layer with float output may stay float"
    assert {"FusedConv", "Relu", "Add", "Gemm"}.isdisjoint(operators)


def round_to_nearest(model: ir.Model, samples: np.ndarray, bits: int) -> QuantizedModel:
    plan = make_plan(model, TARGETS["ort"].spec, PrecisionConfig(weight_bits=bits, act_bits=bits))
    seen = evaluate(model, {model.graph.inputs[0].name: samples.astype(np.float32)})
    activations = {name: fit(seen[name], spec) for name, spec in plan.activations.items()}
    activations |= {name: activations[source] for name, source in plan.aliases.items()}
    nodes = {node_name(node): node for node in model.graph}
    layers = {}
    for name, layer in plan.layers.items():
        weight = array_of(nodes[name].inputs[1])
        qparams = fit(weight, layer.spec, layer.axis if layer.spec.per_channel else None)
        layers[name] = QuantizedLayer(codes_of(weight, qparams), qparams, array_of(nodes[name].inputs[2]))
    return QuantizedModel(layers, activations)
