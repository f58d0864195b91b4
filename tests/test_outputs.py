"""What a run says of each output, of inputs that are joined, and of what a grid for all of them loses."""

import json
import re

import numpy as np
import pytest
from networks import images, network, saved

from dipo.export.runtime import run_model
from dipo.launch import main

DETECTOR = """{
  [stem] a = Conv<pads=[1,1,1,1]>(image, w1, b1)
  [relu] b = Relu(a)
  [box] c = Conv(b, w2)
  [pixels] boxes = Mul(c, large)
  [score] d = Conv(b, w3)
  [gate] scores = Sigmoid(d)
  [join] y = Concat<axis=1>(boxes, scores)
}"""
WEIGHTS = {"w1": (8, 3, 3, 3), "b1": (8,), "w2": (4, 8, 1, 1), "w3": (5, 8, 1, 1), "large": np.float32(400)}


@pytest.fixture
def job(tmp_path):
    """Return what writes a network with boxes and scores and runs it, with its report."""

    def run(outputs: str, *how: str, name: str = "run") -> dict:
        model = saved(network(f"(float[N,3,8,8] image) => ({outputs}) {DETECTOR}", **WEIGHTS), tmp_path)
        np.savez(tmp_path / "samples.npz", image=images(24))
        options = [f"model.path={model}", f"data.path={tmp_path / 'samples.npz'}", f"run.dir={tmp_path / name}"]
        assert main([*options, "cluster=inline", "cluster.compile=false", "algo.iters=4", *how]) == 0
        return json.loads((tmp_path / name / "report.json").read_text())

    return run


JOINED = "float[N,9,8,8] y"
APART = "float[N,4,8,8] boxes, float[N,5,8,8] scores"


@pytest.mark.parametrize("platform", ["rk", "rv", "qnn", "snpe", "ti", "imx"])
def test_scores_lost_among_boxes_are_said_before_the_work_and_after_it(job, tmp_path, capsys, platform):
    report = job(JOINED, f"platform={platform}", "+algo=qdrop")
    found = run_model(tmp_path / "run" / "quantized.onnx", [{"image": images(24)}], threads=1)["y"]
    assert not found[:, 4:].any() or found[:, 4:].max() > 1, "one code or two for all scores"
    said = capsys.readouterr().out
    sentence = "note: scores: its numbers are lost: all of them"
    assert said.index(sentence) < said.index("unit 1/") < said.rindex(sentence)
    assert "Concat 'join'" in said
    assert ("precision.act_bits=16" in said) == (platform in {"qnn", "snpe"})
    assert [note["name"] for note in report["notes"]][:1] == ["scores"]
    rows = {row["name"]: row for row in report["concats"]}
    assert rows.keys() == {"boxes", "scores"}
    assert rows["scores"]["concat"] == "join"
    assert rows["scores"]["steps"] < 1 < 50 < rows["boxes"]["steps"]
    assert rows["scores"]["sqnr_db"] < 3 < 20 < rows["boxes"]["sqnr_db"]
    assert "scores, input of join" in said


def test_nothing_is_lost_where_the_advice_is_taken(job):
    for outputs, how in (
        (JOINED, ("platform=qnn", "precision.act_bits=16")), (JOINED, ("platform=ort",)), (APART, ("platform=rk",)),
    ):  # fmt: skip
        report = job(outputs, *how, name="-".join(how).replace("=", "-") + outputs[:10])
        assert not [note for note in report["notes"] if "lost" in note["what"]]
        rows = {row["name"]: row["sqnr_db"] for row in report["concats"]}
        if "platform=qnn" in how:
            assert rows["scores"] > 20
        else:
            assert not rows, "boxes and scores stay float in front of the join, or have grids of their own"


