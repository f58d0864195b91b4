"""What a runtime refuses is said before the work, in one sentence."""

import dataclasses
import logging

import numpy as np
import pytest
from networks import network, saved

import dipo
from dipo.errors import UserError
from dipo.export import runtime
from dipo.export.targets import TARGETS
from dipo.launch import main
from dipo.stages import pipeline

STACK = "(float[N,4,5,6] x) => (float[N,4,5,3] y) { [it] a = MatMul(x, w) b = Relu(a) [more] y = MatMul(b, v) }"


@pytest.fixture
def refused(tmp_path, monkeypatch):
    """A network of which ONNX Runtime refuses the file, where a target gives each column of a stack a scale."""
    for name in ("ort", "openvino"):
        target = TARGETS[name]
        monkeypatch.setattr(type(target), "spec", dataclasses.replace(target.spec, one_scale=frozenset()))
    model = saved(network(STACK, w=(4, 6, 7), v=(7, 3)), tmp_path, "stack.onnx")
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(20, 4, 5, 6)).astype(np.float32))
    return [f"model.path={model}", f"data.path={tmp_path / 'x.npy'}"]


@pytest.mark.parametrize(
    ("words", "who"),
    [
        ([], "ort"),
        (["algo=qdrop"], "ort"),
        (["export.format=qop"], "ort"),
        (["platform=snpe", "export.also=[openvino]"], "openvino"),
    ],
)
def test_a_file_that_is_refused_is_refused_before_the_work(tiny_job, tmp_path, refused, capsys, words, who):
    run = tmp_path / "run"
    assert main(tiny_job.arguments(*refused, f"run.dir={run}", *words)) == 2
    said = capsys.readouterr()
    assert f"platform={who}: ONNX Runtime does not run quantized.onnx as it would be written (" in said.err
    assert "QLinearMatMul" in said.err and said.err.strip().count("\n") == 0
    assert "calibrate" not in said.out and not run.exists()


def test_the_advice_of_the_refusal_helps(tiny_job, tmp_path, refused):
    assert main(tiny_job.arguments(*refused, f"run.dir={tmp_path / 'run'}", "precision.skip=[it]")) == 0


def test_the_python_interface_says_so_too(refused, tmp_path):
    with pytest.raises(UserError, match=r"platform=ort: ONNX Runtime does not run quantized\.onnx"):
        dipo.load(tmp_path / "stack.onnx", tmp_path / "x.npy")


def test_a_file_far_from_its_simulation_is_said_before_the_work(tiny_job, tmp_path, monkeypatch, capsys, caplog):
    monkeypatch.setattr(pipeline, "FAR_DB", 201.0)
    logging.getLogger("dipo").propagate = True
    assert main(tiny_job.arguments(f"run.dir={tmp_path / 'run'}")) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "on one sample, what is written for ort is" in out
    assert out.index("on one sample") < out.index("calibrate: 24 samples")


def test_each_file_is_run_on_one_sample(tiny_job, tmp_path, monkeypatch):
    seen = []

    def run_model(path, batches, **options):
        batches = list(batches)
        seen.append((path.name, options["float_biases"], {len(array) for each in batches for array in each.values()}))
        return runtime.run_model(path, batches, **options)

    monkeypatch.setattr("dipo.stages.rehearse.run_model", run_model)
    assert main(tiny_job.arguments(f"run.dir={tmp_path / 'run'}", "platform=rk", "export.also=[trt]")) == 0
    both = [("quantized.onnx", False, {1}), ("deploy.onnx", False, {1})]
    assert seen == [*both, ("quantized.onnx", True, {1}), ("deploy.onnx", True, {1})]
