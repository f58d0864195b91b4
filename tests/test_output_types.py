"""Outputs, and inputs, that are no float32: they keep their types, and have no part in gradients where they cannot."""

import json

import numpy as np
import onnx
import pytest
from networks import network, saved

from dipo.export.runtime import run_model
from dipo.launch import main

NETWORKS = {
    "float16": (
        """(float16[N,3,8,8] image) => (float16[N,4,6,6] half) {
          [up] f = Cast<to=1>(image)
          [conv] c = Conv(f, w1)
          [relu] r = Relu(c)
          [down] half = Cast<to=10>(r)
        }""",
        {"w1": (4, 3, 3, 3)},
    ),
    "beside floats": (
        """(float[N,3,8,8] image) => (float[N,4,4,4] score, bool[N,4,6,6] mask, int64[N,4,4,4] index) {
          [conv] c = Conv(image, w1)
          [relu] r = Relu(c)
          [is] mask = Cast<to=9>(r)
          [head] score = Conv(r, w2)
          [whole] index = Cast<to=7>(score)
        }""",
        {"w1": (4, 3, 3, 3), "w2": (4, 4, 3, 3)},
    ),
    "integers alone": (
        """(float[N,3,8,8] image) => (int32[N,4,4,4] index) {
          [conv] c = Conv(image, w1)
          [relu] r = Relu(c)
          [head] score = Conv(r, w2)
          [scaled] large = Mul(score, nine)
          [whole] index = Cast<to=6>(large)
        }""",
        {"w1": (4, 3, 3, 3), "w2": (4, 4, 3, 3), "nine": np.float32(9)},
    ),
}
STEPS = {
    "none": ("+algo=none",),
    "bias_correction": ("+algo=bias_correction",),
    "brecq": ("+algo=brecq", "algo.loss=fisher"),
    "qdrop": ("+algo=qdrop", "precision=w4a4"),
    "full": ("+algo=full", "algo.tune_iters=4"),
    "parallel": ("+algo=qdrop", "cluster.schedule=parallel"),
    "analyze": ("+algo=analyze",),
}


@pytest.fixture(params=NETWORKS)
def odd_ends(request, tmp_path):
    """A network's file, its samples and the names of its outputs with their types."""
    text, weights = NETWORKS[request.param]
    model = network(text, **weights)
    dtype = onnx.helper.tensor_dtype_to_np_dtype(model.graph.input[0].type.tensor_type.elem_type)
    samples = np.random.default_rng(0).normal(size=(24, 3, 8, 8)).astype(dtype)
    np.savez(tmp_path / "samples.npz", image=samples)
    types = {value.name: value.type.tensor_type.elem_type for value in model.graph.output}
    return saved(model, tmp_path), samples, types


def run(odd_ends, folder, *how) -> dict:
    model, _, types = odd_ends
    job = [f"model.path={model}", f"data.path={model.with_name('samples.npz')}", "cluster=inline"]
    assert main([*job, "cluster.compile=false", "algo.iters=4", f"run.dir={folder}", *how]) == 0
    written = onnx.load(folder / "quantized.onnx").graph.output
    assert {value.name: value.type.tensor_type.elem_type for value in written} == types
    return json.loads((folder / "report.json").read_text())


@pytest.mark.parametrize("how", STEPS.values(), ids=STEPS)
def test_every_step_takes_them(odd_ends, tmp_path, how):
    report = run(odd_ends, tmp_path / "run", *how)
    assert report["error"]["deployed_vs_simulated"]["cosine"] > 0.999
    assert report["error"]["deployed_vs_fp32"]["cosine"] > 0.9


@pytest.mark.parametrize("platform", ["trt", "snpe", "rk", "qnn", "imx", "stpu", "atlas", "openvino", "magicmind"])
def test_every_target_takes_them(odd_ends, tmp_path, platform):
    report = run(odd_ends, tmp_path / "run", f"platform={platform}")
    assert report["error"]["deployed_vs_simulated"]["cosine"] > 0.999


def test_what_is_written_computes_them(odd_ends, tmp_path):
    model, samples, types = odd_ends
    run(odd_ends, tmp_path / "run")
    expected = run_model(model, [{"image": samples}], threads=1)
    found = run_model(tmp_path / "run" / "quantized.onnx", [{"image": samples}], threads=1)
    for name, kind in types.items():
        own = onnx.helper.tensor_dtype_to_np_dtype(kind)
        assert found[name].dtype == (np.float32 if own.kind == "f" else own), "floats are handed on as float32"
        assert found[name].shape == expected[name].shape
        if found[name].dtype.kind in "iub":
            assert (found[name] == expected[name]).mean() > 0.9


def test_a_dry_run_takes_them(odd_ends, tmp_path, capsys):
    model, *_ = odd_ends
    job = [f"model.path={model}", f"data.path={model.with_name('samples.npz')}", "cluster=inline", "dry_run=true"]
    assert main([*job, "--verbose", f"run.dir={tmp_path / 'run'}"]) == 0
    assert "layer conv: 8-bit weights" in capsys.readouterr().out
