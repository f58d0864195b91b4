"""Networks of float16, bfloat16 and double: worked in float32, written with the inputs and outputs of the file."""

import json

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from float_types import NETWORKS, in_type
from networks import images, network, saved, tiny_cnn

import dipo
from dipo.export.runtime import run_model
from dipo.export.targets import TARGETS
from dipo.graph.load import load
from dipo.graph.torch_module import GraphModule
from dipo.launch import main

TYPES = {"float16": ir.DataType.FLOAT16, "bfloat16": ir.DataType.BFLOAT16, "double": ir.DataType.DOUBLE}
OPTIONS = {"cluster.compile": False}


def types_of(model: onnx.ModelProto) -> dict[str, int]:
    return {value.name: value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)}


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """A function that runs a network by its name and returns its folder and report."""
    base = tmp_path_factory.mktemp("types")
    np.savez(base / "samples.npz", image=images(24))

    def run(model: onnx.ModelProto, name: str, *how: str):
        path, folder = saved(model, base, f"{name}.onnx"), base / f"{name}-run"
        given = [f"model.path={path}", f"data.path={base / 'samples.npz'}", "cluster=inline", "cluster.compile=false"]
        assert main([*given, "algo.iters=4", f"run.dir={folder}", *how]) == 0
        return folder, json.loads((folder / "report.json").read_text())

    return run


@pytest.mark.parametrize("name", NETWORKS)
def test_every_kind_is_quantized_as_in_float32(job, name):
    model = NETWORKS[name]()
    folder, report = job(model, name.replace(" ", "-").replace(",", ""))
    written = onnx.load(folder / "quantized.onnx")
    assert types_of(written) == types_of(model)
    assert report["error"]["deployed_vs_simulated"]["sqnr_db"] > 90
    assert report["error"]["simulated_vs_fp32"]["sqnr_db"] > 30
    assert report["parity"] < 1e-5
    assert report["layers"], "layers are quantized"
    stored = {tensor.data_type for tensor in written.graph.initializer}
    assert not stored & set(TYPES.values()), "what is computed inside is float32"


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(
    "how", [("+algo=qdrop",), ("+algo=brecq", "algo.loss=fisher"), ("+algo=dfq", "data.path=null")]
)
def test_steps_take_them(job, dtype, how):
    """With BatchNormalization, from which steps without samples know the network's values."""
    text = """(float[N,3,8,8] image) => (float[N,5] scores) {
      [stem] a = Conv(image, w1)
      [norm] b = BatchNormalization(a, scale, shift, mean, variance)
      [relu] c = Relu(b)
      [depth] d = Conv(c, w2)
      [norm2] e = BatchNormalization(d, scale, shift, mean, variance)
      [relu2] f = Relu(e)
      [pool] g = GlobalAveragePool(f)
      [flat] h = Flatten(g)
      [head] scores = Gemm<transB=1>(h, w3, b3)
    }"""
    ones, zeros = np.ones(4, np.float32), np.zeros(4, np.float32)
    model = network(
        text, w1=(4, 3, 3, 3), w2=(4, 4, 3, 3), w3=(5, 4), b3=(5,), scale=ones, shift=zeros, mean=zeros, variance=ones
    )
    folder, report = job(in_type(model, TYPES[dtype]), f"{dtype}-{how[0][6:]}", *how)
    assert report["error"]["deployed_vs_simulated"]["sqnr_db"] > 90
    assert types_of(onnx.load(folder / "quantized.onnx")) == {"image": TYPES[dtype], "scores": TYPES[dtype]}


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_takes_them(job, target):
    """Its files name the float32 behind the input, which is what has a grid."""
    folder, report = job(NETWORKS["float16"](), f"float16-{target}", f"platform={target}", "+algo=none")
    assert report["error"]["deployed_vs_simulated"]["sqnr_db"] > 90
    for file in folder.glob("*.onnx"):
        assert types_of(onnx.load(file)) == {"image": TYPES["float16"], "scores": TYPES["float16"]}
    assert any(b"image_float32" in (folder / file).read_bytes() for file in report["files"] if file != "float")


