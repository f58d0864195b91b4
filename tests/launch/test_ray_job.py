"""launch/ray_job.sh against a Ray head with a job server, started here."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "launch" / "ray_job.sh"
RAY = [sys.executable, "-m", "ray.scripts.scripts"]
QUICK = ["+model=mobilenet", "+algo=none", "data.num=32", "data.eval_num=16", "cluster.compile=false"]

slow = pytest.mark.slow


def free_ports(count: int) -> list[int]:
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A Ray head on the loopback interface that asks for a token; the environment of those who may use it."""
    if importlib.util.find_spec("aiohttp_cors") is None:
        pytest.skip("Ray has no job server here (pip install 'ray[default]')")
    folder = tmp_path_factory.mktemp("ray")
    token = folder / "token"
    token.write_text("0123456789abcdef" * 4)
    token.chmod(0o600)
    gcs, jobs, client = free_ports(3)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{jobs}",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "DIPO_PYTHON": sys.executable,
    }
    # Unix sockets lie in this folder, and their names must not be longer than some hundred characters.
    with tempfile.TemporaryDirectory(prefix="dipo-", dir="/tmp") as short, (folder / "ray.log").open("w") as log:
        head = subprocess.Popen(
            [*RAY, "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={gcs}", "--num-cpus=2",
             "--num-gpus=0", "--include-dashboard=true", f"--dashboard-port={jobs}", "--dashboard-agent-listen-port=0",
             f"--ray-client-server-port={client}", f"--temp-dir={short}"],
            env=environment, stdout=log, stderr=log,
        )  # fmt: skip
        try:
            wait_for_server(jobs, head)
            yield environment
        finally:
            head.terminate()
            head.wait(timeout=60)


def wait_for_server(port: int, head: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert head.poll() is None, "Ray's head ended"
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    pytest.fail("Ray's job server did not come up")


def submit(environment: dict[str, str], folder: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [SCRIPT, *arguments],
        cwd=folder, env=environment | more, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


@slow
def test_a_job_runs_where_it_was_called_and_its_output_comes_back(cluster, tmp_path):
    done = submit(cluster, tmp_path, *QUICK, "run.dir=a run's folder")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "run folder: a run's folder" in done.stdout
    assert (tmp_path / "a run's folder" / "quantized.onnx").is_file()


@slow
def test_a_jobs_exit_status_comes_back(cluster, tmp_path):
    done = submit(cluster, tmp_path, "+model=mobilenet", "algo.iters=many")
    assert done.returncode == 2
    assert "dipo: algo.iters 'many': give a whole number >= 1" in done.stdout


@slow
def test_a_folder_is_sent_and_the_job_runs_in_it(cluster, tmp_path):
    sent = tmp_path / "sent"
    sent.mkdir()
    (sent / "mobilenet.onnx").write_bytes((ROOT / "dipo" / "zoo" / "mobilenet.onnx").read_bytes())
    more = {"DIPO_WORKING_DIR": str(sent), "DIPO_REMOTE_PYTHON": sys.executable}
    done = submit(cluster, tmp_path, *QUICK, "model.path=mobilenet.onnx", f"run.dir={tmp_path / 'kept'}", **more)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "kept" / "report.json").is_file()
    assert [path.name for path in sent.iterdir()] == ["mobilenet.onnx"]


@slow
def test_sigterm_stops_the_job(cluster, tmp_path):
    log = tmp_path / "log"
    options = [*QUICK, "+algo=brecq", "algo.iters=400", "run.dir=run"]
    with log.open("w") as out:
        script = subprocess.Popen([SCRIPT, *options], cwd=tmp_path, env=cluster, stdout=out, stderr=out)
        deadline = time.monotonic() + 200
        while not list(tmp_path.glob("run/units/*")):
            assert script.poll() is None, log.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.2)
        script.send_signal(signal.SIGTERM)
        assert script.wait(timeout=60) == 143, log.read_text()
    assert "was stopped" in log.read_text()
    assert not (tmp_path / "run" / "quantized.onnx").exists()


@slow
def test_a_wrong_token_is_refused(cluster, tmp_path):
    wrong = tmp_path / "token"
    wrong.write_text("f" * 64)
    done = submit(cluster, tmp_path, *QUICK, RAY_AUTH_TOKEN_PATH=str(wrong))
    assert done.returncode == 2
    assert "token is invalid" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"DIPO_PYTHON": "/no/python"}, "no /no/python, set DIPO_PYTHON to the python that has dipo"),
        ({"DIPO_WORKING_DIR": "."}, "DIPO_WORKING_DIR is a copy that ends with the job, give run.dir="),
        ({"RAY_API_SERVER_ADDRESS": "http://127.0.0.1:9"}, "no Ray job server takes our call at http://127.0.0.1:9 ("),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(tmp_path, more, sentence):
    done = submit(dict(os.environ) | {"DIPO_PYTHON": sys.executable}, tmp_path, "+model=mobilenet", **more)
    assert done.returncode == 2
    assert done.stderr.startswith(f"ray_job.sh: {sentence}")
    assert len(done.stderr.splitlines()) == 1
