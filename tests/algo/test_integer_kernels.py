"""The simulation against ONNX Runtime's integer kernels, on numbers that put ties of rounding on purpose."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch

from dipo.algo.activation_cache import cut
from dipo.algo.integer_kernels import integer_kernels
from dipo.algo.simulate import Simulated, simulate
from dipo.export.qdq import write_qdq
from dipo.export.runtime import run_model
from dipo.export.targets import TARGETS
from dipo.graph.accessors import array_of, node_name
from dipo.graph.layers import layers_of
from dipo.graph.load import load
from dipo.graph.plan import Plan, QuantizedLayer, QuantizedModel, make_plan
from dipo.graph.target_spec import TargetSpec
from dipo.graph.torch_module import GraphModule
from dipo.quant.codes import nearest_codes
from dipo.quant.spec import QParams
from dipo.recipe import PrecisionConfig

NUM = 16
CPU = torch.device("cpu")
INPUT_SCALE = 0.1
HEADER = '<ir_version: 8, opset_import: ["" : 17]>'

NETWORKS = {
    "conv": "[a] c = Conv<pads=[1,1,1,1]>(x, w0, b0) r = Relu(c) [z] y = Conv(r, w1, b1)",
    "depthwise": "[a] c = Conv<group=4, pads=[1,1,1,1]>(x, w0, b0) r = Clip(c, zero, six) [z] y = Conv(r, w1, b1)",
    "no activation": "[a] c = Conv<strides=[2,2]>(x, w0, b0) [z] y = Conv(c, w1, b1)",
    "max pool": "[a] c = Conv(x, w0, b0) r = Relu(c) p = MaxPool<kernel_shape=[2,2]>(r) [z] y = Conv(p, w1, b1)",
    "residual": "[a] c = Conv<pads=[1,1,1,1]>(x, w0, b0) s = Add(x, c) r = Relu(s) [z] y = Conv(r, w1, b1)",
    "broadcast": "[a] c = Conv<pads=[1,1,1,1]>(x, w0, b0) p = GlobalAveragePool(c) s = Add(p, c) r = Relu(s)"
    " [z] y = Conv(r, w1, b1)",
    "product": "[a] c = Conv<pads=[1,1,1,1]>(x, w0, b0) s = Mul(c, x) [z] y = Conv(s, w1, b1)",
    "average pool": "[a] c = Conv<pads=[1,1,1,1]>(x, w0, b0) p = AveragePool<kernel_shape=[2,2]>(c)"
    " [z] y = Conv(p, w1, b1)",
    "global pool": "[a] c = Conv<pads=[1,1,1,1]>(x, w0, b0) g = GlobalAveragePool(c) f = Flatten(g)"
    " [m] h = Gemm<transB=1>(f, w2, b2) r = Relu(h) [z] y = Gemm(r, w3, b3)",
    "matmul": "g = GlobalAveragePool(x) f = Flatten(g) [a] h = MatMul(f, w2) r = Relu(h) [z] y = MatMul(r, w3)",
}
SHAPES = {
    "w0": (4, 4, 3, 3),
    "b0": (4,),
    "w1": (3, 4, 1, 1),
    "b1": (3,),
    "w2": (4, 4),
    "b2": (4,),
    "w3": (4, 3),
    "b3": (3,),
}


def network(path, body: str, *, outputs: str = "") -> ir.Model:
    """Weights are multiples of 1/64 and biases of 1/128: most sums of the first layers lie on few numbers."""
    rank = 2 if "Gemm" in body or "MatMul" in body else 4
    shape = "[batch,3]" if rank == 2 else "[batch,3,H,W]"
    proto = onnx.parser.parse_model(f"{HEADER} g (float[batch,4,8,8] x) => (float{shape} y{outputs}) {{ {body} }}")
    rng = np.random.default_rng(0)
    for name, usual in SHAPES.items():
        if name in body:
            size = (4, 1, 3, 3) if name == "w0" and "group" in body else usual
            array = rng.integers(-64, 65, size) / (128 if name.startswith("b") else 64)
            proto.graph.initializer.append(onnx.numpy_helper.from_array(array.astype(np.float32), name))
    for name, value in {"zero": 0.0, "six": 6.0}.items():
        if name in body:
            proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array(value, np.float32), name))
    onnx.save(proto, path)
    return load(path)


def quantize(model: ir.Model, plan: Plan, samples: torch.Tensor) -> QuantizedModel:
    """Scales that are each other's multiples: a sum of codes is half way between two codes of the output often."""
    seen = GraphModule(model, outputs=plan.activations)({"x": samples})
    activations = {}
    for name, spec in plan.activations.items():
        value = seen[name]
        step = max(float(value.max()), 0.0) - min(float(value.min()), 0.0)
        scale = np.float32(INPUT_SCALE * 2.0 ** np.ceil(np.log2(step / (spec.qmax - spec.qmin) / INPUT_SCALE)))
        zero_point = np.clip(np.rint(spec.qmin - min(float(value.min()), 0.0) / scale), spec.qmin, spec.qmax)
        activations[name] = QParams(np.asarray(scale), np.asarray(zero_point, np.int32), spec.qmin, spec.qmax)
    layers = {}
    for layer in layers_of(model):
        spec, axis = plan.layers[layer.name].spec, layer.channel_axis
        bias, values = layer.bias, layer.array
        scale = np.full(values.shape[axis], 2.0 ** (1 - spec.bits), np.float32)
        zero_point = np.full(scale.shape, spec.middle, np.int32)
        qparams = QParams(scale, zero_point, spec.qmin, spec.qmax, axis)
        codes = nearest_codes(values, qparams)
        layers[layer.name] = QuantizedLayer(codes, qparams, None if bias is None else array_of(bias))
    return QuantizedModel(layers, activations).with_updates([], plan)


