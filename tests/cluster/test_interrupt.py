"""Ctrl-C in the middle of a run."""

import signal
import subprocess
import sys
import time

import psutil
import pytest


@pytest.mark.slow
def test_ctrl_c_stops_the_workers_and_leaves_no_process_behind(tmp_path):
    options = [
        "+model=mobilenet",
        "+algo=brecq",
        "cluster.compile=false",
        "cluster.workers=2",
        f"run.dir={tmp_path / 'run'}",
    ]
    command = [sys.executable, "-u", "-m", "dipo.launch", *options]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("unit 1/"):
            break
    workers = psutil.Process(process.pid).children(recursive=True)
    assert len([worker for worker in workers if worker.name().startswith("ray::")]) >= 2
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors == "dipo: interrupted\n"
    deadline = time.monotonic() + 10
    while any(worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE for worker in workers):
        assert time.monotonic() < deadline, [worker.name() for worker in workers if worker.is_running()]
        time.sleep(0.2)
    assert not list((tmp_path / "run").rglob("*.part"))
    assert not (tmp_path / "run" / "quantized.onnx").exists()
