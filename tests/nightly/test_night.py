"""Whole nights over tiny networks, in subprocesses."""

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import onnx
import psutil
import pytest
import yaml
from networks import images, network, saved

from dipo.cli.nightly import main

QUICK = ["cluster.compile=false", "algo.iters=2"]


@dataclass(frozen=True)
class Nights:
    """Nights in one folder."""

    folder: Path
    file: Path

    def run(self, *words: str) -> tuple[int, dict]:
        """Exit code and summary of one more night."""
        before = {*self.all()}
        code = main([f"jobs={self.file}", f"out={self.folder}", "cluster.cpus=2", *words])
        (new,) = {*self.all()} - before
        return code, json.loads((new / "summary.json").read_text())

    def all(self) -> list[Path]:
        return [path for path in self.folder.glob("*") if path.is_dir()]


@pytest.fixture
def nights(tmp_path, monkeypatch) -> Nights:
    monkeypatch.setenv("COLUMNS", "80")
    return Nights(tmp_path / "nights", tmp_path / "jobs.yaml")


def two_layers() -> onnx.ModelProto:
    return network(
        """(float[N,3,8,8] image) => (float[N,10] scores) {
          [conv] a = Conv<pads=[1,1,1,1]>(image, w1, b1)
          [relu] b = Relu(a)
          [pool] c = GlobalAveragePool(b)
          [flat] d = Flatten(c)
          [head] scores = Gemm<transB=1>(d, w2, b2)
        }""",
        w1=(8, 3, 3, 3), b1=(8,), w2=(10, 8), b2=(10,),
    )  # fmt: skip


def change_weight(path: Path, name: str) -> None:
    """Another value in one weight, small enough to leave its channel's scale as it is."""
    model = onnx.load(path)
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    array = onnx.numpy_helper.to_array(tensor).copy()
    smallest = np.unravel_index(np.abs(array).argmin(), array.shape)
    array[smallest] = np.abs(array).max() / 2
    tensor.CopyFrom(onnx.numpy_helper.from_array(array, name))
    onnx.save(model, path)


@pytest.mark.slow
def test_two_nights_over_two_networks_with_one_job_broken_and_one_below_its_gate(nights, tiny_job, tmp_path, capsys):
    (tmp_path / "text.onnx").write_text("this is no ONNX")
    small = saved(two_layers(), tmp_path, "small.onnx")
    data = f"data.path={tiny_job.data}"
    tiny = [f"model.path={tiny_job.model}", data]
    content = {
        "defaults": ["cluster=inline", *QUICK],
        "gate": {"max_minutes": 10},
        "jobs": [
            {"name": "tiny-none", "options": [*tiny, "+algo=none"], "gate": {"min_cosine": 0.9}},
            {"name": "tiny-adaround", "options": [*tiny, "+algo=adaround"]},
            {"name": "small-none", "options": [f"model.path={small}", data], "gate": {"min_cosine": 0.99999999}},
            {"name": "small-adaround", "options": [f"model.path={tmp_path / 'text.onnx'}", data, "+algo=adaround"]},
        ],
    }
    nights.file.write_text(yaml.safe_dump(content))

    code, summary = nights.run()
    out = capsys.readouterr().out
    assert code == 1
    states = {job["name"]: job["status"] for job in summary["jobs"]}
    assert states == {
        "tiny-none": "passed", "tiny-adaround": "passed", "small-none": "gate failed", "small-adaround": "broken",
    }  # fmt: skip
    flat = " ".join(out.split())
    assert "small-none: gate failed: cosine: 0." in flat
    assert "small-adaround: broken: model.path=" in flat
    assert "not an ONNX file" in flat
    assert "4 jobs: 2 passed, 1 gate failed, 1 broken" in flat
    assert all(job["comparison"] is None for job in summary["jobs"])
    (night,) = nights.all()
    assert {path.name for path in night.iterdir() if path.is_file()} == {
        *(f"{name}.log" for name in states), "summary.json", "summary.html", "junit.xml",
    }  # fmt: skip
    suite = ElementTree.parse(night / "junit.xml").getroot()
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("4", "1", "1")

    change_weight(tiny_job.model, "w3")
    code, summary = nights.run()
    assert code == 1
    compared = {job["name"]: job["comparison"] for job in summary["jobs"]}
    assert compared["small-adaround"] is None
    assert compared["small-none"]["first"] is None
    for name in ("tiny-none", "tiny-adaround"):
        assert compared[name]["first"]["layer"] == "right", compared[name]
    assert "weights (1 of 576 codes)" in compared["tiny-none"]["first"]["changes"]
    assert compared["tiny-none"]["changed_ranges"] >= 1
    flat = " ".join(capsys.readouterr().out.split())
    assert "first at right: weights (1 of 576 codes)" in flat
    assert main(["trend", "tiny", f"out={nights.folder}"]) == 0
    trend = capsys.readouterr().out
    assert trend.count("passed") == 4
    with contextlib.closing(sqlite3.connect(nights.folder / "history.sqlite")) as history:
        assert history.execute("select count(*) from nights where state = 'finished'").fetchone() == (2,)
        assert history.execute("select count(*) from results").fetchone() == (8,)
        layers = "select name from layers where result_id = 1 order by position"
        assert {"image", "stem", "left", "right", "head"} <= {row[0] for row in history.execute(layers)}


