import re
import subprocess
import sys
import time
import urllib.request

import pytest

from dipo.cluster.metrics import INTERVAL_SECONDS, NoMetrics, RayMetrics, resident_mb

TAGS = {"run": "net-brecq", "worker": "3"}


class Clock:
    """Stands still until it is told to go on."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def shown(monkeypatch):
    """What goes to Ray's metrics, in their order: name, value, tags."""
    from ray.util import metrics

    seen = []

    def record(metric, value=1.0, tags=None):
        seen.append((metric.info["name"], value, metric.info["default_tags"] | (tags or {})))

    monkeypatch.setattr(metrics.Gauge, "set", record)
    monkeypatch.setattr(metrics.Counter, "inc", record)
    return seen


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def metrics(shown, clock):
    return RayMetrics(run="net-brecq", worker=3, device="cpu", clock=clock)


def values(shown, name):
    return [value for metric, value, _ in shown if metric == name]


def test_a_rate_is_what_was_done_since_it_was_last_shown(metrics, shown, clock):
    for done in range(1, 101):
        metrics.progress(done)
        clock.now += 0.1
    rates = values(shown, "dipo_steps_per_second")
    assert rates == pytest.approx([10.0] * len(rates))
    assert 4 <= len(rates) <= 9.9 / INTERVAL_SECONDS
    assert len(values(shown, "dipo_memory_mb")) == len(rates)
    assert all(tags == TAGS for _, _, tags in shown)


def test_the_time_between_two_calls_is_no_part_of_a_rate(metrics, shown, clock):
    metrics.progress(1)
    clock.now += 4
    metrics.progress(41)
    clock.now += 1000
    metrics.progress(1)
    clock.now += 4
    metrics.progress(81)
    assert values(shown, "dipo_steps_per_second") == [10.0, 20.0]


def test_calls_shorter_than_the_interval_have_a_rate_together(metrics, shown, clock):
    for _ in range(50):
        for done in range(1, 11):
            metrics.progress(done)
            clock.now += 0.1
    rates = values(shown, "dipo_steps_per_second")
    assert rates == pytest.approx([10.0] * len(rates))
    assert 20 <= len(rates) <= 25


def test_steps_longer_than_the_interval_have_a_rate(metrics, shown, clock):
    for done in range(1, 5):
        metrics.progress(done)
        clock.now += 10
    assert values(shown, "dipo_steps_per_second") == pytest.approx([0.1] * 3)


def test_every_unit_is_counted(metrics, shown):
    for _ in range(3):
        metrics.unit_done()
    assert values(shown, "dipo_units_done") == [1.0] * 3


def test_gpu_memory_is_shown_where_there_is_a_gpu(shown, clock, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 3 * 2**30)
    metrics = RayMetrics(run="r", worker=0, device="cuda", clock=clock)
    metrics.progress(1)
    clock.now += 3
    metrics.progress(2)
    assert values(shown, "dipo_gpu_memory_mb") == [3072.0]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
def test_resident_memory_grows_with_what_is_held():
    before = resident_mb()
    held = b"x" * (64 << 20)
    assert 60 < resident_mb() - before < 80
    assert len(held) == 64 << 20


def test_in_this_process_nothing_of_ray_is_imported():
    program = """
import sys
from dipo.cluster.metrics import NoMetrics
metrics = NoMetrics()
metrics.progress(1)
metrics.unit_done()
print("ray" in sys.modules, "torch" in sys.modules)
"""
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert answer.stdout == "False False\n"
    assert {name for name in dir(NoMetrics) if name[0] != "_"} == {name for name in dir(RayMetrics) if name[0] != "_"}


@pytest.fixture
def local_ray(monkeypatch):
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(
        address="local",
        num_cpus=1,
        include_dashboard=False,
        logging_level="ERROR",
        log_to_driver=False,
        _system_config={"metrics_report_interval_ms": 500},
    )
    yield ray
    ray.shutdown()


def measured(ray):
    """An actor that has shown its metrics."""

    class Measured:
        def __init__(self):
            clock = iter([0.0, 4.0]).__next__
            self.metrics = RayMetrics(run="net-brecq", worker=3, device="cpu", clock=clock)
            self.metrics.progress(1)
            self.metrics.progress(41)
            self.metrics.unit_done()
            self.metrics.unit_done()

        def metric_names(self):
            return sorted(metric.info["name"] for metric in vars(self.metrics).values() if hasattr(metric, "info"))

    return ray.remote(num_cpus=1)(Measured).remote()


def test_an_actor_shows_its_metrics_to_prometheus(local_ray):
    """The last part needs Ray's metrics agent, which only `ray[default]` brings."""
    actor = measured(local_ray)
    assert local_ray.get(actor.metric_names.remote()) == ["dipo_memory_mb", "dipo_steps_per_second", "dipo_units_done"]
    port = local_ray.nodes()[0]["MetricsExportPort"]
    if port <= 0:
        pytest.skip("without ray[default] there is no metrics agent to ask")
    deadline = time.monotonic() + 60
    found = {}
    while len(found) < 3 and time.monotonic() < deadline:
        time.sleep(0.5)
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
                text = answer.read().decode()
        except OSError:  # not up yet
            continue
        found = dict(re.findall(r'^ray_(dipo_\w+)\{.*run="net-brecq",worker="3".*\} (\S+)$', text, re.MULTILINE))
    assert float(found["dipo_steps_per_second"]) == 10.0
    assert float(found["dipo_units_done_total"]) == 2.0
    assert float(found["dipo_memory_mb"]) > 10
