"""A step and a range method of another package, on the command line, in this process and on Ray's workers."""

from __future__ import annotations

import json

import numpy as np
import pytest

from dipo.launch import main
from dipo.run import RunFolder


@pytest.fixture(autouse=True)
def toys(announce):
    announce("dipo.steps", fit_scales="toy_step:FitScales")
    announce("dipo.range_methods", most="toy_range:MOST")


def run(tiny_job, folder, *options):
    assert main(tiny_job.arguments(f"run.dir={folder}", "precision=w4a8", *options)) == 0
    return json.loads((folder / "report.json").read_text())


def scales_of(folder):
    arrays, _ = RunFolder(folder, resume=True).read_arrays("network.safetensors")
    return {name: array for name, array in arrays.items() if name.endswith("/scale")}


def test_a_step_changes_the_layers_in_its_turn(tiny_job, tmp_path):
    plain = run(tiny_job, tmp_path / "plain", "calib.weights=minmax")
    fitted = run(tiny_job, tmp_path / "fitted", "calib.weights=minmax", "algo.steps=[fit_scales,bias_correction]")
    assert {row["step"] for row in fitted["units"]} == {"fit_scales", "bias_correction"}
    before, after = (scales_of(tmp_path / name) for name in ("plain", "fitted"))
    assert all(np.any(before[name] != after[name]) for name in before)
    sqnr = [report["error"]["simulated_vs_fp32"]["sqnr_db"] for report in (plain, fitted)]
    assert sqnr[1] > sqnr[0]


def test_its_options_stand_in_its_entry(tiny_job, tmp_path):
    run(tiny_job, tmp_path / "plain")
    run(tiny_job, tmp_path / "none", "algo.steps=[{fit_scales:{strength:0}}]")
    before, after = (scales_of(tmp_path / name) for name in ("plain", "none"))
    assert all(np.array_equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(
    ("steps", "sentence"),
    [
        ("[{fit_scales:{strength:2}}]", "algo.strength 2: give a number from 0 to 1"),
        ("[{fit_scales:{strenght:1}}]", "unknown option 'algo.strenght': did you mean strength?"),
        ("[tune,fit_scales]", "algo.steps: fit_scales after tune: it would undo what was tuned end to end"),
        (
            "[fit_scales,equalize]",
            "equalize after fit_scales: it changes the float network that fit_scales has quantized",
        ),
        ("[fit_scale]", "algo.steps 'fit_scale': did you mean fit_scales, or one of"),
    ],
)
def test_mistakes_are_told_in_a_sentence(tiny_job, capsys, steps, sentence):
    assert main(tiny_job.arguments(f"algo.steps={steps}")) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1


def test_a_range_method_chooses_ranges(tiny_job, tmp_path):
    run(tiny_job, tmp_path / "all", "calib=minmax", "calib.headroom=none")
    run(tiny_job, tmp_path / "most", "calib.method=most", "calib.headroom=none")
    arrays = [RunFolder(tmp_path / name, resume=True).read_arrays("network.safetensors")[0] for name in ("all", "most")]
    scales = [{name: float(a) for name, a in each.items() if name.endswith("act_scale")} for each in arrays]
    for name, scale in scales[0].items():
        assert scales[1][name] == pytest.approx(0.9 * scale, rel=1e-5)


def test_rays_workers_know_them_too(tiny_job, tmp_path):
    how = ("algo.steps=[fit_scales,brecq]", "calib.method=most")
    run(tiny_job, tmp_path / "inline", *how)
    run(tiny_job, tmp_path / "ray", *how, "cluster=ray", "cluster.workers=2")
    inline, ray = ((tmp_path / name / "quantized.onnx").read_bytes() for name in ("inline", "ray"))
    assert inline == ray
