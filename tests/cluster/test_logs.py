import functools
import logging
import os
import threading

import pytest

from dipo.cluster.logs import LogFetcher, WorkerLog, append_worker_log, worker_log

log = logging.getLogger("dipo")


@pytest.fixture
def stderr(tmp_path):
    """A file that stands for a process' standard error."""
    with (tmp_path / "stderr").open("wb", buffering=0) as file:
        yield file


@pytest.fixture
def collect():
    made = []

    def start(**how):
        handler = WorkerLog(**{"stderr": None, **how})
        log.addHandler(handler)
        log.setLevel(logging.INFO)
        made.append(handler)
        return handler

    yield start
    for handler in made:
        handler.close()


def test_what_was_logged_is_drained_once(collect):
    handler = collect()
    log.info("unit %d", 3)
    log.warning("ä")
    lines = handler.drain().splitlines()
    assert [line.split(" ", 2)[2] for line in lines] == ["INFO unit 3", "WARNING ä"]
    assert handler.drain() == ""
    log.info("more")
    assert handler.drain().endswith("INFO more\n")


def test_of_too_much_the_newest_is_kept_and_the_rest_is_counted(collect):
    handler = collect(limit=4000)
    for index in range(1000):
        log.info("line %03d", index)
    first, *lines = handler.drain().splitlines()
    assert len("\n".join(lines)) < 4000
    assert len(lines) > 50
    assert first == f"... {1000 - len(lines)} lines were dropped here"
    assert [line[-3:] for line in lines] == [f"{index:03d}" for index in range(1000 - len(lines), 1000)]
    log.info("after")
    assert len(handler.drain().splitlines()) == 1


def test_a_line_longer_than_the_limit_keeps_its_end(collect):
    handler = collect(limit=100)
    log.info("%s!", "ä" * 500)
    text = handler.drain()
    assert len(text.encode()) <= 100
    assert text.endswith("ää!\n")


def test_standard_error_is_read_from_now_on_in_whole_lines(collect, stderr):
    stderr.write(b"before\n")
    handler = collect(stderr=stderr.fileno())
    stderr.write(b"raw\nhalf a ")
    log.info("record")
    record, raw = handler.drain().splitlines()
    assert (record.split(" ", 2)[2], raw) == ("INFO record", "stderr: raw")
    stderr.write(b"line\n\xff\n")
    assert handler.drain() == "stderr: half a line\nstderr: �\n"
    assert handler.drain() == ""


def test_standard_error_is_bounded_too(collect, stderr):
    handler = collect(stderr=stderr.fileno(), limit=1000)
    stderr.write(b"".join(b"line %06d\n" % index for index in range(10_000)))
    text = handler.drain()
    assert text.endswith("stderr: line 009999\n")
    assert len(text.encode()) < 1100


def test_a_standard_error_that_begins_anew_is_read_from_its_start(collect, stderr):
    handler = collect(stderr=stderr.fileno())
    stderr.write(b"a long first file\n")
    handler.drain()
    stderr.truncate(0)
    stderr.seek(0)
    stderr.write(b"new\n")
    assert handler.drain() == "stderr: new\n"


def test_where_standard_error_is_no_file_records_are_kept(collect):
    reading, writing = os.pipe()
    handler = collect(stderr=writing)
    os.write(writing, b"lost\n")
    log.info("kept")
    os.close(reading)
    os.close(writing)
    assert handler.drain().endswith("INFO kept\n")


def test_draining_from_another_thread_loses_nothing(collect):
    handler = collect()
    writer = threading.Thread(target=lambda: [log.info("%d", index) for index in range(2000)])
    writer.start()
    parts = []
    while writer.is_alive():
        parts.append(handler.drain())
    writer.join()
    lines = "".join([*parts, handler.drain()]).splitlines()
    assert [int(line.rsplit(" ", 1)[1]) for line in lines] == list(range(2000))


def test_the_driver_appends_to_a_file_for_each_worker(tmp_path):
    append_worker_log(tmp_path, 3, "")
    assert list(tmp_path.iterdir()) == []
    append_worker_log(tmp_path, 3, "a\n")
    append_worker_log(tmp_path, 3, "ä\n")
    assert (tmp_path / "workers" / "worker-3.log").read_text("utf-8") == "a\nä\n"


def test_an_actors_log_and_standard_error_come_to_the_driver(tmp_path, monkeypatch):
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")

    class Logging:
        def __init__(self, rank):
            self.log = worker_log(rank)

        def work(self):
            import sys

            log.info("at work")
            sys.stderr.write("python's\n")
            sys.stderr.flush()
            os.write(2, b"native\n")

        def drain_log(self):
            return self.log.drain()

    ray.init(address="local", num_cpus=1, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    try:
        actor = ray.remote(num_cpus=1)(Logging).remote(3)
        kept = functools.partial(append_worker_log, tmp_path)
        fetcher = LogFetcher(kept)
        ray.get(actor.work.remote())
        fetcher.fetch({3: actor})
        assert not (tmp_path / "workers").exists(), "not yet time"
        fetcher.fetch({3: actor}, patience=30)
        # A round at a poll asks; a later one keeps what was answered meanwhile.
        ray.get(actor.work.remote())
        hasty = LogFetcher(kept, interval=0)
        hasty.fetch({3: actor})
        hasty.fetch({}, patience=60)
        ray.kill(actor)
        with pytest.raises(ray.exceptions.RayActorError):
            for _ in range(1000):
                ray.get(actor.work.remote())
        hasty.fetch({3: actor}, patience=30)
    finally:
        ray.shutdown()
    lines = (tmp_path / "workers" / "worker-3.log").read_text("utf-8").splitlines()
    assert "INFO worker 3 starts on " in lines[0]
    assert lines[1].endswith("INFO at work")
    stderr = ["stderr: python's", "stderr: native"]
    assert lines[2:4] == stderr
    assert lines[4].endswith("INFO at work")
    assert lines[5:] == [*stderr, "... the log of this worker ends: ActorDiedError"]
