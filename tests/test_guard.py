"""The network goes on as it was before a step, where held-out samples say that it was better; the report says so."""

from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np
import onnx
import pytest
from networks import images, network, saved
from test_resume import ended_early, same_outcome
from thread_pool import ThreadPool

import dipo
from dipo.launch import main
from dipo.stages.guard import NetworkGuard

SPOILS = ("algo=qdrop", "precision=w4a4", "algo.lr_bias=1000", "algo.correct_bias=false")
"""Options of a training that cannot help."""


def finished(job, folder, *options):
    assert main(job.arguments(*options, f"run.dir={folder}")) == 0
    return json.loads((folder / "report.json").read_text())


def weights(folder):
    graph = onnx.load(folder / "quantized.onnx").graph
    return {each.name: onnx.numpy_helper.to_array(each).tobytes() for each in graph.initializer}


def what_is_said(report, name):
    return [note["what"] for note in report["notes"] if note["name"] == name]


@pytest.fixture
def without_unit_guard(monkeypatch):
    monkeypatch.setattr("dipo.algo.unit_training.best_of", lambda _, solved: solved)


@pytest.mark.parametrize("schedule", ["sequential", "parallel"])
def test_a_network_that_gets_worse_is_put_back(tiny_job, tmp_path, capsys, without_unit_guard, schedule):
    how = (*SPOILS, f"cluster.schedule={schedule}")
    report = finished(tiny_job, tmp_path / "guarded", *how)
    (said,) = what_is_said(report, "qdrop")
    assert said.startswith("nothing was gained on ")
    assert said.endswith("the network is kept as it was before it")
    assert f"note: qdrop: {said}" in capsys.readouterr().out.replace("\n", " ")
    assert all(unit["kept"] is False for unit in report["units"])
    none = finished(tiny_job, tmp_path / "none", "algo=none", "precision=w4a4")
    assert report["error"] == none["error"]
    assert weights(tmp_path / "guarded") == weights(tmp_path / "none")
    events = [json.loads(line) for line in (tmp_path / "guarded" / "events.jsonl").read_text().splitlines()]
    (judged,) = [event for event in events if event["event"] == "step_judged"]
    assert (judged["step"], judged["kept"]) == ("qdrop", False)
    assert judged["gain_db"] < 0
    without = finished(tiny_job, tmp_path / "without", *how, "algo.guard=false")
    assert without["error"]["deployed_vs_fp32"]["sqnr_db"] < none["error"]["deployed_vs_fp32"]["sqnr_db"]
    assert not what_is_said(without, "qdrop")
    assert all(unit["kept"] is None for unit in without["units"])


def test_units_that_get_worse_are_named(tiny_job, tmp_path):
    report = finished(tiny_job, tmp_path / "run", *SPOILS[:2], "algo.iters=60", "algo.steps=[bias_correction,qdrop]")
    for step in ("bias_correction", "qdrop"):
        rows = [unit for unit in report["units"] if unit["step"] == step]
        assert rows
        assert all(unit["kept"] is not None for unit in rows)
        back = [unit["name"] for unit in rows if not unit["kept"]]
        said = what_is_said(report, step)
        assert len(said) == (1 if back else 0)
        if 0 < len(back) < len(rows):
            assert f"in {len(back)} of {len(rows)} units, which are kept as they were: {back[0]}" in said[0]


@pytest.mark.parametrize("unit_guard", [True, False])
def test_what_was_put_back_stays_so_when_resumed(tiny_job, tmp_path, monkeypatch, unit_guard):
    if not unit_guard:
        monkeypatch.setattr("dipo.algo.unit_training.best_of", lambda _, solved: solved)
    whole = tmp_path / "whole"
    report = finished(tiny_job, whole, *SPOILS, "algo.steps=[qdrop,{tune:{lr_bias:1e-3,tune_iters:3}}]")
    assert any("gained" in said for said in what_is_said(report, "qdrop"))
    names = sorted(path.name for path in (whole / "units").iterdir())
    for index, lost in enumerate(([], names[-1:], names[1:], names)):
        folder = ended_early(whole, tmp_path / f"ended{index}", *(f"units/{name}" for name in lost))
        assert main([f"run.resume={folder}"]) == 0
        assert same_outcome(whole, folder)
        again = json.loads((folder / "report.json").read_text())
        assert again["notes"] == report["notes"]
        kept = [[(unit["name"], unit["kept"], unit["gain_db"]) for unit in each["units"]] for each in (report, again)]
        assert kept[0] == kept[1]
        shutil.rmtree(folder)


