"""launch/slurm.sbatch and slurm_array.sbatch on a real SLURM: two nodes, started here on the loopback interface."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]
CLUSTER = Path(__file__).with_name("slurm_cluster.sh")
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"}
OPTIONS = [
    "+model=mobilenet",
    "+algo=brecq",
    "data.num=64",
    "data.eval_num=32",
    "algo.iters=40",
    "cluster.compile=false",
    "cluster.workers=2",
    "cluster.grad_shards=2",
    "cluster.threads=1",
]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="SLURM runs on Linux")


@dataclass(frozen=True)
class Slurm:
    """A SLURM and the folder from which jobs are submitted."""

    folder: Path
    environment: dict[str, str]

    def call(self, *command: str) -> str:
        """The output of one of SLURM's commands."""
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, (command, done.stderr)
        return done.stdout.strip()

    def submit(self, *arguments: str, script: str = "slurm.sbatch", sbatch: tuple[str, ...] = ()) -> str:
        """Submits a script of launch/; the job's number."""
        return self.call("sbatch", "--parsable", *sbatch, str(ROOT / "launch" / script), *arguments)

    def facts(self, job: str) -> dict[str, str]:
        """What scontrol knows of a job."""
        return dict(re.findall(r"(\w+)=(\S+)", self.call("scontrol", "--oneliner", "show", "job", job)))

    def end(self, job: str) -> dict[str, str]:
        """Waits until a job has ended and its processes are gone."""

        def ended() -> bool:
            return self.facts(job)["JobState"] in ENDED and job not in self.call("squeue", "--noheader", "--format=%i")

        wait_for(ended, f"job {job} to end")
        return self.facts(job)

    def output(self, job: str) -> str:
        """What a job wrote."""
        path = self.folder / f"slurm-{job}.out"
        return path.read_text() if path.exists() else ""

    def run(self, job: str) -> Path:
        """A job's run folder."""
        return self.folder / "outputs" / f"slurm-{job}"

    def units(self, job: str) -> int:
        """Units that a job has finished."""
        return len(list(self.run(job).glob("units/*.safetensors")))

    def completed(self, job: str) -> bytes:
        """The network of a job that has to have ended well."""
        facts = self.end(job)
        assert (facts["JobState"], facts["ExitCode"]) == ("COMPLETED", "0:0"), self.output(job)
        return (self.run(job) / "quantized.onnx").read_bytes()


def wait_for(condition: Callable[[], bool], what: str, seconds: float = 300) -> None:
    """Waits until a condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.1)


def left_behind(job: str) -> list[str]:
    """Processes and files of a job's Ray that are still there."""
    files = [str(path) for path in Path("/tmp").glob(f"dipo-{job}.*")]
    for process in psutil.process_iter(["cmdline"]):
        line = " ".join(process.info["cmdline"] or [])
        if f"/dipo-{job}." in line:
            files.append(line)
    return files


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    folder = tmp_path_factory.mktemp("slurm")
    started = subprocess.run(
        [CLUSTER, "start", folder], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False
    )
    try:
        if started.returncode:
            pytest.skip(started.stderr.strip().splitlines()[-1])
        submitted = folder / "submitted from here"
        submitted.mkdir()
        own = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "SLURM_", "SBATCH_"))}
        own |= {"SLURM_CONF": str(folder / "slurm.conf"), "DIPO_PYTHON": sys.executable, "DIPO_ROOT": str(ROOT)}
        yield Slurm(submitted, own)
    finally:
        subprocess.run([CLUSTER, "stop", folder], check=True, timeout=120)


@pytest.fixture(scope="module")
def undisturbed(slurm: Slurm) -> bytes:
    """Two jobs at the same time on one node; the network that both wrote."""
    jobs = [slurm.submit(*OPTIONS, sbatch=("--nodelist=n1",)) for _ in range(2)]
    wait_for(lambda: all(slurm.units(job) for job in jobs), "both jobs to reconstruct")
    assert [slurm.facts(job)["JobState"] for job in jobs] == ["RUNNING", "RUNNING"]
    networks = [slurm.completed(job) for job in jobs]
    assert networks[0] == networks[1]
    for job in jobs:
        assert left_behind(job) == []
    return networks[0]


def test_two_jobs_share_a_node_and_leave_nothing_but_their_runs(slurm, undisturbed):
    outputs = sorted(path.name for path in (slurm.folder / "outputs").iterdir())
    assert [name for name in outputs if not re.fullmatch(r"slurm-\d+", name)] == []
    assert len(undisturbed) > 10_000