@pytest.mark.slow
def test_two_jobs_at_a_time_share_one_ray_that_ends_with_the_night(nights, tiny_job):
    content = {
        "defaults": [f"model.path={tiny_job.model}", f"data.path={tiny_job.data}", "cluster.workers=1", *QUICK],
        "jobs": [{"name": "none", "options": []}, {"name": "qdrop", "options": ["+algo=qdrop"]}],
    }
    nights.file.write_text(yaml.safe_dump(content))
    command = [sys.executable, "-u", "-m", "dipo.nightly", f"jobs={nights.file}", f"out={nights.folder}"]
    with subprocess.Popen([*command, "cluster.cpus=2"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        heads, lines = set(), []
        for line in process.stdout:
            lines.append(line.strip())
            if "started on" in line:
                heads |= {each for each in psutil.Process(process.pid).children(recursive=True) if _is_raylet(each)}
    assert process.returncode == 0, lines
    assert lines[:2] == ["none: started on 1 CPU", "qdrop: started on 1 CPU"]
    assert len(heads) == 1
    assert not any(head.is_running() and head.status() != psutil.STATUS_ZOMBIE for head in heads)
    (night,) = nights.all()
    addresses = {
        yaml.safe_load((night / name / "config.yaml").read_text())["cluster"]["address"] for name in ("none", "qdrop")
    }
    assert len(addresses) == 1
    assert addresses.pop().startswith("127.0.0.1:")


def _is_raylet(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return process.name() == "raylet"
    return False


@pytest.mark.slow
@pytest.mark.parametrize(("signum", "code", "word"), [(signal.SIGINT, 130, "Ctrl-C"), (signal.SIGTERM, 143, "SIGTERM")])
def test_a_stopped_night_keeps_what_is_finished_and_sums_up(nights, tiny_job, tmp_path, signum, code, word):
    np.savez(tmp_path / "many.npz", x=images(20000))
    options = [f"model.path={tiny_job.model}", "cluster=inline", *QUICK]
    content = {
        "jobs": [
            {"name": "quick", "options": [*options, f"data.path={tiny_job.data}"]},
            {
                "name": "slow",
                "options": [*options, f"data.path={tmp_path / 'many.npz'}", "+algo=qdrop", "algo.iters=1000000"],
            },
            {"name": "never", "options": [*options, f"data.path={tiny_job.data}"]},
        ]
    }
    nights.file.write_text(yaml.safe_dump(content))
    command = [sys.executable, "-u", "-m", "dipo.nightly", f"jobs={nights.file}", f"out={nights.folder}", "parallel=1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("slow: started"):
                break
        children = _children_of_a_job(process.pid)
        os.kill(process.pid, signum)
        out, _ = process.communicate(timeout=60)
    assert process.returncode == code
    (night,) = nights.all()
    summary = json.loads((night / "summary.json").read_text())
    assert {job["name"]: job["status"] for job in summary["jobs"]} == {
        "quick": "passed", "slow": "not run", "never": "not run",
    }  # fmt: skip
    assert f"stopped by {word}" in out
    assert not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children)
    with contextlib.closing(sqlite3.connect(nights.folder / "history.sqlite")) as history:
        assert history.execute("select name, status from results").fetchall() == [("quick", "passed")]
        assert history.execute("select state from nights").fetchall() == [("stopped",)]


def _children_of_a_job(pid: int) -> list[psutil.Process]:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        children = psutil.Process(pid).children(recursive=True)
        if children:
            return children
        time.sleep(0.05)
    raise AssertionError("the job was not started")
