"""Jobs with a scale for each block of a weight."""

import json

import numpy as np
import onnx
import pytest
from networks import network, saved
from safetensors.numpy import load_file

from dipo.cli.export import main as export
from dipo.launch import main

BLOCKS = ("precision=w4a8", "precision.weight_block=4")


@pytest.fixture
def mlp(tmp_path):
    """A network of matrix products alone, and samples."""
    model = network(
        """(float[N,136] x) => (float[N,64] y) {
          [first] a = Gemm<transB=1>(x, w1, b1)
          [relu1] b = Relu(a)
          [second] c = MatMul(b, w2)
          [relu2] d = Relu(c)
          [third] e = Gemm(d, w3, b3)
          [relu3] f = Relu(e)
          [last] y = MatMul(f, w4)
        }""",
        w1=(160, 136), b1=(160,), w2=(160, 136), w3=(136, 120), b3=(120,), w4=(120, 64),
    )  # fmt: skip
    data = tmp_path / "rows.npz"
    rng = np.random.default_rng(5)
    np.savez(data, calib_x=rng.normal(size=(64, 136)).astype("f4"), test_x=rng.normal(size=(32, 136)).astype("f4"))
    path = saved(model, tmp_path, "mlp.onnx")
    return [f"model.path={path}", f"data.path={data}", "cluster.kind=inline", "cluster.compile=false"]


def report(folder):
    return json.loads((folder / "report.json").read_text())


def blocks_in(path):
    nodes = [node for node in onnx.load(path).graph.node if node.op_type == "DequantizeLinear"]
    return [a.i for node in nodes for a in node.attribute if a.name == "block_size"]


@pytest.mark.parametrize(
    "algo",
    [
        ("algo=none",),
        ("algo=adaround",),
        ("algo=brecq", "algo.train_scale=true"),
        ("algo=qdrop", "algo.rounding=straight_through", "algo.train_scale=true"),
        ("algo.steps=[equalize,sparsify,update_bn,bias_correction,brecq,tune]", "algo.sparsity_pattern=2:4"),
    ],
    ids=lambda algo: algo[0],
)
def test_the_file_computes_what_was_simulated(tiny_job, tmp_path, algo):
    run = tmp_path / "run"
    assert main(tiny_job.arguments(f"run.dir={run}", *BLOCKS, *algo)) == 0
    found = report(run)["error"]
    assert found["deployed_vs_simulated"]["cosine"] > 0.9999
    assert found["deployed_vs_fp32"]["sqnr_db"] > 5
    assert blocks_in(run / "quantized.onnx") == [4, 4, 4], "the first layer has 3 inputs"


def test_blocks_are_nearer_to_the_float_network_than_channels(mlp, tmp_path):
    sqnr = {}
    for block in ("null", "16", "8"):
        run = tmp_path / block
        more = ["precision=w4a8", "precision.first_last_bits=null", "calib.weights=minmax", "algo=none"]
        assert main([*mlp, *more, f"precision.weight_block={block}", f"run.dir={run}"]) == 0
        error = report(run)["error"]
        sqnr[block] = error["deployed_vs_fp32"]["sqnr_db"]
        assert error["deployed_vs_simulated"]["cosine"] > 0.9999
    assert sqnr["null"] < sqnr["16"] < sqnr["8"]


def test_scales_of_blocks_are_trained(mlp, tmp_path):
    scales = []
    for name, train in {"a": "false", "b": "true"}.items():
        run = tmp_path / name
        more = [
            *BLOCKS,
            "algo=adaround",
            "algo.iters=10",
            "algo.reference_iters=10",
            f"algo.train_scale={train}",
            f"run.dir={run}",
        ]
        assert main([*mlp, *more]) == 0
        scales.append(load_file(run / "network.safetensors")["second/scale"])
        assert report(run)["error"]["deployed_vs_simulated"]["cosine"] > 0.9999
    assert scales[0].shape == scales[1].shape == (40, 136)
    assert np.mean(scales[0] != scales[1]) > 0.9
    assert np.median(np.abs(scales[1] / scales[0] - 1)) < 0.05


def test_a_run_goes_on_to_the_same_bits(tiny_job, tmp_path):
    run = tmp_path / "run"
    how = [*BLOCKS, "algo=brecq", "algo.iters=6", "algo.train_scale=true"]
    assert main(tiny_job.arguments(f"run.dir={run}", *how)) == 0
    before = (run / "quantized.onnx").read_bytes()
    for name in ("report.json", "quantized.onnx"):
        (run / name).unlink()
    sorted((run / "units").iterdir())[-1].unlink()
    assert main([f"run.resume={run}"]) == 0
    assert (run / "quantized.onnx").read_bytes() == before


def test_other_targets_get_what_they_take_now_and_later(tiny_job, tmp_path):
    run = tmp_path / "run"
    names = ["openvino", "trt", "qnn", "rk"]
    assert main(tiny_job.arguments(f"run.dir={run}", *BLOCKS, f"export.also=[{','.join(names)}]")) == 0
    before = {name: (run / name / "quantized.onnx").read_bytes() for name in names}
    assert {name: bool(blocks_in(run / name / "quantized.onnx")) for name in names} == {
        "openvino": True, "trt": False, "qnn": False, "rk": False,
    }  # fmt: skip
    rows = {row["name"]: row for row in report(run)["targets"]}
    assert any("a scale for all of a channel, not for 4 inputs" in line for line in rows["qnn"]["differences"])
    assert rows["qnn"]["weights"]
    assert export([f"run={run}", f"platform=[{','.join(names)}]"]) == 0
    assert {name: (run / name / "quantized.onnx").read_bytes() for name in names} == before


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["platform=rk", "precision=w8a8"], "precision.weight_block: platform rk has no scales for blocks of a weight"),
        (["platform=qnn"], "precision.weight_block: platform qnn has no scales for blocks of a weight"),
        (["precision.weight_per_channel=false"], "blocks are parts of channels, leave out weight_per_channel=false"),
        (["precision.weight_block=1"], "precision.weight_block"),
        (["platform=trt", "platform.version=8.6.1", "precision.first_last_bits=null"], "layer 'head' has a scale"),
    ],
)
def test_what_cannot_be_is_refused_before_the_run(tiny_job, tmp_path, capsys, more, sentence):
    run = tmp_path / "run"
    code = main(tiny_job.arguments(f"run.dir={run}", *BLOCKS, *more))
    assert code == 2 and sentence in capsys.readouterr().err
    assert not (run / "quantized.onnx").exists()


def test_integer_operators_leave_blocks_in_float(tiny_job, tmp_path):
    run = tmp_path / "run"
    assert main(tiny_job.arguments(f"run.dir={run}", *BLOCKS, "export.format=qop")) == 0
    operators = [node.op_type for node in onnx.load(run / "quantized.onnx").graph.node]
    assert operators.count("Conv") == 2 and operators.count("QLinearConv") == operators.count("Gemm") == 1
    assert report(run)["error"]["deployed_vs_simulated"]["cosine"] > 0.9999
