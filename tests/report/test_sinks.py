import http.server
import json
import logging
import re
import subprocess
import sys
import threading
import time

import pytest

from dipo.errors import UserError
from dipo.report.events import FILE, Events, read_events
from dipo.report.sinks import MLFLOW_FILE, SINKS, open_sinks, scalars
from dipo.run import RunFolder

OPTIONS = {
    "model": {"name": "net", "path": None},
    "algo": {"iters": 320, "steps": ["qdrop"]},
    "precision": {"overrides": {"/features/*": {"weight_bits": 4}}},
    "seed": 0,
}
BEGIN = {
    "model": "net",
    "algo": "brecq",
    "precision": "w4a8",
    "platform": "ort",
    "versions": {"torch": "2.6.0", "ray": "2.40.0"},
    "config_hash": "0123456789ab",
}
END = {
    "status": "done",
    "seconds": 12.5,
    "accuracy": {"fp32": 99.5, "deployed": None},
    "error": {"a": {"sqnr_db": 36.0}},
}
METRICS = {
    "seconds/start workers": [(0, 1.5)],
    "qdrop/loss_first": [(0, 1.0), (4, 0.5)],
    "qdrop/loss_last": [(0, 0.25), (4, 0.125)],
    "qdrop/seconds": [(0, 2.0), (4, 2.0)],
    "qdrop/steps_per_second": [(0, 160.0), (4, 160.0)],
    "accuracy/fp32": [(0, 99.5)],
    "error/a/sqnr_db": [(0, 36.0)],
    "seconds/run": [(0, 12.5)],
}
"""What `tell` says, as a tracker has it: steps and values."""


@pytest.fixture
def folder(tmp_path) -> RunFolder:
    return RunFolder(tmp_path / "run")


def opened(names, folder):
    return open_sinks(names, folder, run_name="net-brecq", config=OPTIONS)


def unit_ends(events, index):
    events.emit(
        "unit_ends",
        step="qdrop",
        index=index,
        name=f"unit {index}",
        steps=320,
        loss_first=1 / (1 + index / 4),
        loss_last=0.25 / (1 + index / 4),
        seconds=2.0,
        steps_per_second=160.0,
    )


def tell(events):
    events.emit("run_begins", **BEGIN)
    events.emit("stage_ends", stage="start workers", seconds=1.5)
    unit_ends(events, 0)
    events.emit("worker_dies", worker=1, reason="killed", message="worker 1 died")
    unit_ends(events, 4)
    events.emit("run_ends", **END)


def test_numbers_of_an_event():
    unit = {"event": "unit_ends", "step": "bias_correction", "index": 7, "name": "n", "steps": 0}
    unit |= {"loss_first": None, "loss_last": None, "seconds": 0.5, "steps_per_second": None}
    found = scalars(unit)
    assert (found.values, found.step) == ({"bias_correction/seconds": 0.5}, 7)
    end = {"event": "run_ends", "time": "t", "status": "done", "seconds": 3, "accuracy.fp32": 99, "resumed": True}
    assert scalars(end).values == {"seconds/run": 3.0, "accuracy/fp32": 99.0}
    assert scalars({"event": "worker_dies", "worker": 3}).values == {}


def test_an_unknown_tracker_is_refused_with_the_choices(folder):
    with pytest.raises(UserError, match=r"run\.track 'wandb': choose from tensorboard, mlflow"):
        opened(["wandb"], folder)


@pytest.mark.parametrize(("name", "package"), [("tensorboard", "tensorboard"), ("mlflow", "mlflow")])
def test_a_missing_package_is_named_with_what_installs_it(folder, monkeypatch, name, package):
    for module in [module for module in sys.modules if module.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError) as caught:
        opened([name], folder)
    assert str(caught.value) == (
        f"run.track={name}: the package {package} is not installed or does not load, "
        "get it with: pip install 'dipo[tracking]'"
    )


def test_trackers_load_only_when_they_are_wanted():
    program = (
        "import sys, dipo.report.sinks; print([m for m in ('torch', 'mlflow', 'tensorboard') if m in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert answer.stdout == "[]\n"


def test_what_is_open_is_closed_where_another_one_cannot_be_opened(folder, monkeypatch):
    closed = []

    class Opened:
        name = "good"

        def __init__(self, folder, *, run_name, params):
            pass

        def take(self, event):
            raise NotImplementedError

        def close(self):
            closed.append(self)

    monkeypatch.setitem(SINKS, "good", Opened)
    with pytest.raises(UserError):
        opened(["good", "bad"], folder)
    assert len(closed) == 1
    (sink,) = opened(["good", "good"], folder)
    assert len(closed) == 1
    assert isinstance(sink, Opened), "named twice, opened once"


def test_tensorboard_has_the_figures_the_options_and_the_messages(folder):
    pytest.importorskip("tensorboard", reason="the extra 'tracking' is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with Events(folder.path / FILE, opened(["tensorboard"], folder)) as events:
        tell(events)
    assert not [event for event in read_events(folder.path / FILE) if event["event"] == "sink_fails"]
    written = EventAccumulator(str(folder.path / "tensorboard"), size_guidance={"tensors": 0})
    written.Reload()
    found = {
        name: [(scalar.step, scalar.value) for scalar in written.Scalars(name)] for name in written.Tags()["scalars"]
    }
    assert found == METRICS
    texts = {name: written.Tensors(name)[0].tensor_proto.string_val[0].decode() for name in written.Tags()["tensors"]}
    assert "| algo.iters | 320 |" in texts["config/text_summary"]
    assert texts["events/worker_dies/text_summary"] == "worker 1 died"


@pytest.fixture
def database(tmp_path, monkeypatch):
    """A database of this test's own, which the sink finds by the environment; gives a client of it."""
    mlflow = pytest.importorskip("mlflow", reason="the extra 'tracking' is not installed")
    pytest.importorskip("alembic", reason="the extra 'tracking' is not installed")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "of this test")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    return lambda: mlflow.MlflowClient(tracking_uri=uri)


def run_of(database, folder):
    return database().get_run(json.loads((folder.path / MLFLOW_FILE).read_text())["run_id"])


def test_mlflow_has_the_figures_the_options_and_the_status(folder, database, capfd, caplog):
    with Events(folder.path / FILE, opened(["mlflow"], folder)) as events:
        tell(events)
    assert not [event for event in read_events(folder.path / FILE) if event["event"] == "sink_fails"]
    assert "".join(capfd.readouterr()) == "", "the terminal is the run's own"
    run, client = run_of(database, folder), database()
    assert run.info.experiment_id == client.get_experiment_by_name("of this test").experiment_id
    assert (run.info.run_name, run.info.status) == ("net-brecq", "FINISHED")
    assert run.data.params == {
        "model.name": "net",
        "model.path": "null",
        "algo.iters": "320",
        "algo.steps": '["qdrop"]',
        "precision.overrides": '{"/features/*": {"weight_bits": 4}}',
        "seed": "0",
    }
    found = {
        name: [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, name)]
        for name in run.data.metrics
    }
    assert found == METRICS
    assert run.data.tags["versions.torch"] == "2.6.0"
    assert run.data.tags["dipo.run_folder"] == str(folder.path)
    # Tools that configure logging for themselves have silenced other loggers before.
    logging.getLogger("dipo").warning("still heard")
    assert "still heard" in caplog.text


