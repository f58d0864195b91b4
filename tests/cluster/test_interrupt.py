"""Ctrl-C, and SIGTERM as a batch system sends it, in the middle of a run."""

import signal
import subprocess
import sys
import time

import psutil
import pytest

WAYS = {
    signal.SIGINT: (130, "dipo: interrupted\n"),
    signal.SIGTERM: (143, "dipo: terminated\n"),
}


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["sequential", "parallel"])
@pytest.mark.parametrize("number", WAYS)
def test_a_signal_stops_the_workers_and_leaves_no_process_behind(tmp_path, number, schedule):
    folder = tmp_path / "run"
    process = start(
        f"run.dir={folder}", "cluster.workers=2", f"cluster.schedule={schedule}", until={"unit 1/", "alone-1: 13 units"}
    )
    workers = psutil.Process(process.pid).children(recursive=True)
    assert len([worker for worker in workers if worker.name().startswith("ray::")]) >= 2
    stopped(process, number, folder)
    deadline = time.monotonic() + 10
    while any(worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE for worker in workers):
        assert time.monotonic() < deadline, [worker.name() for worker in workers if worker.is_running()]
        time.sleep(0.2)


@pytest.mark.slow
@pytest.mark.parametrize("number", WAYS)
def test_a_signal_in_a_run_of_one_process(tmp_path, number):
    stopped(start(f"run.dir={tmp_path / 'run'}", "cluster=inline", until={"unit 2/"}), number, tmp_path / "run")
    assert list((tmp_path / "run" / "units").iterdir())


def start(*options: str, until: set[str]) -> subprocess.Popen[str]:
    """A run that has got so far."""
    common = ["+model=mobilenet", "+algo=brecq", "cluster.compile=false", *options]
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "dipo.launch", *common],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    for line in process.stdout:
        if any(line.startswith(words) for words in until):
            break
    return process


def stopped(process: subprocess.Popen[str], number: signal.Signals, folder) -> None:
    """Sends the signal; the run ends in time, cleanly, and says how to go on."""
    status, sentence = WAYS[number]
    process.send_signal(number)
    out, errors = process.communicate(timeout=10)
    assert process.returncode == status
    assert errors == sentence
    assert f"go on with: python -m dipo.launch run.resume={folder}" in out
    assert not list(folder.rglob("*.part"))
    assert not (folder / "quantized.onnx").exists()
    assert '"status": "stopped"' in (folder / "events.jsonl").read_text().splitlines()[-1]
