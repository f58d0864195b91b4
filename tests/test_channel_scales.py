"""Weights whose channels lie on other axes than a convolution's: transposed convolutions, and stacks of matrices."""

import json

import numpy as np
import onnx
import pytest
from networks import network, saved

from dipo.launch import main

UP = """(float[N,6,5,5] x) => (float[N,4,20,20] y) {
  [up] a = ConvTranspose<strides=[2,2], pads=[1,1,1,1], output_padding=[1,1]>(x, w1, b1)
  [act] b = Relu(a)
  [each] c = ConvTranspose<group=8, strides=[2,2], pads=[1,1,1,1]>(b, w2)
  [groups] y = ConvTranspose<group=2>(c, w3, b3)
}"""


@pytest.fixture
def upsampler(tmp_path):
    """A model of three transposed convolutions, whose channels differ in size, and its samples."""
    rng = np.random.default_rng(0)
    spread = np.exp(rng.normal(size=8) * 2).astype(np.float32)
    model = network(UP, w1=(6, 8, 3, 3), b1=(8,), w2=(8, 1, 4, 4), w3=(8, 2, 1, 1), b3=(4,))
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == "w2")
    array = onnx.numpy_helper.to_array(weight) * spread[:, None, None, None]
    weight.CopyFrom(onnx.numpy_helper.from_array(array, "w2"))
    np.save(tmp_path / "x.npy", rng.normal(size=(16, 6, 5, 5)).astype(np.float32))
    return [f"model.path={saved(model, tmp_path, 'up.onnx')}", f"data.path={tmp_path / 'x.npy'}"], array


def weights_of(path):
    """The dequantized numbers, the scale's shape and the axis of each layer's weight, by name of the node."""
    graph = onnx.load(path).graph
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    made = {node.output[0]: node for node in graph.node if node.op_type == "DequantizeLinear"}
    found = {}
    for node in graph.node:
        if node.op_type in {"ConvTranspose", "MatMul"} and node.input[1] in made:
            codes, scale, zero = (constants.get(name) for name in made[node.input[1]].input)
            shape = [-1 if scale.ndim and each == _axis(made[node.input[1]]) else 1 for each in range(codes.ndim)]
            numbers = (codes.astype(np.int32) - zero.reshape(shape)) * scale.reshape(shape)
            found[node.name] = numbers, scale.shape, _axis(made[node.input[1]])
    return found


def _axis(node):
    return next((each.i for each in node.attribute), None)


def least_db(wanted, numbers):
    error = wanted - numbers
    return min(10 * np.log10((w**2).sum() / (e**2).sum()) for w, e in zip(wanted, error, strict=True))


@pytest.mark.parametrize("platform", ["ort", "trt", "openvino", "magicmind", "imx"])
def test_each_channel_of_a_depthwise_transposed_convolution_has_a_scale(tiny_job, tmp_path, upsampler, platform):
    words, array = upsampler
    more = [*words, f"platform={platform}", "calib=minmax"]
    assert main(tiny_job.arguments(f"run.dir={tmp_path / 'run'}", *more)) == 0
    found = weights_of(tmp_path / "run" / "quantized.onnx")
    assert {name: scales for name, (_, *scales) in found.items()} == {
        "up": [(8,), 1],
        "each": [(8,), 0],
        "groups": [(2,), 1],
    }
    assert least_db(array, found["each"][0]) > (25 if platform == "imx" else 35), "powers of two lose up to 6 dB"
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["error"]["deployed_vs_simulated"]["sqnr_db"] > 40


def test_qnn_has_one_scale_for_transposed_groups(tiny_job, tmp_path, upsampler):
    words, _ = upsampler
    assert main(tiny_job.arguments(f"run.dir={tmp_path / 'run'}", *words, "platform=qnn", "export.also=[snpe]")) == 0
    found = weights_of(tmp_path / "run" / "quantized.onnx")
    assert {name: shape for name, (_, shape, _) in found.items()} == {"up": (8,), "each": (), "groups": ()}
    encodings = json.loads((tmp_path / "run" / "qnn_encodings.json").read_text())["param_encodings"]
    named = {entry["name"]: len(entry["scale"]) for entry in encodings}
    assert {name: named[name] for name in ("w1", "w2", "w3")} == {"w1": 8, "w2": 1, "w3": 1}


@pytest.mark.parametrize(
    ("algo", "form"),
    [("bias_correction", "qop"), ("update_bn", "qdq"), ("adaround", "qop"), ("brecq", "qdq"), ("qdrop", "qop")],
)
def test_every_step_takes_scales_on_another_axis(tiny_job, tmp_path, upsampler, algo, form):
    words, array = upsampler
    more = [*words, f"algo={algo}", f"export.format={form}", "algo.iters=20", "export.also=[trt,snpe,rk]"]
    assert main(tiny_job.arguments(f"run.dir={tmp_path / 'run'}", *more)) == 0
    numbers, shape, axis = weights_of(tmp_path / "run" / "quantized.onnx")["each"]
    assert (shape, axis) == ((8,), 0)
    assert least_db(array, numbers) > 30
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["error"]["deployed_vs_simulated"]["sqnr_db"] > 40


STACKS = {
    "batched": ("N,4,5,6", (4, 6, 7), False),
    "heads": ("N,4,5,6", (1, 4, 6, 7), False),
    "one": ("N,5,6", (1, 6, 7), True),
}
"""The shape of the data, that of the weight, and whether it has a scale for each column all the same."""


@pytest.mark.parametrize("kind", STACKS)
@pytest.mark.parametrize(
    ("platform", "form"),
    [("ort", "qdq"), ("ort", "qop"), ("trt", "qdq"), ("openvino", "qdq"), ("qnn", "qop"), ("snpe", "qdq")],
)
def test_a_stack_of_matrices_has_the_scales_that_the_runtime_takes(tiny_job, tmp_path, kind, platform, form):
    data, shape, by_column = STACKS[kind]
    made = data.replace("6", "3")
    model = network(
        f"(float[{data}] x) => (float[{made}] y) {{ [one] a = MatMul(x, w) b = Relu(a) [two] y = MatMul(b, v) }}",
        w=shape,
        v=(7, 3),
    )
    sizes = [int(size) for size in data.split(",")[1:]]
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(20, *sizes)).astype(np.float32))
    more = [f"model.path={saved(model, tmp_path)}", f"data.path={tmp_path / 'x.npy'}", f"platform={platform}"]
    assert main(tiny_job.arguments(f"run.dir={tmp_path / 'run'}", *more, f"export.format={form}")) == 0
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["error"]["deployed_vs_simulated"]["sqnr_db"] > 40
    assert report["error"]["deployed_vs_fp32"]["sqnr_db"] > 30
    if form == "qdq" and platform == "ort":
        found = {name: shape for name, (_, shape, _) in weights_of(tmp_path / "run" / "quantized.onnx").items()}
        assert found == {"one": (7,) if by_column else (), "two": (3,)}