@pytest.mark.slow
def test_two_nodes_write_the_same_network(slurm, undisturbed):
    job = slurm.submit(*OPTIONS, "cluster.workers=5", "run.dir=two nodes", sbatch=("--nodes=2", "--cpus-per-task=3"))
    facts = slurm.end(job)
    assert (facts["JobState"], facts["NumNodes"]) == ("COMPLETED", "2"), slurm.output(job)
    assert (slurm.folder / "two nodes" / "quantized.onnx").read_bytes() == undisturbed
    assert left_behind(job) == []


@pytest.mark.slow
def test_only_the_owner_can_read_the_token_and_ray_stays_on_loopback(slurm):
    job = slurm.submit(*OPTIONS, "algo.iters=400")
    wait_for(lambda: slurm.units(job) > 0, "the first unit")
    token = slurm.folder / "outputs" / f".slurm-{job}.token"
    assert token.stat().st_mode & 0o777 == 0o600
    assert re.fullmatch("[0-9a-f]{64}", token.read_text())
    ray = [process for process in psutil.process_iter(["cmdline"]) if f"/dipo-{job}." in str(process.info["cmdline"])]
    listening = [
        connection.laddr.ip
        for process in ray
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert listening
    assert {ip.removeprefix("::ffff:") for ip in listening} == {"127.0.0.1"}
    slurm.call("scancel", job)
    assert slurm.end(job)["JobState"] == "CANCELLED"
    assert not token.exists()
    assert left_behind(job) == []


@pytest.mark.slow
def test_a_users_mistake_is_the_jobs_exit_status(slurm):
    job = slurm.submit("+model=mobilenet", "algo.iters=many")
    facts = slurm.end(job)
    assert (facts["JobState"], facts["ExitCode"]) == ("FAILED", "2:0")
    assert "dipo: algo.iters 'many': give a whole number >= 1\n" in slurm.output(job)


@pytest.mark.slow
def test_an_array_takes_a_line_for_each_task(slurm):
    (slurm.folder / "models.txt").write_text(
        '# two of them\n\n+model=mobilenet model.name="net one"\n+model=mobilenet model.name=two calib=minmax\n'
    )
    few = ("+algo=none", "data.num=32", "data.eval_num=16", "cluster.workers=1")
    job = slurm.submit("models.txt", *few, script="slurm_array.sbatch", sbatch=("--array=1-3",))
    wait_for(lambda: not slurm.call("squeue", "--noheader", f"--job={job}"), "the array to end")
    configs = [(slurm.run(f"{job}_{task}") / "config.yaml").read_text() for task in (1, 2)]
    assert ["name: net one\n" in configs[0], "name: two\n" in configs[1]] == [True, True]
    assert all((slurm.run(f"{job}_{task}") / "report.json").exists() for task in (1, 2))
    assert "models.txt: has no line 3" in slurm.output(f"{job}_3")


@pytest.mark.slow
def test_a_requeued_job_goes_on_with_its_run(slurm, undisturbed):
    job = slurm.submit(*OPTIONS)
    wait_for(lambda: slurm.units(job) > 1, "two units")
    slurm.call("scontrol", "requeue", job)
    wait_for(lambda: slurm.facts(job)["JobState"] == "PENDING", "the job to wait again")
    finished = slurm.units(job)
    assert left_behind(job) == []
    first = {path.name: path.stat().st_mtime_ns for path in slurm.run(job).glob("units/*.safetensors")}
    slurm.call("scontrol", "update", f"JobId={job}", "StartTime=now")
    assert slurm.completed(job) == undisturbed
    assert 1 < finished < slurm.units(job)
    assert {name: (slurm.run(job) / "units" / name).stat().st_mtime_ns for name in first} == first
    assert slurm.facts(job)["Restarts"] == "1"


@pytest.mark.slow
@pytest.mark.parametrize("how", [("scancel", "--signal=TERM"), ("scancel", "--batch", "--signal=USR1")])
def test_sigterm_ends_a_run_cleanly_and_another_job_goes_on_with_it(slurm, undisturbed, how):
    """The second is what SLURM sends before the time limit."""
    job = slurm.submit(*OPTIONS)
    wait_for(lambda: slurm.units(job) > 1, "two units")
    slurm.call(*how, job)
    sent = time.monotonic()
    facts = slurm.end(job)
    assert time.monotonic() - sent < 60
    assert (facts["JobState"], facts["ExitCode"]) == ("FAILED", "143:0"), slurm.output(job)
    assert left_behind(job) == []
    finished = slurm.units(job)
    again = slurm.submit(f"run.resume=outputs/slurm-{job}")
    assert slurm.end(again)["JobState"] == "COMPLETED", slurm.output(again)
    assert (slurm.run(job) / "quantized.onnx").read_bytes() == undisturbed
    assert 1 < finished < slurm.units(job)