@pytest.mark.parametrize("platform", ["ort", "trt", "atlas"])
def test_what_a_layer_reads_may_be_lost_too_and_the_advice_helps(tmp_path, capsys, platform):
    text = DETECTOR.replace("}", "[last] z = Conv(y, w4) }")
    model = network(f"(float[N,3,8,8] image) => (float[N,5,8,8] z) {text}", **WEIGHTS, w4=(5, 9, 1, 1))
    np.savez(tmp_path / "samples.npz", image=images(24))
    options = [f"model.path={saved(model, tmp_path)}", f"data.path={tmp_path / 'samples.npz'}", "cluster=inline"]
    assert main([*options, f"platform={platform}", f"run.dir={tmp_path / 'run'}"]) == 0
    said = capsys.readouterr().out
    assert "note: scores: its numbers are lost" in said
    (skip,) = set(re.findall(r"precision\.skip=\[[^]]*\]", said))
    assert main([*options, f"platform={platform}", f"run.dir={tmp_path / 'apart'}", skip]) == 0
    assert "lost" not in capsys.readouterr().out


def test_another_target_that_loses_them_says_so(job, capsys):
    report = job(JOINED, "platform=ort", "export.also=[rk]")
    (row,) = report["targets"]
    assert [note for note in row["notes"] if note.startswith("scores: its numbers are lost")]
    assert "scores: its numbers are lost" in capsys.readouterr().out
    assert [each["name"] for each in row["outputs"]] == ["y"]
    assert not [note for note in report["notes"] if "lost" in note["what"]]


def test_an_output_cut_from_what_is_joined_is_lost_with_it(tmp_path, capsys):
    text = DETECTOR.replace("}", "[cut] first, second = Split<axis=1>(y, sizes) }")
    outputs, sizes = "float[N,4,8,8] first, float[N,5,8,8] second", np.int64([4, 5])
    model = network(f"(float[N,3,8,8] image) => ({outputs}) {text}", **WEIGHTS, sizes=sizes)
    np.savez(tmp_path / "samples.npz", image=images(24))
    options = [f"model.path={saved(model, tmp_path)}", f"data.path={tmp_path / 'samples.npz'}", "platform=qnn"]
    assert main([*options, "cluster=inline", f"run.dir={tmp_path / 'run'}"]) == 0
    said = capsys.readouterr().out
    assert "note: second: its numbers are lost" in said
    assert "note: first: " not in said
    assert "the grid of this output" in said


def test_every_output_has_a_row(job, capsys):
    report = job(APART, "data.class_axis={scores:1}")
    boxes, scores = report["outputs"]
    assert (boxes["name"], boxes["shape"], boxes["type"], boxes["class_axis"]) == ("boxes", [4, 8, 8], "float32", None)
    assert (scores["name"], scores["class_axis"]) == ("scores", 1)
    for where in ("simulated", "deployed"):
        assert (boxes[where]["agreement"], boxes[where]["equal"]) == (None, None)
        assert scores[where]["agreement"] == report["error"][f"{where}_vs_fp32"]["agreement"]
        assert boxes[where]["sqnr_db"] > 20
        assert 0 < boxes[where]["max_error"] < 400
    said = capsys.readouterr().out
    assert "outputs of the deployed network" in said
    assert "worst output" in said


def test_agreement_is_null_without_classes_and_per_position_with_them(job, tmp_path, capsys):
    report = job("float[N,4,8,8] boxes")
    assert {error["agreement"] for error in report["error"].values()} == {None}
    report = job("float[N,4,8,8] boxes", "data.class_axis={b*:1}", name="given")
    shares = report["error"]["deployed_vs_fp32"]["agreement"] * 24 * 64 / 100
    assert shares == pytest.approx(round(shares))
    assert report["accuracy"] == {"fp32": None, "simulated": None, "deployed": None}


@pytest.mark.parametrize("axis", ["{boxes:one}", "{boxes:4}", "{other:1}", "{boxes:true}"])
def test_a_wrong_class_axis_is_a_sentence_before_the_work(job, tmp_path, capsys, axis):
    model = saved(network(f"(float[N,3,8,8] image) => (float[N,4,8,8] boxes) {DETECTOR}", **WEIGHTS), tmp_path)
    np.savez(tmp_path / "samples.npz", image=images(8))
    options = [f"model.path={model}", f"data.path={tmp_path / 'samples.npz'}", "cluster=inline"]
    assert main([*options, f"run.dir={tmp_path / 'run'}", f"data.class_axis={axis}"]) == 2
    output = capsys.readouterr()
    assert "data.class_axis" in output.out + output.err
    assert "Traceback" not in output.out + output.err
    assert not (tmp_path / "run" / "report.json").exists()
