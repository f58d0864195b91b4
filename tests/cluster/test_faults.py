"""Workers, nodes and drivers are killed at random moments: the run ends with the bits of an undisturbed one.

The seeds are fixed, the moments they fall on are not: machines are never equally fast. Few kills run with the fast
tests, the others with the slow ones; how many there were, and how the runs ended, is printed at the end.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from dipo.config import compose_config

ROOT = Path(__file__).parents[2]
OPTIONS = [
    "+model=mobilenet",
    "+algo=qdrop",
    "precision=w4a4",
    "data.num=96",
    "data.eval_num=32",
    "data.batch_size=8",
    "algo.iters=24",
    "cluster.compile=false",
    "cluster.threads=1",
    "cluster.grad_shards=4",
    "cluster.retries=12",
    "cluster.replace_seconds=20",
]
SCHEDULES = ("sequential", "parallel")


@dataclass
class Tally:
    """What was killed, and how the runs ended."""

    kills: Counter[str] = field(default_factory=Counter)
    runs: Counter[str] = field(default_factory=Counter)


@pytest.fixture(scope="module")
def tally(request):
    found = Tally()
    yield found
    reporter = request.config.pluginmanager.get_plugin("terminalreporter")
    kills = ", ".join(f"{number} {what}s" for what, number in sorted(found.kills.items()))
    runs = ", ".join(f"{number} {outcome}" for outcome, number in sorted(found.runs.items()))
    with request.config.pluginmanager.get_plugin("capturemanager").global_and_fixture_disabled():
        reporter.write_line(f"\nkilled with SIGKILL: {kills} ({found.kills.total()} in all); runs: {runs}")


@pytest.fixture(scope="module")
def cluster():
    """Nodes on this machine, with room for one worker more than the runs ask for."""
    import ray
    from ray.cluster_utils import Cluster

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    small = {"num_cpus": 1, "object_store_memory": 100 << 20, "include_dashboard": False}
    made = Cluster(initialize_head=True, head_node_args=small)
    for _ in range(3):
        made.add_node(num_cpus=1, object_store_memory=100 << 20)
    yield made
    ray.shutdown()
    made.shutdown()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Undisturbed runs on one worker, by schedule."""
    folders = {}

    def run(schedule: str) -> Path:
        if schedule not in folders:
            folders[schedule] = tmp_path_factory.mktemp(schedule) / "run"
            start(folders[schedule], schedule, "cluster=inline")
        return folders[schedule]

    return run


def start(folder: Path, schedule: str, *more: str) -> None:
    from dipo.job import run_job

    assert run_job(compose_config([*OPTIONS, f"cluster.schedule={schedule}", f"run.dir={folder}", *more])) == 0


def outcome(folder: Path) -> dict[str, bytes]:
    names = ["statistics.safetensors", "quantized.onnx"]
    return {name: (folder / name).read_bytes() for name in names}


class Killer:
    """Kills something after each of some random waits, from the moment that the run has its workers to its end."""

    def __init__(self, seed: int, kill, tally: Tally, *, waits: tuple[float, float], limit: int) -> None:
        self.random, self.kill, self.tally, self.waits, self.limit = random.Random(seed), kill, tally, waits, limit
        self.begun = Path()
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.work)
        self.count = 0

    def work(self) -> None:
        while not self.begun.exists() and not self.over.wait(0.02):
            pass
        while self.count < self.limit and not self.over.wait(self.random.uniform(*self.waits)):
            what = self.kill(self.random)
            if what is not None:
                self.tally.kills[what] += 1
                self.count += 1

    def __enter__(self) -> Killer:
        self.thread.start()
        return self

    def __exit__(self, *_) -> None:
        self.over.set()
        self.thread.join()


