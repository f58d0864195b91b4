import datetime
import errno
import json
import logging
import math
import os
import resource
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from dipo.report.events import FILE, Events, Torn, config_hash, read_events, reason_of

UNIT = {"step": "qdrop", "index": 3, "name": "/layer1", "steps": 320, "seconds": 2.5, "steps_per_second": 128.0}


class Listening:
    """A sink that keeps what it is given, and may break."""

    name = "listening"

    def __init__(self, *, breaks_at: str | None = None, breaks_closing: bool = False):
        self.breaks_at, self.breaks_closing = breaks_at, breaks_closing
        self.heard, self.closed = [], False

    def take(self, event):
        if event["event"] == self.breaks_at:
            raise ConnectionError("no answer from http://user:secret@server:5000/api\nmore")
        self.heard.append(event)

    def close(self):
        if self.breaks_closing:
            raise ConnectionError("gone")
        self.closed = True


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / FILE


def names(path):
    return [event["event"] for event in read_events(path)]


def test_an_event_is_a_line_with_its_time_its_name_and_flat_fields(path):
    before = datetime.datetime.now(tz=datetime.UTC)
    with Events(path) as events:
        events.emit("unit_ends", **UNIT, loss_first=0.5, loss_last=0.25)
        events.emit("run_ends", status="done", seconds=3, error={"a_vs_b": {"cosine": 1.0}}, files=[Path("x"), 2])
    lines = path.read_text("utf-8").splitlines()
    first, second = map(json.loads, lines)
    time = datetime.datetime.fromisoformat(first["time"])
    assert time.tzinfo is not None
    assert before - datetime.timedelta(milliseconds=1) <= time <= datetime.datetime.now(tz=datetime.UTC)
    assert list(first)[:2] == ["time", "event"]
    assert first == {"time": first["time"], "event": "unit_ends", **UNIT, "loss_first": 0.5, "loss_last": 0.25}
    assert second["error.a_vs_b.cosine"] == 1.0
    assert second["files"] == ["x", 2]


def test_numbers_that_json_does_not_know_are_null_and_those_of_numpy_are_numbers(path):
    with Events(path) as events:
        events.emit(
            "unit_ends",
            **UNIT | {"steps": np.int64(7), "seconds": np.float32(0.5)},
            loss_first=math.nan,
            loss_last=np.float64("inf"),
            losses=[-math.inf, 1.0],
            loss=None,
        )
    (event,) = read_events(path)
    assert (event["steps"], event["seconds"], event["loss_first"], event["loss_last"]) == (7, 0.5, None, None)
    assert (event["losses"], event["loss"]) == ([None, 1.0], None)


def test_a_text_is_one_line_whatever_it_holds(path):
    text = 'unit "ä"\n\u2028{"event": "run_ends"}\x00'
    with Events(path) as events:
        events.emit("run_resumes", message=text)
    assert path.read_bytes().count(b"\n") == 1
    (event,) = read_events(path)
    assert event["message"] == text


@pytest.mark.parametrize(
    ("event", "fields", "error", "says"),
    [
        ("unit_end", {}, ValueError, "unknown event 'unit_end'.*unit_ends"),
        ("stage_ends", {"stage": "load"}, ValueError, "lacks seconds"),
        ("run_resumes", {"time": 1}, ValueError, "time"),
        ("run_ends", {"status": "ok", "seconds": 1}, ValueError, "done, failed, stopped"),
        ("run_resumes", {"what": object()}, TypeError, "object"),
    ],
)
def test_a_wrong_event_is_refused_and_nothing_is_written(path, event, fields, error, says):
    with Events(path) as events, pytest.raises(error, match=says):
        events.emit(event, **fields)
    assert path.read_bytes() == b""


def test_a_resumed_run_goes_on_in_the_same_file(path):
    for _ in range(2):
        with Events(path) as events:
            events.emit("run_resumes")
    assert names(path) == ["run_resumes", "run_resumes"]


def test_a_torn_last_line_is_ended_and_is_reported(path):
    with Events(path) as events:
        events.emit("stage_begins", stage="load")
        events.emit("stage_ends", stage="load", seconds=1)
    whole = path.read_bytes()
    torn = whole[:-20]
    path.write_bytes(torn)
    first, last = read_events(path)
    assert first["event"] == "stage_begins"
    assert last == Torn(2, torn.splitlines()[1].decode(), is_last=True)
    with Events(path) as events:
        events.emit("run_resumes")
    first, middle, last = read_events(path)
    assert isinstance(middle, Torn)
    assert (middle.number, middle.is_last) == (2, False)
    assert (first["event"], last["event"]) == ("stage_begins", "run_resumes")


def test_a_last_line_that_lacks_only_its_newline_is_whole(path):
    with Events(path) as events:
        events.emit("run_resumes")
    path.write_bytes(path.read_bytes()[:-1])
    assert names(path) == ["run_resumes"]
    with Events(path) as events:
        events.emit("run_resumes")
    assert names(path) == ["run_resumes"] * 2


@pytest.mark.parametrize("line", [b"", b"3", b'{"event": "run_ends"}', b"\xff\xfe", b"null"])
def test_no_line_is_left_out(path, line):
    path.write_bytes(line + b"\n")
    (torn,) = read_events(path)
    assert torn == Torn(1, line.decode(errors="replace"), is_last=False)