def simulated(model, plan, quantized, samples, *, rules: TargetSpec, profile_samples: int = NUM) -> Simulated:
    return simulate(
        model,
        plan=plan,
        quantized=quantized,
        rules=rules,
        batches=cut(len(samples), 8),
        inputs=lambda batch: {"x": samples[batch.start : batch.stop]},
        profile_samples=profile_samples,
        device=CPU,
        progress=lambda _: None,
    )


def samples_on_ties() -> torch.Tensor:
    """Numbers of the input's grid, and half way between them."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(-60, 61, (NUM, 4, 8, 8), generator=generator).float() * np.float32(INPUT_SCALE) / 2


def deployed(model, quantized, samples, path, *, rules: TargetSpec) -> np.ndarray:
    write_qdq(model, quantized, path, rules=rules, metadata={})
    return run_model(path, [{"x": samples.numpy()}], threads=1)["y"]


def kernels_run(path, folder) -> set[str]:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return {node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node}


@pytest.mark.parametrize("bits", [(8, 8), (4, 8), (4, 4)], ids=["w8a8", "w4a8", "w4a4"])
@pytest.mark.parametrize("name", NETWORKS)
def test_gives_what_onnx_runtime_gives(tmp_path, name, bits):
    rules = TARGETS["ort"].spec
    model, samples = network(tmp_path / "float.onnx", NETWORKS[name]), samples_on_ties()
    plan = make_plan(model, rules, PrecisionConfig(weight_bits=bits[0], act_bits=bits[1], first_last_bits=None))
    quantized = quantize(model, plan, samples)
    path = tmp_path / "quantized.onnx"
    expected = deployed(model, quantized, samples, path, rules=rules)
    # All but the last Conv, whose output is float, have integer kernels: else this would compare floats.
    assert not {"Relu", "FusedConv", "Add", "Mul", "AveragePool", "MatMul", "Gemm"} & kernels_run(path, tmp_path)
    found = simulated(model, plan, quantized, samples, rules=rules).q_outputs["y"]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["residual", "depthwise", "global pool"])
def test_float_sums_of_the_same_numbers_fall_elsewhere(tmp_path, name):
    """What makes the kernels necessary: without them some of these ties fall to the other side."""
    model, samples = network(tmp_path / "float.onnx", NETWORKS[name]), samples_on_ties()
    plan = make_plan(model, TARGETS["ort"].spec, PrecisionConfig(weight_bits=8, act_bits=8, first_last_bits=None))
    quantized = quantize(model, plan, samples)
    exact, plain = (
        simulated(model, plan, quantized, samples, rules=rules).q_outputs["y"]
        for rules in (replace(TARGETS["ort"].spec, int32_bias=int32_bias) for int32_bias in (True, False))
    )
    assert np.abs(exact - plain).max() > 1e-3


def test_sum_too_large_for_float32_is_exact(tmp_path):
    model, samples = network(tmp_path / "float.onnx", NETWORKS["conv"]), samples_on_ties()
    plan = make_plan(model, TARGETS["ort"].spec, PrecisionConfig(weight_bits=8, act_bits=8, first_last_bits=None))
    quantized = quantize(model, plan, samples)
    # A bias beyond 2^24 steps of the accumulator, which float32 rounds.
    large = {
        name: replace(layer, bias=layer.bias + np.float32((1 << 25) * INPUT_SCALE / 128))
        for name, layer in quantized.layers.items()
        if name == "a"
    }
    wide = {name: replace(q, scale=q.scale * 2**16) if name == "r" else q for name, q in quantized.activations.items()}
    quantized = QuantizedModel({**quantized.layers, **large}, wide)
    expected = deployed(model, quantized, samples, tmp_path / "quantized.onnx", rules=TARGETS["ort"].spec)
    found = simulated(model, plan, quantized, samples, rules=TARGETS["ort"].spec).q_outputs["y"]
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-5)


def test_network_outputs_are_codes_where_the_target_quantizes_them(tmp_path):
    rules = replace(TARGETS["ort"].spec, quantize_outputs=True)
    model, samples = network(tmp_path / "float.onnx", NETWORKS["residual"]), samples_on_ties()
    plan = make_plan(model, rules, PrecisionConfig(weight_bits=8, act_bits=8, first_last_bits=None))
    quantized = quantize(model, plan, samples)
    expected = deployed(model, quantized, samples, tmp_path / "quantized.onnx", rules=rules)
    found = simulated(model, plan, quantized, samples, rules=rules).q_outputs["y"]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    assert len(np.unique(found)) <= 256


@pytest.mark.parametrize("output", ["c", "r"])
def test_what_leaves_the_network_is_float_though_others_read_it_as_codes(tmp_path, output):
    outputs = f", float[batch,4,H,W] {output}"
    body = "[a] c = Conv<pads=[1,1,1,1]>(x, w0, b0) r = Relu(c) s = Add(c, r) [z] y = Conv(s, w1, b1)"
    model, samples = network(tmp_path / "float.onnx", body, outputs=outputs), samples_on_ties()
    plan = make_plan(model, TARGETS["ort"].spec, PrecisionConfig(weight_bits=8, act_bits=8, first_last_bits=None))
    quantized = quantize(model, plan, samples)
    path = tmp_path / "quantized.onnx"
    write_qdq(model, quantized, path, rules=TARGETS["ort"].spec, metadata={})
    expected = run_model(path, [{"x": samples.numpy()}], threads=1)[output]
    found = simulated(model, plan, quantized, samples, rules=TARGETS["ort"].spec).q_outputs[output]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_what_leaves_the_network_behind_a_move_is_float_too(tmp_path):
    body = (
        "g = GlobalAveragePool(x) e = Flatten(g) [a] h = MatMul(e, w2) r = Relu(h) f = Flatten(r) [z] y = MatMul(f, w3)"
    )
    model = network(tmp_path / "float.onnx", body, outputs=", float[batch,4] f")
    samples, path = samples_on_ties(), tmp_path / "quantized.onnx"
    plan = make_plan(model, TARGETS["ort"].spec, PrecisionConfig(weight_bits=8, act_bits=8, first_last_bits=None))
    quantized = quantize(model, plan, samples)
    write_qdq(model, quantized, path, rules=TARGETS["ort"].spec, metadata={})
    expected = run_model(path, [{"x": samples.numpy()}], threads=1)["f"]
    found = simulated(model, plan, quantized, samples, rules=TARGETS["ort"].spec).q_outputs["f"]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_layers_are_compared_before_they_are_cut_off_and_rounded(tmp_path):
    """The profile tells of a layer's own output, which an integer kernel never shows."""
    model, samples = network(tmp_path / "float.onnx", NETWORKS["conv"]), samples_on_ties()
    plan = make_plan(model, TARGETS["ort"].spec, PrecisionConfig(weight_bits=8, act_bits=8, first_last_bits=None))
    quantized = quantize(model, plan, samples)
    exact, plain = (
        simulated(model, plan, quantized, samples, rules=replace(TARGETS["ort"].spec, int32_bias=int32_bias)).layers
        for int32_bias in (True, False)
    )
    assert list(exact) == ["a", "z"]
    for name, error in exact.items():
        assert error.q_q == pytest.approx(plain[name].q_q, rel=1e-3)
        assert error.noise == pytest.approx(plain[name].noise, rel=0.2)


def test_only_what_reads_and_gives_codes_is_a_kernel(tmp_path):
    model, samples = network(tmp_path / "float.onnx", NETWORKS["residual"]), samples_on_ties()
    plan = make_plan(model, TARGETS["ort"].spec, PrecisionConfig(weight_bits=8, act_bits=8, first_last_bits=None))
    quantized = quantize(model, plan, samples)
    module = GraphModule(model)

    def kernels_of(quantized: QuantizedModel):
        return integer_kernels(
            model, module=module, plan=plan, quantized=quantized, quantize_outputs=False, device=CPU
        ).functions

    nodes = {node.op_type: node_name(node) for node in model.graph}
    assert set(kernels_of(quantized)) == {"a", nodes["Add"], nodes["Relu"]}
    wide = {name: replace(q, qmax=65535) for name, q in quantized.activations.items()}
    at_16_bits = QuantizedModel(quantized.layers, wide)
    assert not kernels_of(at_16_bits)