def test_a_file_in_its_own_types_is_compared_and_said(job):
    _, report = job(NETWORKS["float16"](), "said")
    (note,) = (note["what"] for note in report["notes"] if note["name"] == "said.onnx")
    assert note.startswith("holds float16 and is worked in float32")
    assert "of the largest from those in float32" in note
    assert "more than rounding" not in note
    _, report = job(NETWORKS["bfloat16"](), "no-kernels")
    (note,) = (note["what"] for note in report["notes"] if note["name"] == "no-kernels.onnx")
    assert note.endswith("ONNX Runtime has no kernels to compare it in bfloat16")


def test_numbers_that_need_the_files_type_are_said(job):
    """What is added and taken off again is lost in float32."""
    text = """(float[N,3,8,8] image) => (float[N,64] scores) {
      [flat] a = Flatten(image)
      [fc] b = MatMul(a, w)
      [up] c = Add(b, large)
      [down] d = Sub(c, large)
      [head] scores = MatMul(d, w2)
    }"""
    model = network(text, w=(192, 64), w2=(64, 64), large=np.float32(1e6))
    _, report = job(in_type(model, TYPES["double"]), "cancels", "+algo=none")
    (note,) = (note["what"] for note in report["notes"] if note["name"] == "cancels.onnx")
    assert "more than rounding explains: its numbers overflow or cancel in one of the two" in note


@pytest.mark.parametrize("given", [np.float16, np.float32, np.float64, torch.bfloat16, torch.float16])
def test_samples_come_in_any_type_of_floats(given):
    """They are rounded to the file's type, as the deployed network gets them."""
    samples = torch.tensor(images(8)).to(given) if isinstance(given, torch.dtype) else images(8).astype(given)
    result = dipo.quantize(NETWORKS["float16"](), samples, algo="none", options=OPTIONS)
    assert result.report.error["deployed_vs_simulated"].sqnr_db > 90


def test_masks_keep_their_numbers(tmp_path):
    """The largest number of double is no infinity in float32, times zero no NaN, and the smallest no zero."""
    text = """(float[N,4] x) => (float[N,4] y) {
      a = Mul(x, lowest)
      b = MatMul(x, w)
      c = Abs(b)
      d = Add(c, tiny)
      e = Log(d)
      f = Add(e, a)
      y = Softmax(f)
    }"""
    lowest = np.array([0, 0, 0, -1.7e308])
    zeros = np.zeros((4, 4), np.float32)
    model = in_type(network(text, w=zeros, lowest=lowest, tiny=np.full(4, 1e-300)), TYPES["double"])
    loaded = load(saved(model, tmp_path))
    x = np.array([[1, 1, 1, 0], [1, 1, 1, 1]], np.float32)
    made = GraphModule(loaded)({"x": torch.tensor(x)})["y"].numpy()
    np.testing.assert_allclose(made, [[0.25] * 4, [1 / 3, 1 / 3, 1 / 3, 0]], rtol=1e-5)


def test_a_quantized_network_of_float16_is_refused_as_one(job, tmp_path, capsys):
    text = """(float16[N,4] x) => (float16[N,4] y) {
      [read] w = DequantizeLinear(codes, scale)
      [fc] y = MatMul(x, w)
    }"""
    model = network(text, opset=19, codes=np.ones((4, 4), np.int8), scale=np.float16(0.1))
    path = saved(model, tmp_path)
    np.save(tmp_path / "x.npy", np.ones((4, 4), np.float16))
    assert main([f"model.path={path}", f"data.path={tmp_path / 'x.npy'}", "cluster=inline"]) == 2
    assert "quantized already" in capsys.readouterr().err


def test_what_is_written_runs_on_the_users_samples(job):
    """In the types of the file, in ONNX Runtime as a user calls it."""
    import onnxruntime

    folder, _ = job(NETWORKS["float16"](), "as-used")
    samples = images(4).astype(np.float16)
    session = onnxruntime.InferenceSession(folder / "quantized.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"image": samples})
    assert found.dtype == np.float16
    expected = run_model(saved(tiny_cnn(), folder, "float.onnx"), [{"image": samples.astype(np.float32)}], threads=1)
    np.testing.assert_allclose(found, expected["scores"], atol=0.05)
