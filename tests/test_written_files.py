"""What every written file keeps of the user's file: its inputs and outputs, and weights that are stored once."""

import json

import numpy as np
import onnx
import pytest
from networks import network, saved

import dipo
from dipo.cli.export import main as export
from dipo.cli.verify import main as verify
from dipo.launch import main

OTHERS = "[snpe,qnn,rv,rk,atlas,ti,imx,magicmind,stpu,openvino,trt]"


def pyramid(batch, *, side=8):
    """A pyramid of two levels, whose Reshapes and Resize have the batch in their constants."""
    rows = batch if isinstance(batch, int) else 0
    sizes = (
        {"sizes": np.array([batch, 4, side, side], np.int64)} if rows else {"scales": np.float32([1, 1, 2, 2])}
    )  # fmt: skip
    read = "d, , , sizes" if rows else "d, , scales"
    return network(
        f"""(float[{batch},3,{side},{side}] image) => (float[{batch},5] scores, float[{batch},4,{side * side}] flat) {{
          [stem] a = Conv<pads=[1,1,1,1]>(image, w1, b1)
          [relu] b = Relu(a)
          [down] c = Conv<strides=[2,2], pads=[1,1,1,1]>(b, w2, b2)
          [act] d = Relu(c)
          [up] e = Resize<mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor">({read})
          [join] f = Add(b, e)
          [rows] flat = Reshape(f, flat_shape)
          [pool] g = GlobalAveragePool(f)
          [squeeze] h = Reshape(g, row_shape)
          [head] scores = Gemm<transB=1>(h, w3, b3)
        }}""",
        w1=(4, 3, 3, 3), b1=(4,), w2=(4, 4, 3, 3), b2=(4,), w3=(5, 4), b3=(5,), **sizes,
        flat_shape=np.array([rows, 4, side * side], np.int64), row_shape=np.array([rows, -1], np.int64),
    )  # fmt: skip


def interface(path):
    """Names, types and dimensions of a file's inputs and outputs."""
    graph = onnx.load(path, load_external_data=False).graph
    return [
        (value.name, value.type.tensor_type.elem_type, [dim.dim_param or dim.dim_value for dim in dims])
        for value in (*graph.input, *graph.output)
        for dims in [value.type.tensor_type.shape.dim]
    ]


@pytest.fixture
def samples(tmp_path):
    path = tmp_path / "pyramid.npy"
    np.save(path, np.random.default_rng(0).normal(size=(7, 3, 8, 8)).astype(np.float32))
    return path


@pytest.mark.parametrize("batch", [1, 2, "N"])
@pytest.mark.parametrize("form", ["qdq", "qop"])
def test_every_file_has_the_inputs_of_the_users(tiny_job, tmp_path, samples, batch, form):
    model = saved(pyramid(batch), tmp_path, "pyramid.onnx")
    run = tmp_path / "run"
    more = [f"model.path={model}", f"data.path={samples}", f"export.format={form}", f"export.also={OTHERS}"]
    assert main(tiny_job.arguments(f"run.dir={run}", *more)) == 0
    assert export([f"run={run}", "platform=ort"]) == 0
    files = sorted(run.rglob("*.onnx"))
    assert len(files) == 2 + 2 * 11 - 1, "quantized.onnx of each, deploy.onnx but of ort and openvino"
    for file in files:
        assert interface(file) == interface(model), file
        onnx.checker.check_model(str(file), full_check=True)
    report = json.loads((run / "report.json").read_text())
    assert report["error"]["deployed_vs_simulated"]["sqnr_db"] > 30
    assert report["error"]["deployed_vs_fp32"]["sqnr_db"] > 25


def test_a_fixed_batch_has_its_constants_again(tiny_job, tmp_path, samples):
    model = saved(pyramid(2), tmp_path, "pyramid.onnx")
    run = tmp_path / "run"
    more = [f"model.path={model}", f"data.path={samples}", "platform=rk", "algo=bias_correction"]
    assert main(tiny_job.arguments(f"run.dir={run}", *more)) == 0
    for name in ("quantized.onnx", "deploy.onnx"):
        graph = onnx.load(run / name).graph
        constants = {tensor.name: onnx.numpy_helper.to_array(tensor).tolist() for tensor in graph.initializer}
        read = {node.name: [constants.get(input_) for input_ in node.input] for node in graph.node}
        assert read["rows"][1] == [2, 4, 64] and read["squeeze"][1] == [2, -1]
        assert read["up"][1:] == [None, None, [2, 4, 8, 8]]
        known = [dim for value in graph.value_info for dim in value.type.tensor_type.shape.dim]
        assert known and not any(dim.dim_param for dim in known)
        assert not constants.keys() - {name for node in graph.node for name in node.input}, "read by nothing"


