import json
import shutil

import pytest
from networks import saved
from written import qdq

from dipo.nightly.jobs import read_jobs
from dipo.nightly.resources import ResourceRequest
from dipo.nightly.result import Status, collect
from dipo.nightly.runner import Ended, Task

REPORT = {
    "accuracy": {"fp32": 90.0, "simulated": 89.5, "deployed": 89.0},
    "error": {"deployed_vs_fp32": {"agreement": 97.0, "cosine": 0.99, "sqnr_db": 25.0}},
    "layers": [{"name": "conv", "cosine": 0.995, "sqnr_db": 27.0}],
}


@pytest.fixture
def job(jobs_file):
    options = ["model.path=net.onnx", "data.path=x.npz", "algo=qdrop", "platform=trt", "precision=w4a8"]
    return read_jobs(jobs_file(jobs=[{"name": "a", "options": options, "gate": {"max_top1_drop": 1.0}}]), {}).jobs[0]


@pytest.fixture
def run(tmp_path):
    """A finished run's folder."""
    folder = tmp_path / "a"
    folder.mkdir()
    (folder / "report.json").write_text(json.dumps(REPORT))
    saved(qdq(), folder, "quantized.onnx")
    return folder


def ended(tmp_path, returncode=0, log="", **more) -> Ended:
    path = tmp_path / "a.log"
    path.write_text(log)
    return Ended(Task("a", (), path, ResourceRequest(1, 0)), returncode, 7.0, **more)


def test_a_finished_run_is_read_and_judged(job, run, tmp_path):
    result = collect(job, ended(tmp_path), run)
    assert (result.status, result.reason, result.seconds) == (Status.PASSED, None, 7.0)
    assert (result.model, result.algo, result.platform, result.precision) == ("net", "qdrop", "trt", "w4a8")
    assert (result.accuracy_fp32, result.accuracy_deployed, result.cosine, result.sqnr_db) == (90.0, 89.0, 0.99, 25.0)
    assert [layer.sqnr_db for layer in result.layers] == [None, 27.0, None]
    assert result.complete
    assert result.folder == str(run)


def test_a_gate_that_fails_leaves_the_job_complete(job, run, tmp_path):
    report = {**REPORT, "accuracy": {"fp32": 90.0, "deployed": 88.0}}
    (run / "report.json").write_text(json.dumps(report))
    result = collect(job, ended(tmp_path), run)
    assert (result.status, result.complete) == (Status.FAILED, True)
    assert result.failures == ["top-1 drop: 2.00 points (90.00 to 88.00), at most 1 allowed"]


def test_a_run_without_agreement_is_judged_by_its_worst_output(jobs_file, run, tmp_path):
    job = {"name": "a", "options": ["model.path=net.onnx", "data.path=x.npz"], "gate": {"min_cosine": 0.9}}
    rows = [{"name": name, "deployed": {"cosine": cosine}} for name, cosine in (("boxes", 0.99), ("k", None))]
    report = {**REPORT, "error": {"deployed_vs_fp32": {"agreement": None, "cosine": 0.99, "sqnr_db": 25.0}}}
    outcomes = []
    for outputs in (rows, [*rows, {"name": "scores", "deployed": {"cosine": 0.0}}]):
        (run / "report.json").write_text(json.dumps({**report, "outputs": outputs}))
        result = collect(read_jobs(jobs_file(jobs=[job]), {}).jobs[0], ended(tmp_path), run)
        assert (result.agreement, result.cosine) == (None, 0.99)
        outcomes.append((result.status, result.failures))
    assert outcomes == [(Status.PASSED, []), (Status.FAILED, ["cosine: 0, at least 0.9 wanted"])]


@pytest.mark.parametrize(
    ("log", "code", "reason"),
    [
        ("one\ndipo: model.path=x: no such file\n", 2, "model.path=x: no such file"),
        ("one\n\x1b[31mtwo\x1b[0m\x07\n", 1, "ended with exit code 1; last line of its log: two"),
        ("", -9, "ended with signal 9; its log is empty"),
    ],
)
def test_a_job_that_broke_says_why(job, tmp_path, log, code, reason):
    result = collect(job, ended(tmp_path, code, log), tmp_path / "a")
    assert (result.status, result.reason) == (Status.BROKEN, reason)
    assert not result.complete


def test_the_end_of_a_long_log_is_kept(job, tmp_path):
    result = collect(job, ended(tmp_path, 1, "\n".join(map(str, range(100)))), tmp_path / "a")
    assert result.log_tail == tuple(map(str, range(80, 100)))


@pytest.mark.parametrize("missing", ["report.json", "quantized.onnx"])
def test_a_job_that_leaves_no_files_is_broken_whatever_it_says(job, run, tmp_path, missing):
    (run / missing).unlink()
    result = collect(job, ended(tmp_path), run)
    assert result.status is Status.BROKEN
    assert missing in (result.reason or "")


def test_files_that_are_not_what_they_should_be_break_the_job_alone(job, run, tmp_path):
    (run / "quantized.onnx").write_bytes(b"no model")
    assert "cannot be read" in (collect(job, ended(tmp_path), run).reason or "")
    (run / "report.json").write_text("{}")
    assert "KeyError" in (collect(job, ended(tmp_path), run).reason or "")


def test_a_job_that_was_stopped_was_not_run_and_one_that_timed_out_is_broken(job, tmp_path):
    stopped = collect(job, ended(tmp_path, -15, reason="stopped by Ctrl-C", stopped=True), tmp_path / "a")
    assert (stopped.status, stopped.reason) == (Status.NOT_RUN, "stopped by Ctrl-C")
    late = collect(job, ended(tmp_path, -15, reason="ended after 2 minutes, its timeout"), tmp_path / "a")
    assert (late.status, late.reason) == (Status.BROKEN, "ended after 2 minutes, its timeout")


def test_a_job_that_ends_well_while_all_are_stopped_has_run(job, run, tmp_path):
    result = collect(job, ended(tmp_path, 0, reason="stopped by Ctrl-C", stopped=True), run)
    assert (result.status, result.reason) == (Status.PASSED, None)
    shutil.rmtree(run)
    assert collect(job, ended(tmp_path, 0), run).status is Status.BROKEN
