"""The recipe of a night, readable top to bottom: read the jobs, make room, run, judge, compare, sum up."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

import dipo
from dipo.errors import UserError
from dipo.nightly.compare import Comparison, compare
from dipo.nightly.history import History, HistoryError
from dipo.nightly.html import html_page
from dipo.nightly.jobs import Listed, NightJob, read_jobs
from dipo.nightly.junit import junit_xml
from dipo.nightly.resources import ResourceRequest, Resources, local_cpus, local_gpus, needs_of
from dipo.nightly.result import JobResult, collect
from dipo.nightly.runner import Ended, Stop, Task, run_tasks
from dipo.nightly.settings import Config
from dipo.nightly.summary import Row, Summary
from dipo.nightly.terminal import duration, show_night
from dipo.section import from_plain

STOPPED = {signal.SIGINT: 130, signal.SIGTERM: 143}
"""Exit statuses."""


def run_night(given: Mapping[str, Any], console: Console) -> int:
    """Run all jobs of a file.

    Args:
        given: The command line's values, nested, as `settings.read_words` gives them.
        console: The terminal that the night prints to.

    Returns:
        The exit status: 0, or 1 where a gate failed or a job broke, 130 or 143 where the night was stopped.

    Raises:
        UserError: The command line, the jobs file or the history is wrong; nothing was run.
    """
    config = from_plain(Config, given)
    if config.jobs is None:
        raise UserError("no jobs: give jobs=<file.yaml> that lists them, see --help")
    listed = read_jobs(Path(config.jobs).expanduser(), given)
    out = Path(config.out).expanduser()
    with contextlib.ExitStack() as stack:
        history = stack.enter_context(contextlib.closing(open_history(config.out, config.history)))
        room, address, cuda = stack.enter_context(_room(listed))
        needs = needs_of(listed.jobs, room, cuda=cuda)
        folder = _new_folder(out)
        # Ray takes SIGTERM over as it starts: the night's own handlers come after.
        stop = stack.enter_context(Stop())
        night = _Night(config.jobs, folder, history, console)
        tasks = _tasks(listed, needs, folder, address)
        ends = run_tasks(tasks, room=room, stop=stop, parallel=listed.parallel, on_start=night.tell_start)
        stack.enter_context(contextlib.closing(ends))
        jobs = {job.name: job for job in listed.jobs}
        for ended in ends:
            night.end_job(jobs[ended.task.name], ended)
        summary = night.sum_up([job.name for job in listed.jobs], stop)
        show_night(summary, console)
        _write(summary, folder)
        console.print(f"written: {folder}/summary.html, .json, junit.xml", soft_wrap=True, markup=False)
        return STOPPED[signal.Signals(stop.signum)] if stop.signum is not None else int(not summary.passed)


def open_history(out: str, history: str | None, *, create: bool = True) -> History:
    """Open the history that the command line names, by default the one in the folder of the nights."""
    return History(history or str(Path(out).expanduser() / "history.sqlite"), create=create)


class _Night:
    """The results of a night so far, which are also in its history."""

    def __init__(self, jobs_file: str, folder: Path, history: History, console: Console) -> None:
        self.folder, self.history, self.console = folder, history, console
        self.begun = time.monotonic()
        self.started = datetime.now(UTC).isoformat(timespec="seconds")
        self.rows: dict[str, Row] = {}
        self.problems: list[str] = []
        self.number = history.start_night(folder.name, started=self.started, version=dipo.__version__, jobs=jobs_file)

    def tell_start(self, task: Task) -> None:
        self.say(f"{task.name}: started on {task.need}")

    def end_job(self, job: NightJob, ended: Ended) -> None:
        """Judge a job that has ended, compare it with the night before, and store it."""
        result = collect(job, ended, self.folder / job.name)
        comparison = self._compare(result) if result.complete else None
        self.rows[job.name] = Row(result, comparison)
        self.say(f"{job.name}: {result.status.value} in {duration(result.seconds)}")
        if not ended.stopped or result.complete:
            with self._noting_problems():
                self.history.add(self.number, result)

    def sum_up(self, order: list[str], stop: Stop) -> Summary:
        seconds = time.monotonic() - self.begun
        with self._noting_problems():
            self.history.end_night(self.number, state="stopped" if stop.signum else "finished", seconds=seconds)
        return Summary(
            name=self.folder.name,
            started=self.started,
            seconds=seconds,
            folder=self.folder,
            stopped=stop.sentence if stop.signum is not None else None,
            rows=tuple(self.rows[name] for name in order),
            problems=tuple(self.problems),
            version=dipo.__version__,
        )

    def say(self, text: str) -> None:
        self.console.print(text, markup=False, emoji=False, highlight=False, soft_wrap=True)

    def _compare(self, result: JobResult) -> Comparison | None:
        with self._noting_problems():
            past = self.history.previous(result.name, self.number)
            try:
                return None if past is None else compare(result, past)
            except Exception as error:  # noqa: BLE001 - an old night's damaged files must not end this one
                self.problems.append(f"{result.name}: cannot be compared with the night before ({error})")
        return None

    @contextlib.contextmanager
    def _noting_problems(self) -> Iterator[None]:
        """Record a failure of the database, which fails the night, and let the other jobs go on."""
        try:
            yield
        except HistoryError as error:
            self.problems.append(str(error))


@contextlib.contextmanager
def _room(listed: Listed) -> Iterator[tuple[Resources, str | None, bool]]:
    """Return the shared resources, the address of Ray if a job wants it, and whether this process sees a GPU."""
    gpus, cpus = local_gpus(), listed.cluster.cpus or local_cpus()
    if all(job.config.cluster.kind == "inline" for job in listed.jobs):
        yield Resources(cpus, gpus), None, bool(gpus)
        return
    if listed.cluster.address in (None, "local"):
        # What never fits is told before Ray is started.
        needs_of(listed.jobs, Resources(cpus, gpus), cuda=bool(gpus))
    from dipo.cluster.shared_ray import start_head

    with start_head(address=listed.cluster.address, cpus=cpus, gpus=len(gpus)) as head:
        yield Resources(head.cpus, [str(index) for index in range(head.gpus)]), head.address, bool(gpus)


def _tasks(listed: Listed, needs: list[ResourceRequest], folder: Path, address: str | None) -> list[Task]:
    return [
        Task(
            name=job.name,
            command=(sys.executable, "-m", "dipo.launch", *job.options, *_own_options(job, folder, address)),
            log=folder / f"{job.name}.log",
            need=need,
            timeout=job.gate.timeout_seconds,
            pinned=address is None,
        )
        for job, need in zip(listed.jobs, needs, strict=True)
    ]


def _own_options(job: NightJob, folder: Path, address: str | None) -> list[str]:
    """Return the options that the night adds to a job's."""
    own = [f"run.dir={folder / job.name}"]
    return [*own, f"cluster.address={address}"] if job.config.cluster.kind == "ray" else own


def _new_folder(out: Path) -> Path:
    """Make a new folder for this night, named by the time."""
    name = f"{datetime.now():%Y-%m-%d_%H-%M-%S}"
    for number in range(1, 1000):
        path = out / (name if number == 1 else f"{name}_{number}")
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise UserError(f"out={out}: cannot be written ({error.strerror}), choose another folder") from error
        return path
    raise UserError(f"out={out}: no free name for this night's folder, choose another folder")


def _write(summary: Summary, folder: Path) -> None:
    """Write a file so that it is complete or absent."""
    content = {
        "summary.json": json.dumps(summary.to_plain(), indent=2).encode() + b"\n",
        "junit.xml": junit_xml(summary),
        "summary.html": html_page(summary).encode(),
    }
    for name, data in content.items():
        temporary = folder / f".{name}.{os.getpid()}.part"
        try:
            temporary.write_bytes(data)
            temporary.replace(folder / name)
        finally:
            temporary.unlink(missing_ok=True)