def test_only_the_batch_is_fixed(tiny_job, tmp_path, samples):
    text = """(float[1,3,"rows","columns"] image) => (float[1,4,"rows","columns"] y) {
      [conv] a = Conv<pads=[1,1,1,1]>(image, w, b)
      [relu] y = Relu(a)
    }"""
    model = saved(network(text.replace('"', ""), w=(4, 3, 3, 3), b=(4,)), tmp_path, "open.onnx")
    run = tmp_path / "run"
    more = [f"model.path={model}", f"data.path={samples}", "export.also=[qnn]"]
    assert main(tiny_job.arguments(f"run.dir={run}", *more)) == 0
    for file in run.rglob("*.onnx"):
        assert interface(file) == interface(model)
    assert interface(model)[0][2] == [1, 3, "rows", "columns"]


def test_the_python_interface_writes_the_same(tmp_path, samples):
    model = saved(pyramid(1), tmp_path, "pyramid.onnx")
    with dipo.load(model, samples, target="qnn") as net:
        files = dipo.export_to(dipo.calibrate(net), tmp_path / "mine", target="rk")
    with_onnx = [file for file in files if file.suffix == ".onnx"]
    assert len(with_onnx) == 2
    for file in with_onnx:
        assert interface(file) == interface(model)
    result = dipo.quantize(model, samples)
    assert interface(result.save(tmp_path / "saved") / "quantized.onnx") == interface(model)
    assert result.compare()["scores"].sqnr_db > 25


LEVELS = """(float[N,3,8,8] image) => (float[N,3,8,8] large, float[N,3,4,4] small) {
  [one] a = Conv<pads=[1,1,1,1]>(image, w, b)
  [act1] large = Relu(a)
  [pool] c = MaxPool<kernel_shape=[2,2], strides=[2,2]>(image)
  [two] d = Conv<pads=[1,1,1,1]>(c, w, b)
  [act2] small = Relu(d)
}"""


@pytest.mark.parametrize(("algo", "copies"), [("none", 1), ("bias_correction", 1), ("adaround", 2)])
def test_a_head_of_several_levels_is_stored_once_unless_its_levels_are_trained(
    tiny_job, tmp_path, samples, capsys, algo, copies
):
    model = saved(network(LEVELS, w=(3, 3, 3, 3), b=(3,)), tmp_path, "levels.onnx")
    run = tmp_path / "run"
    more = [f"model.path={model}", f"data.path={samples}", f"algo={algo}", "algo.iters=30", "algo.guard=false"]
    assert main(tiny_job.arguments(f"run.dir={run}", *more, "platform=qnn", "export.also=[rk]")) == 0
    for file in run.rglob("*.onnx"):
        weights = [tensor for tensor in onnx.load(file).graph.initializer if list(tensor.dims) == [3, 3, 3, 3]]
        assert len(weights) == copies
    said = "2 layers share this weight in the model's file, and it is stored 2 times"
    report = json.loads((run / "report.json").read_text())
    assert [note["name"] for note in report["notes"] if said in note["what"]] == ["w"] * (copies - 1)
    assert sum(said in note for note in report["targets"][0]["notes"]) == copies - 1
    assert report["error"]["deployed_vs_simulated"]["sqnr_db"] > 30
    assert verify([f"run={run}"]) == 0


def test_a_token_that_is_joined_to_a_fixed_batch(tiny_job, tmp_path, samples):
    """What stands for every sample in the work has one row in the file."""
    text = """(float[1,3,8,8] image) => (float[1,5] y) {
      [patch] a = Conv<strides=[4,4]>(image, w, b)
      [rows] c = Reshape(a, row_shape)
      [turn] d = Transpose<perm=[0,2,1]>(c)
      [join] e = Concat<axis=1>(token, d)
      [mean] i = ReduceMean<axes=[1], keepdims=0>(e)
      [head] y = Gemm(i, v, u)
    }"""
    row_shape = np.array([1, 8, 4], np.int64)
    weights = {"w": (8, 3, 4, 4), "b": (8,), "token": (1, 1, 8), "v": (8, 5), "u": (5,)}
    model = saved(network(text, row_shape=row_shape, **weights), tmp_path, "token.onnx")
    run = tmp_path / "run"
    more = [f"model.path={model}", f"data.path={samples}", "platform=rk", "algo=bias_correction", "export.also=[qnn]"]
    assert main(tiny_job.arguments(f"run.dir={run}", *more)) == 0
    for file in run.rglob("*.onnx"):
        graph = onnx.load(file).graph
        assert interface(file) == interface(model)
        onnx.checker.check_model(str(file), full_check=True)
        constants = {tensor.name: onnx.numpy_helper.to_array(tensor).tolist() for tensor in graph.initializer}
        assert constants["row_shape"] == [1, 8, 4]
        assert np.shape(constants["token"]) == (1, 1, 8)
        assert not any(dim.dim_param for value in graph.value_info for dim in value.type.tensor_type.shape.dim)
    report = json.loads((run / "report.json").read_text())
    assert report["error"]["deployed_vs_simulated"]["sqnr_db"] > 30