def test_mlflow_goes_on_in_the_run_of_a_resumed_run(folder, database):
    with pytest.raises(KeyboardInterrupt), Events(folder.path / FILE, opened(["mlflow"], folder)) as events:
        unit_ends(events, 0)
        raise KeyboardInterrupt
    first = run_of(database, folder)
    assert first.info.status == "KILLED"
    with Events(folder.path / FILE, opened(["mlflow"], folder)) as events:
        assert run_of(database, folder).info.status == "RUNNING"
        unit_ends(events, 4)
    second = run_of(database, folder)
    assert second.info.run_id == first.info.run_id
    assert second.info.status == "FAILED", "nobody reported its end"
    history = database().get_metric_history(first.info.run_id, "qdrop/loss_first")
    assert [(metric.step, metric.value) for metric in history] == [(0, 1.0), (4, 0.5)]


def test_mlflow_begins_anew_where_its_run_is_gone(folder, database, caplog):
    for damaged in ('{"run_id": "' + "0" * 32 + '"}', "{"):
        (folder.path / MLFLOW_FILE).write_text(damaged)
        (sink,) = opened(["mlflow"], folder)
        sink.close()
        assert run_of(database, folder).info.run_name == "net-brecq"
    assert "MLflow no longer has the run" in caplog.text
    assert "is damaged" in caplog.text


class Server(http.server.BaseHTTPRequestHandler):
    """As much of an MLflow server as the sink asks for."""

    calls: list[str]

    def answer(self):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        call = self.path.partition("/mlflow/")[2].partition("?")[0]
        self.calls.append(call)
        known = {
            "experiments/get-by-name": {"experiment": {"experiment_id": "1", "name": "dipo"}},
            "runs/create": {"run": {"info": {"run_id": "r1", "experiment_id": "1", "status": "RUNNING"}, "data": {}}},
            "runs/get": {"run": {"info": {"run_id": "r1", "experiment_id": "1", "status": "RUNNING"}, "data": {}}},
        }
        body = json.dumps(known.get(call, {})).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = do_PATCH = answer  # noqa: N815 - http.server's names

    def log_message(self, *args):
        """Quiet."""


@pytest.fixture
def server(monkeypatch):
    pytest.importorskip("mlflow", reason="the extra 'tracking' is not installed")
    handler = type("OwnServer", (Server,), {"calls": []})
    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://user:secret@127.0.0.1:{running.server_port}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_JITTER", "0")
    yield running
    running.shutdown()
    running.server_close()


def test_a_run_goes_on_without_an_mlflow_server_that_goes_away(folder, server, caplog):
    with Events(folder.path / FILE, opened(["mlflow"], folder)) as events:
        unit_ends(events, 0)
        calls = list(server.RequestHandlerClass.calls)
        assert calls.count("runs/log-batch") == 2, "options, then the unit"
        server.shutdown()
        server.server_close()
        start = time.monotonic()
        unit_ends(events, 4)
        assert time.monotonic() - start < 30
        start = time.monotonic()
        unit_ends(events, 8)
        events.emit("run_ends", **END)
        assert time.monotonic() - start < 1, "it is asked no more"
    found = list(read_events(folder.path / FILE))
    assert [event["event"] for event in found] == ["unit_ends", "unit_ends", "sink_fails", "unit_ends", "run_ends"]
    assert found[2]["sink"] == "mlflow"
    assert "mlflow fails" in caplog.text
    assert "secret" not in json.dumps(found) + caplog.text


def test_an_mlflow_server_that_nobody_started_is_the_users_to_know(folder, server):
    server.shutdown()
    server.server_close()
    with pytest.raises(UserError) as caught:
        opened(["mlflow"], folder)
    text = str(caught.value)
    assert re.match(
        r"run\.track=mlflow: no MLflow can be used at http://127\.0\.0\.1:\d+ \(.*MLFLOW_TRACKING_URI", text
    )
    assert "secret" not in text
    assert "\n" not in text
    assert not (folder.path / MLFLOW_FILE).exists()
