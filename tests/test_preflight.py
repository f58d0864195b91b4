"""What is said in front of a job: by whom its nodes are computed, what stays float and why, and what it will cost."""

import dataclasses
import json

import numpy as np
import pytest
from networks import images, network, saved
from PIL import Image

from dipo.export.targets import TARGETS
from dipo.launch import main

MIXED = """(float[N,3,8,8] image) => (float[N,5] scores, float[N,6,6] pairs) {
  [stem] a = Conv(image, w1)
  [relu] b = Relu(a)
  [rows] c = Reshape(b, to_rows)
  [columns] d = Transpose<perm=[0,2,1]>(c)
  [product] e = MatMul(c, d)
  [left] pairs = MatMul(k, e)
  [turn] f = Transpose<perm=[2,0,1]>(c)
  [lstm] g, h = LSTM<hidden_size=4>(f, W, R)
  [last] i = Squeeze(h, first)
  [head] scores = Gemm<transB=1>(i, w2)
}"""
CONSTANTS = {
    "w1": (6, 3, 3, 3), "to_rows": np.array([0, 6, 36]), "k": (6, 6), "W": (1, 16, 6), "R": (1, 16, 4),
    "first": np.array([0]), "w2": (5, 4),
}  # fmt: skip
COUNTS = {"stem": 6 * 36 * 27, "product": 6 * 6 * 36, "left": 6 * 6 * 6, "lstm": 36 * 16 * (6 + 4), "head": 20}


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    base = tmp_path_factory.mktemp("preflight")
    path = saved(network(MIXED, **CONSTANTS), base)
    np.savez(base / "samples.npz", image=images(8))
    return [f"model.path={path}", f"data.path={base / 'samples.npz'}", "cluster=inline", "cluster.compile=false"]


@pytest.fixture(scope="module")
def found(job, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    assert main([*job, "+algo=bias_correction", "precision.skip=[head]", f"run.dir={folder}"]) == 0
    return json.loads((folder / "report.json").read_text())


def test_the_report_says_what_onnx_runtime_computes_and_its_share(found):
    (region,) = found["network"]["regions"]
    assert (region["nodes"], region["operators"]) == (["lstm"], {"LSTM": 1})
    assert region["share"] == pytest.approx(COUNTS["lstm"] / sum(COUNTS.values()))
    assert found["network"]["multiplications"] == sum(COUNTS.values())
    (note,) = [note["what"] for note in found["notes"] if note["name"] == "lstm"]
    assert note.startswith("it is computed in ONNX Runtime, not in torch (")


def test_the_report_says_why_products_stay_float(found):
    why = {row["name"]: row["why"] for row in found["network"]["stays_float"]}
    assert why == {
        "lstm": "computed in ONNX Runtime, its weights are stored in 8 bits",
        "left": "its constant is the left factor, where a layer's weight is the right one, so it stays float",
        "head": "left out by precision.skip",
    }
    assert (found["network"]["layers"], found["network"]["quantized"]) == (2, 1)
    wanted = (COUNTS["stem"] + COUNTS["product"]) / sum(COUNTS.values())
    assert found["network"]["quantized_share"] == pytest.approx(wanted)


def test_operators_that_a_target_lacks_stay_float(tmp_path, capsys, monkeypatch):
    ort = TARGETS["ort"]
    monkeypatch.setattr(ort, "spec", dataclasses.replace(ort.spec, operators=ort.spec.operators - {"MatMul"}))
    text = """(float[N,3,8,8] image) => (float[N,4,6,5] y) {
      [stem] a = Conv(image, w1)
      [head] y = MatMul(a, w2)
    }"""
    path = saved(network(text, w1=(4, 3, 3, 3), w2=(6, 5)), tmp_path)
    np.save(tmp_path / "x.npy", images(4))
    job = [f"model.path={path}", f"data.path={tmp_path / 'x.npy'}", "cluster=inline", "dry_run=true"]
    assert main(job) == 0
    assert "head (MatMul, 15.6 %): ort computes no MatMul with integers" in _one_line(capsys.readouterr().out)


def test_a_dry_run_says_what_a_job_will_cost_and_stops(job, tmp_path, capsys):
    assert main([*job, "+algo=qdrop", "dry_run=true", f"run.dir={tmp_path / 'run'}"]) == 0
    out = _one_line(capsys.readouterr().out)
    assert not (tmp_path / "run").exists()
    for words in ("B a worker", "with 1 worker: calibrate", "qdrop", "verify", "units", "parameters"):
        assert words in out
    assert "activation image" not in out


def test_every_layer_and_activation_are_listed_where_that_is_asked_for(job, capsys):
    assert main([*job, "dry_run=true", "--verbose"]) == 0
    out = capsys.readouterr().out
    assert "layer stem: 8-bit weights" in out
    assert "activation image: 8 bits" in out


@pytest.mark.parametrize("size", [None, 12])
def test_how_images_are_read_is_said(tmp_path, capsys, size):
    text = "(float[N,3,8,8] image) => (float[N,4,6,6] y) { [conv] y = Conv(image, w) }"
    path = saved(network(text, w=(4, 3, 3, 3)), tmp_path)
    (tmp_path / "images").mkdir()
    for number in range(2):
        Image.new("RGB", (16, 12)).save(tmp_path / "images" / f"{number}.png")
    how = ["data.mean=[0.5,0.5,0.25]", "data.std=0.5", *([] if size is None else [f"data.size={size}"])]
    assert main([f"model.path={path}", f"data.path={tmp_path / 'images'}", "cluster=inline", "dry_run=true", *how]) == 0
    out = _one_line(capsys.readouterr().out)
    shorter = "" if size is None else ", the shorter side to 12"
    assert f"RGB, resized bilinearly{shorter} and cropped to the centre 8x8 where they have another size; 0 to" in out
    assert "0 to 255 become -1 to 1, -0.5 to 1.5" in out


def _one_line(out: str) -> str:
    """A table's text, its cells put together again."""
    return " ".join(" ".join(line.strip("│ ").split()) for line in out.replace("│", " ").splitlines())
