"""A target of another package, through the command lines of the job, the export and the checks."""

from __future__ import annotations

import json

import pytest

from dipo.cli.export import main as export
from dipo.cli.verify import main as verify
from dipo.launch import main

FILES = ["deploy.onnx", "quantized.onnx", "ranges.toy"]


@pytest.fixture(autouse=True)
def toy(announce):
    announce("dipo.targets", toy="toy_target:TARGET")


def files_in(folder):
    return {name: (folder / name).read_bytes() for name in FILES}


def test_the_manual_names_it(capsys):
    assert main(["--help", "options"]) == 0
    assert "openvino | toy)" in " ".join(capsys.readouterr().out.split())


def test_a_job_for_it(tiny_job, tmp_path, capsys):
    run = tmp_path / "run"
    assert main(tiny_job.arguments(f"run.dir={run}", "platform=toy", "platform.options={strength:7}")) == 0
    assert "the device gets warm" in " ".join(capsys.readouterr().out.split())
    strength, *ranges = (run / "ranges.toy").read_text().splitlines()
    assert strength == "strength 7" and len(ranges) > 2

    assert verify([f"run={run}"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "ranges.toy grids of quantized.onnx" in said and "the toy device reads it, which nobody has" in said
    name, low, _ = ranges[0].rsplit(" ", 2)
    (run / "ranges.toy").write_text("\n".join([strength, f"{name} {low} 99.0", *ranges[1:]]) + "\n")
    assert verify([f"run={run}"]) == 1
    assert "ranges.toy contradicts quantized.onnx" in " ".join(capsys.readouterr().out.split())


def test_its_files_from_a_run_for_another_target(tiny_job, tmp_path):
    run = tmp_path / "run"
    options = ["export.also=[toy,trt]", "platform.options={strength:5}", "platform.version=8.6.1"]
    assert main(tiny_job.arguments(f"run.dir={run}", *options)) == 0
    written = files_in(run / "toy")
    assert written["ranges.toy"].startswith(b"strength 5\n")
    assert "toy" in {row["name"] for row in json.loads((run / "report.json").read_text())["targets"]}

    assert export([f"run={run}", "platform=toy"]) == 0
    assert files_in(run / "toy") == written, "its options are those of the run"
    assert export([f"run={run}", "platform=toy", "platform.options={strength: 2}"]) == 0
    assert (run / "toy" / "ranges.toy").read_text().startswith("strength 2\n")


def test_workers_that_ray_started(tiny_job, tmp_path):
    """They know nothing of the target but what it quantizes."""
    options = ["platform=toy", "algo=brecq", "cluster.grad_shards=2", "cluster.threads=1"]
    assert main(tiny_job.arguments(*options, f"run.dir={tmp_path / 'inline'}")) == 0
    ray = ["cluster=ray", "cluster.workers=2", "cluster.compile=false"]
    assert main(tiny_job.arguments(*options, *ray, f"run.dir={tmp_path / 'ray'}")) == 0
    assert files_in(tmp_path / "ray") == files_in(tmp_path / "inline")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["platform=toy", "platform.options={strength:9}"], "platform.options.strength 9: give a number from 1 to 7"),
        (["platform=toy", "platform.options={strength:6}"], "platform.options.strength 6: the device has none"),
        (["platform=toy", "platform.options={strenght:3}"], "platform.options.strenght: toy has no such option, did"),
        (["platform=toy", "platform.options={schema:2.0.0}"], "it is an option of dipo's, set platform.schema"),
        (["platform=toy", "platform.winograd=true"], "platform.winograd: only stpu has it, not toy, leave it out"),
        (["platform.options={strength:3}"], "platform.options.strength: only toy has it, not ort, leave it out"),
        (["platform=toy", "precision.weight_bits=6"], "has 6 bits and the target takes 4 or 8"),
        (["platform=toi"], "unknown platform 'toi'"),
    ],
)
def test_mistakes_are_told_in_a_sentence(tiny_job, tmp_path, capsys, options, sentence):
    assert main(tiny_job.arguments(f"run.dir={tmp_path / 'run'}", *options)) == 2
    assert sentence in capsys.readouterr().err