def test_any_number_of_workers_puts_back_the_same(tiny_job, tmp_path, monkeypatch, without_unit_guard):
    one = finished(tiny_job, tmp_path / "one", *SPOILS)
    monkeypatch.setattr("dipo.stages.pipeline.start_pool", lambda job, model, **_: ThreadPool(job, model, 2))
    two = finished(tiny_job, tmp_path / "two", *SPOILS, "cluster=ray", "cluster.compile=false")
    assert one["notes"] == two["notes"]
    assert one["error"] == two["error"]
    assert weights(tmp_path / "one") == weights(tmp_path / "two")


def test_what_is_asked_for_is_not_undone(tiny_job, tmp_path):
    """Sparsity costs accuracy, and is wanted nevertheless."""
    report = finished(tiny_job, tmp_path / "run", "algo.steps=[sparsify,update_bn]", "algo.sparsity=0.8")
    (said,) = what_is_said(report, "sparsify")
    assert "dB worse behind it on" in said
    assert all(unit["kept"] is None for unit in report["units"])


def test_with_too_few_samples_the_report_says_that_nothing_was_judged(tiny_job, tmp_path):
    report = finished(tiny_job, tmp_path / "run", *SPOILS[:2], "data.num=3")
    (said,) = what_is_said(report, "qdrop")
    assert "with 3 samples none is held out" in said
    assert all(unit["kept"] is None for unit in report["units"])
    assert not what_is_said(
        finished(tiny_job, tmp_path / "off", *SPOILS[:2], "data.num=3", "algo.guard=false"), "qdrop"
    )


def test_the_same_from_python(tiny_job, without_unit_guard):
    options = {"cluster.compile": False}
    with dipo.load(tiny_job.model, tiny_job.data, precision="w4a4", options=options) as network:
        rounded = dipo.calibrate(network)
        spoilt, guarded = (
            dipo.apply(rounded, "qdrop", iters=4, lr_bias=1e3, correct_bias=False, guard=guard)
            for guard in (False, True)
        )
        for name, layer in rounded.state.quantized.layers.items():
            assert np.array_equal(guarded.state.quantized.layers[name].codes, layer.codes)
            assert np.array_equal(guarded.state.quantized.layers[name].bias, layer.bias)
        assert any(
            not np.array_equal(spoilt.state.quantized.layers[name].bias, layer.bias)
            for name, layer in rounded.state.quantized.layers.items()
        )
        corrected = dipo.apply(guarded, "bias_correction")
        notes = [note.name for note in dipo.evaluate(corrected).notes]
        assert notes.count("qdrop") == 1
        assert not [note for note in dipo.evaluate(spoilt).notes if note.name == "qdrop"]


def test_an_output_does_not_hide_behind_another(tmp_path):
    """The errors of one are ten thousand times as large, and fall; the other's rise."""
    model = network(
        """(float[N,3,8,8] image) => (float[N,4,8,8] small, float[N,4,8,8] large) {
          [stem] a = Conv<pads=[1,1,1,1]>(image, w1, b1)
          r = Relu(a)
          [one] small = Conv(r, w2, b2)
          [two] c = Conv(r, w3, b3)
          k = Constant<value_float=10000.0>()
          large = Mul(c, k)
        }""",
        w1=(8, 3, 3, 3), b1=(8,), w2=(4, 8, 1, 1), b2=(4,), w3=(4, 8, 1, 1), b3=(4,),
    )  # fmt: skip
    np.savez(tmp_path / "samples.npz", image=images(16))
    with dipo.load(saved(model, tmp_path), tmp_path / "samples.npz", precision="w4a8") as loaded:
        good = dipo.calibrate(loaded).state.quantized

        def shifted(**shifts):
            layers = {
                name: dataclasses.replace(good.layers[name], bias=good.layers[name].bias + np.float32(shift))
                for name, shift in shifts.items()
            }
            return dataclasses.replace(good, layers=good.layers | layers)

        step = dataclasses.replace(loaded.config.algo, steps=["qdrop"]).make_steps()[0]
        with loaded.work("judge", loaded.config) as context:
            judge = NetworkGuard(context).judge
            assert judge(step, shifted(two=0.5), shifted(two=0.1)).kept
            assert not judge(step, shifted(two=0.5), shifted(two=0.1, one=0.1)).kept
            assert not judge(step, shifted(one=0.1), shifted(one=0.5)).kept