def workers() -> list[psutil.Process]:
    """The processes of this test's workers, on all nodes of its cluster."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if (process.cmdline() or [""])[0].startswith("ray::RayWorker"):
                found.append(process)
    return sorted(found, key=lambda process: process.pid)


def kill_a_worker(rng: random.Random) -> str | None:
    alive = workers()
    if not alive:
        return None
    with contextlib.suppress(psutil.NoSuchProcess):
        rng.choice(alive).kill()
        return "worker"
    return None


def run_under_fire(folder, schedule, cluster, tally, whole, killer, *, num_workers=3) -> None:
    expected = outcome(whole(schedule))
    killer.begun = folder / "fingerprint.json"
    with killer:
        start(folder, schedule, f"cluster.address={cluster.address}", f"cluster.workers={num_workers}")
    assert killer.count, "nobody was killed: the run was over too soon"
    same = outcome(folder) == expected
    tally.runs["equal bit for bit" if same else "DIFFERENT"] += 1
    assert same
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    assert sum(event["event"] == "worker_dies" for event in events) >= 1


@pytest.mark.parametrize("schedule", ["sequential", pytest.param("parallel", marks=pytest.mark.slow)])
def test_a_killed_worker_is_replaced(tmp_path, cluster, tally, whole, schedule):
    killer = Killer(7, kill_a_worker, tally, waits=(0.2, 1.5), limit=1)
    run_under_fire(tmp_path / "run", schedule, cluster, tally, whole, killer)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_workers_are_killed_again_and_again(tmp_path, cluster, tally, whole, schedule, seed):
    killer = Killer(seed, kill_a_worker, tally, waits=(0.1, 2.5), limit=3)
    run_under_fire(tmp_path / "run", schedule, cluster, tally, whole, killer)


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [3, 4])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_lost_node_is_made_up_for(tmp_path, cluster, tally, whole, schedule, num_workers):
    """Three workers leave a node free for the one that died; where four have lost one, three go on alone."""

    def kill_a_node(rng):
        alive = set(workers())
        nodes = [(raylet, *raylet.children(recursive=True)) for raylet in raylets_without_the_driver(cluster)]
        busy = [processes for processes in nodes if alive.intersection(processes)]
        if not busy:
            return None
        for victim in rng.choice(busy):
            with contextlib.suppress(psutil.NoSuchProcess):
                victim.kill()
        return "node"

    killer = Killer(3, kill_a_node, tally, waits=(0.2, 2), limit=1)
    try:
        run_under_fire(tmp_path / "run", schedule, cluster, tally, whole, killer, num_workers=num_workers)
    finally:
        cluster.add_node(num_cpus=1, object_store_memory=100 << 20)


def raylets_without_the_driver(cluster) -> list[psutil.Process]:
    """The nodes that can be lost: not the head, and not the one through which this process talks to Ray."""
    from ray._private.worker import global_worker

    own = {cluster.head_node._raylet_socket_name, global_worker.node._raylet_socket_name}
    others = [node for node in cluster.list_all_nodes() if node._raylet_socket_name not in own]
    found = [
        psutil.Process(node.all_processes["raylet"][0].process.pid) for node in others if node.any_processes_alive()
    ]
    assert found
    return found


def resume_until_done(folder: Path, first: list[str], rng: random.Random, tally: Tally, *, kills: int, waits) -> None:
    """Kills driver after driver, each going on with what the one before left; the last one is left alone."""
    arguments = first
    for attempt in range(kills + 1):
        command = [sys.executable, "-m", "dipo.launch", *arguments]
        with (folder.parent / f"driver-{attempt}.log").open("w") as log:
            driver = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT)
        deadline = time.monotonic() + 600
        while attempt < kills and not (folder / "fingerprint.json").exists():
            assert time.monotonic() < deadline
            assert driver.poll() is None, (folder.parent / f"driver-{attempt}.log").read_text()
            time.sleep(0.1)
        if attempt < kills:
            with contextlib.suppress(subprocess.TimeoutExpired):
                driver.wait(rng.uniform(*waits))
            if driver.poll() is None:
                driver.kill()
                tally.kills["driver"] += 1
        assert driver.wait(900) in {0, -signal.SIGKILL}, (folder.parent / f"driver-{attempt}.log").read_text()
        # 1 worker and 3 in turns: the number does not matter.
        arguments = [f"run.resume={folder}", *first[-1:], f"cluster.workers={3 - 2 * (attempt % 2)}"]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_killed_driver_is_resumed(tmp_path, cluster, tally, whole, schedule, seed):
    expected = outcome(whole(schedule))
    folder = tmp_path / "run"
    options = [*OPTIONS, f"cluster.schedule={schedule}", f"run.dir={folder}", "cluster.workers=3"]
    options.append(f"cluster.address={cluster.address}")
    resume_until_done(folder, options, random.Random(seed), tally, kills=3, waits=(0.5, 5))
    same = outcome(folder) == expected
    tally.runs["equal bit for bit" if same else "DIFFERENT"] += 1
    assert same


@pytest.mark.slow
def test_a_killed_driver_with_a_ray_of_its_own_leaves_no_process_behind(tmp_path, tally, whole):
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "dipo.launch", *OPTIONS, f"run.dir={folder}", "cluster.workers=2"]
    driver = subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=ROOT)
    while not (folder / "units").exists():
        assert driver.poll() is None
        time.sleep(0.1)
    others = psutil.Process(driver.pid).children(recursive=True)
    assert any(process.name() == "raylet" for process in others)
    driver.kill()
    driver.wait()
    tally.kills["driver"] += 1
    _, alive = psutil.wait_procs(others, timeout=120)
    assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]
    subprocess.run([*command[:3], f"run.resume={folder}"], check=True, stdout=subprocess.DEVNULL, cwd=ROOT)
    same = outcome(folder) == outcome(whole("sequential"))
    tally.runs["equal bit for bit" if same else "DIFFERENT"] += 1
    assert same


@pytest.mark.slow
def test_begun_on_three_workers_and_resumed_on_one(tmp_path, whole):
    for schedule in SCHEDULES:
        folder = tmp_path / schedule
        start(folder, schedule, "cluster.workers=3")
        assert outcome(folder) == outcome(whole(schedule))
        for name in ("report.json", "quantized.onnx", *(f"units/qdrop-0{n:02}.safetensors" for n in range(4, 8))):
            (folder / name).unlink(missing_ok=True)
        from dipo.job import run_job

        assert run_job(compose_config([f"run.resume={folder}", "cluster.workers=1"])) == 0
        assert outcome(folder) == outcome(whole(schedule))
        shutil.rmtree(folder)