def test_a_killed_process_leaves_whole_lines(path):
    program = """
import itertools, pathlib, sys
from dipo.report.events import Events
events = Events(pathlib.Path(sys.argv[1]))
for index in itertools.count():
    events.emit("run_resumes", index=index, message="x" * 3000)
    if index == 50:
        print("begun", flush=True)
"""
    process = subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=20)
    found = list(read_events(path))
    if isinstance(found[-1], Torn):  # the kernel may be stopped within a call
        assert found.pop().is_last
    assert [event["index"] for event in found] == list(range(len(found)))
    assert len(found) > 50


def test_threads_do_not_mix_their_lines(path):
    with Events(path) as events:

        def work(worker):
            for index in range(100):
                events.emit("worker_dies", worker=worker, reason="x" * 500, index=index)

        threads = [threading.Thread(target=work, args=(worker,)) for worker in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    found = list(read_events(path))
    for worker in range(4):
        assert [event["index"] for event in found if event["worker"] == worker] == list(range(100))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_is_not_kept_quiet():
    events = Events(Path("/dev/full"))
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        events.emit("run_resumes")
    events.close()


def test_a_line_that_finds_room_for_half_of_it_is_left_out(path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Events(path) as events:
        events.emit("run_resumes")
        before = path.read_bytes()
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 20, hard))
        try:
            with pytest.raises(OSError, match=os.strerror(errno.EFBIG)):
                events.emit("run_resumes", message="y" * 100)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert path.read_bytes() == before
        events.emit("run_resumes", message="room again")
    assert names(path) == ["run_resumes"] * 2


@pytest.mark.parametrize(
    ("error", "status"),
    [(RuntimeError("broke\nhere"), "failed"), (KeyboardInterrupt(), "stopped"), (SystemExit(), "stopped")],
)
def test_a_run_that_breaks_has_an_end(path, error, status):
    sink = Listening()
    with pytest.raises(type(error)), Events(path, [sink]) as events:
        events.emit("stage_begins", stage="load")
        raise error
    *_, last = read_events(path)
    assert (last["event"], last["status"]) == ("run_ends", status)
    assert last["message"].startswith(type(error).__name__)
    assert 0 <= last["seconds"] < 60
    assert sink.closed


def test_a_run_ends_once(path):
    with pytest.raises(RuntimeError), Events(path) as events:
        events.emit("run_ends", status="done", seconds=1)
        raise RuntimeError
    assert names(path) == ["run_ends"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_what_ended_the_run_is_raised_even_where_the_disk_is_full(caplog):
    with pytest.raises(KeyError, match="cause"), Events(Path("/dev/full")):
        raise KeyError("cause")
    assert "could not be written" in caplog.text


def test_sinks_see_what_the_file_has(path):
    sink = Listening()
    with Events(path, [sink]) as events:
        events.emit("run_ends", status="done", seconds=np.float32(1), accuracy={"fp32": math.nan})
        assert not sink.closed
    assert sink.heard == list(read_events(path))
    assert sink.closed


def test_a_sink_that_breaks_is_dropped_and_the_run_goes_on(path, caplog):
    good, bad = Listening(), Listening(breaks_at="stage_begins")
    bad.name = "bad"
    with caplog.at_level(logging.WARNING, "dipo"), Events(path, [bad, good]) as events:
        events.emit("run_resumes")
        events.emit("stage_begins", stage="load")
        events.emit("stage_ends", stage="load", seconds=1)
    assert names(path) == ["run_resumes", "stage_begins", "sink_fails", "stage_ends"]
    fails = list(read_events(path))[2]
    assert (fails["sink"], fails["reason"]) == ("bad", "ConnectionError: no answer from http://server:5000/api")
    assert "bad fails" in caplog.text
    assert "secret" not in path.read_text() + caplog.text
    assert [event["event"] for event in bad.heard] == ["run_resumes"]
    assert sorted(event["event"] for event in good.heard) == sorted(names(path))
    assert (bad.closed, good.closed) == (False, True)


def test_sinks_that_break_on_each_others_failure_are_all_dropped(path):
    first, second = Listening(breaks_at="run_resumes"), Listening(breaks_at="sink_fails")
    with Events(path, [first, second]) as events:
        events.emit("run_resumes")
        events.emit("run_resumes")
    assert names(path) == ["run_resumes", "sink_fails", "sink_fails", "run_resumes"]
    assert second.heard == []


def test_a_sink_that_breaks_at_its_end_keeps_no_other_from_closing(path):
    sinks = [Listening(breaks_closing=True), Listening()]
    with Events(path, sinks):
        pass
    assert names(path) == ["sink_fails"]
    assert sinks[1].closed


def test_a_hash_tells_configurations_apart():
    config = {"a": {"x": 1, "y": [1.5, None]}, "b": "t"}
    same = {"b": "t", "a": {"y": [1.5, None], "x": 1}}
    assert config_hash(config) == config_hash(same)
    assert config_hash(config) != config_hash({**config, "b": "u"})
    assert len(config_hash(config)) == 12


def test_a_reason_is_one_short_line():
    assert reason_of(ValueError("a\nb")) == "ValueError: a"
    assert reason_of(KeyboardInterrupt()) == "KeyboardInterrupt"
    assert len(reason_of(ValueError("x" * 9999))) == 500
