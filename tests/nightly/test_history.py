import contextlib
import multiprocessing
import sqlite3

import pytest
from sqlalchemy.exc import OperationalError

from dipo.errors import UserError
from dipo.nightly.gates import GateOutcome
from dipo.nightly.history import History, HistoryError
from dipo.nightly.result import Status


@pytest.fixture
def history(tmp_path):
    with contextlib.closing(History(str(tmp_path / "nights" / "history.sqlite"))) as history:
        yield history


def night(history, *results, name="n") -> int:
    number = history.start_night(name, started="2026-01-02T03:04:05+00:00", version="0.1.0", jobs="jobs.yaml")
    for result in results:
        history.add(number, result)
    return number


def test_a_result_comes_back_as_it_was(history, job_result):
    gate = GateOutcome("min_cosine", 0.99, 0.998, True, "cosine: 0.998, at least 0.99 wanted")
    result = job_result(gates=(gate,), status=Status.FAILED)
    night(history, result, name="first")
    past = history.previous("net-none", night(history))
    assert past is not None
    assert past.result == result
    assert (past.night, past.started) == ("first", "2026-01-02T03:04:05+00:00")


def test_the_night_before_is_the_last_one_in_which_the_job_ran_to_its_end(history, job_result):
    night(history, job_result(seconds=1.0), name="one")
    night(history, job_result(seconds=2.0, status=Status.FAILED), name="two")
    night(history, job_result(seconds=3.0, status=Status.BROKEN, layers=()), name="three")
    night(history, job_result("other"), name="four")
    tonight = night(history, job_result(seconds=5.0))
    found = [history.previous(name, tonight) for name in ("net-none", "other", "x")]
    assert [past and past.night for past in found] == ["two", "four", None]


def test_a_trend_is_of_a_job_or_of_all_jobs_of_a_model(history, job_result):
    for seconds in range(5):
        night(history, job_result(seconds=float(seconds)), job_result("net-qdrop", algo="qdrop"))
    night(history, job_result("x", model="y"))
    trends = history.of("net", last=3)
    assert list(trends) == ["net-none", "net-qdrop"]
    assert [past.result.seconds for past in trends["net-none"]] == [2.0, 3.0, 4.0]
    assert list(history.of("net-qdrop", last=1)) == ["net-qdrop"]
    assert history.of("none", last=1) == {}
    assert history.names() == ["net", "net-none", "net-qdrop", "x", "y"]


def test_how_a_night_ended_is_kept(history, tmp_path):
    number = night(history)
    history.end_night(number, state="stopped", seconds=1.5)
    rows = sqlite3.connect(tmp_path / "nights" / "history.sqlite").execute("select name, state, seconds from nights")
    assert rows.fetchall() == [("n", "stopped", 1.5)]


def test_a_history_stays_when_it_is_opened_again(history, job_result, tmp_path):
    night(history, job_result())
    with contextlib.closing(History(f"sqlite:///{tmp_path}/nights/history.sqlite", create=False)) as again:
        assert again.names() == ["net", "net-none"]


def test_a_history_that_is_only_read_does_not_wait_for_one_that_writes(history, job_result, tmp_path):
    night(history, job_result())
    path = tmp_path / "nights" / "history.sqlite"
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as writer:
        writer.execute("begin immediate")
        with contextlib.closing(History(str(path), create=False)) as reader:
            assert reader.names() == ["net", "net-none"]


def _write_nights(path: str, name: str) -> None:
    history = History(path)
    for _ in range(5):
        history.end_night(history.start_night(name, started="s", version="v", jobs="j"), state="finished", seconds=1.0)


def test_several_nights_make_and_write_one_history_at_the_same_time(tmp_path):
    path = str(tmp_path / "history.sqlite")
    spawn = multiprocessing.get_context("spawn")
    writers = [spawn.Process(target=_write_nights, args=(path, name)) for name in "ab"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert [writer.exitcode for writer in writers] == [0, 0]
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("select name, count(*) from nights group by name").fetchall() == [
            ("a", 5), ("b", 5)
        ]  # fmt: skip
        assert connection.execute("select version from schema_version").fetchall() == [(1,)]


def refused(target, *, create=True) -> str:
    with pytest.raises(UserError) as caught:
        History(str(target), create=create)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_newer_schema_is_refused(history, tmp_path):
    path = tmp_path / "nights" / "history.sqlite"
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("update schema_version set version = 7")
        connection.commit()
    sentence = refused(path)
    assert "has schema version 7, this dipo reads version 1" in sentence


def test_tables_without_a_version_are_refused(tmp_path):
    with contextlib.closing(sqlite3.connect(tmp_path / "x.sqlite")) as connection:
        connection.execute("create table nights (id integer)")
        connection.commit()
    assert "is no history of dipo's nights" in refused(tmp_path / "x.sqlite")


def test_what_is_no_database_is_refused(tmp_path):
    (tmp_path / "x.sqlite").write_text("this is a text, and a rather long one, of which no database is made" * 20)
    assert "file is not a database" in refused(tmp_path / "x.sqlite")
    assert "no such file" in refused(tmp_path / "none.sqlite", create=False)
    assert not (tmp_path / "none.sqlite").exists()
    assert "cannot be" in refused(tmp_path / "x.sqlite" / "below.sqlite")


@pytest.mark.parametrize(
    "url",
    [
        "nosuch://me:s3cret@host/db",
        "postgresql+nosuch://me:s3cret@host/db",
        "sqlite://me:s3cret@host:port/db",
        "sqlite://me:s3cret@host/db",
        "mysql+pymysql://me:s3cret@localhost:1/db?password=s3cret",
    ],
)
def test_a_password_is_never_shown(url):
    sentence = refused(url)
    assert "history" in sentence
    assert "s3cret" not in sentence


def test_what_a_driver_says_of_the_password_is_not_repeated(tmp_path):
    history = History(str(tmp_path / "h.sqlite"))
    history.url = history.url.set(username="me", password="s3cret")
    error = OperationalError("select", {}, Exception("login of me with s3cret failed\nand more"))
    assert history._reason(error) == "login of me with *** failed"


def test_a_database_that_fails_later_is_told_without_its_statements(history, job_result, tmp_path):
    number = night(history)
    with contextlib.closing(sqlite3.connect(tmp_path / "nights" / "history.sqlite")) as connection:
        connection.execute("drop table layers")
        connection.commit()
    with pytest.raises(HistoryError, match="no such table: layers") as caught:
        history.add(number, job_result())
    assert "INSERT" not in str(caught.value)
