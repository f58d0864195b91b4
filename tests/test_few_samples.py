"""Few samples: ranges get room where samples that they were not taken from are better served by it."""

from __future__ import annotations

import json

import numpy as np
import onnxruntime
import pytest
from networks import network, saved
from thread_pool import ThreadPool

import dipo
from dipo.launch import main

NETWORK = """(float[N,3,8,8] x) => (float[N,6] y) {
  a = Conv<pads=[1,1,1,1]>(x, w1)
  b = LeakyRelu(a)
  c = Conv<pads=[1,1,1,1]>(b, w2)
  d = LeakyRelu(c)
  e = GlobalAveragePool(d)
  f = Flatten(e)
  y = Gemm<transB=1>(f, w3)
}"""


def loud_and_soft(num, seed):
    """Return samples of which few are much louder than the others."""
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(num, 3, 8, 8)) * rng.exponential(size=(num, 1, 1, 1))).astype(np.float32)


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    folder = tmp_path_factory.mktemp("headroom")
    path = saved(network(NETWORK, w1=(8, 3, 3, 3), w2=(8, 8, 3, 3), w3=(6, 8)), folder)
    np.savez(folder / "x.npz", x=loud_and_soft(16, 0))
    return path, folder / "x.npz"


def sqnr_db(path, written):
    unseen = loud_and_soft(400, 1)
    float_, own = (onnxruntime.InferenceSession(each).run(None, {"x": unseen})[0] for each in (path, written))
    return 10 * np.log10((float_**2).sum() / ((float_ - own) ** 2).sum())


def arguments(job, folder, *more):
    path, data = job
    return [f"model.path={path}", f"data.path={data}", "cluster=inline", f"run.dir={folder}", *more]


def test_unseen_samples_are_served_better(job, tmp_path, capsys):
    reached = {}
    for headroom in ("none", "auto"):
        folder = tmp_path / headroom
        assert main(arguments(job, folder, f"calib.headroom={headroom}")) == 0
        said = capsys.readouterr().out.replace("\n", " ")
        assert ("as wide (median) as 16 samples make them" in said) == (headroom == "auto")
        assert said.count("headroom:") == (2 if headroom == "auto" else 0), "one task, begun and ended"
        assert ("headroom 1 s" in said) == (headroom == "auto"), "the estimate counts it"
        assert "judge" not in said
        reached[headroom] = sqnr_db(job[0], folder / "quantized.onnx")
    assert reached["auto"] > reached["none"] + 2
    events = [json.loads(line) for line in (tmp_path / "auto" / "events.jsonl").read_text().splitlines()]
    (judged,) = [event for event in events if event["event"] == "headroom_judged"]
    assert judged["gain_db"] > 0
    # Chosen again in a run that goes on, and back: as in one that had it so from the beginning.
    again, first = tmp_path / "auto" / "quantized.onnx", (tmp_path / "auto" / "quantized.onnx").read_bytes()
    for headroom, wanted in (("none", (tmp_path / "none" / "quantized.onnx").read_bytes()), ("auto", first)):
        assert main([f"run.resume={tmp_path / 'auto'}", f"calib.headroom={headroom}"]) == 0
        assert again.read_bytes() == wanted


def test_other_targets_of_a_run_have_the_same_room(job, tmp_path):
    reached = {}
    for headroom in ("none", "auto"):
        data, options = np.load(job[1])["x"], {"calib.headroom": headroom}
        result = dipo.quantize(str(job[0]), data, target="ort", options=options)
        reached[headroom] = sqnr_db(job[0], result.export("openvino", tmp_path / headroom)[0])
    assert reached["auto"] > reached["none"] + 2


def test_many_samples_and_none_have_none(job, tmp_path):
    many = tmp_path / "many.npz"
    np.savez(many, x=loud_and_soft(99, 2))
    report = tmp_path / "run" / "report.json"
    assert main(arguments((job[0], many), tmp_path / "run")) == 0
    assert "as wide (median)" not in report.read_text()


def test_any_number_of_workers_finds_the_same_room(job, tmp_path, monkeypatch):
    written = []
    for size in (1, 2, 3):
        start = lambda job, model, size=size, **_: ThreadPool(job, model, size)  # noqa: E731
        monkeypatch.setattr("dipo.stages.pipeline.start_pool", start)
        assert main(arguments(job, tmp_path / str(size), "data.batch_size=3")) == 0
        assert "as wide (median)" in (tmp_path / str(size) / "report.json").read_text()
        written.append((tmp_path / str(size) / "quantized.onnx").read_bytes())
    assert written[0] == written[1] == written[2]
