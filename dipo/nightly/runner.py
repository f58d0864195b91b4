"""Runs commands as subprocesses, as many at a time as there is room for, and leaves none behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

from dipo.nightly.resources import ResourceRequest, Resources

POLL_SECONDS = 0.1
GRACE_SECONDS = 15.0
"""Seconds from SIGTERM to SIGKILL."""


@dataclass(frozen=True)
class Task:
    """A command to run."""

    name: str
    command: tuple[str, ...]
    log: Path
    """Takes the command's output."""
    need: ResourceRequest
    timeout: float | None = None
    """Seconds after which it is ended; None: never."""
    pinned: bool = False
    """It is shown only the GPUs that are its own."""


@dataclass(frozen=True)
class Ended:
    """The end of a task."""

    task: Task
    returncode: int | None
    """None where it was not started."""
    seconds: float
    reason: str | None = None
    """Why it was ended, or not started; None where it ended by itself."""
    stopped: bool = False
    """The whole night was stopped, before this task's end."""


class Stop:
    """A context that records SIGINT and SIGTERM; a second one ends the grace of those that still run."""

    def __init__(self) -> None:
        """Start without a signal."""
        self.signum: int | None = None
        self.hurry = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        """Install the handlers of the two signals."""
        for signum in (signal.SIGINT, signal.SIGTERM):
            self._before[signum] = signal.signal(signum, self._note)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Restore the former handlers."""
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    @property
    def sentence(self) -> str:
        """The sentence that says which signal stopped the night."""
        return "stopped by Ctrl-C" if self.signum == signal.SIGINT else "stopped by SIGTERM"

    def _note(self, signum: int, frame: FrameType | None) -> None:
        del frame
        self.hurry = self.signum is not None
        self.signum = self.signum or signum


@dataclass
class _Running:
    task: Task
    process: subprocess.Popen[bytes]
    gpus: list[str]
    begun: float
    kill_at: float | None = None
    reason: str | None = None
    stopped: bool = False

    def has_ended(self) -> bool:
        """Return whether its first process is over; if so, end what is left of its group."""
        over = os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        if over:
            # Not reaped yet, so that the group's number is still nobody else's.
            self.signal(signal.SIGKILL)
            self.process.wait()
        return over

    def signal(self, signum: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signum)

    def end(self, reason: str, *, grace: float, stopped: bool = False) -> None:
        """Ask it once to end, and kill it where it does not."""
        if self.kill_at is None:
            self.reason, self.stopped, self.kill_at = reason, stopped, time.monotonic() + grace
            self.signal(signal.SIGTERM)

    def result(self) -> Ended:
        return Ended(self.task, self.process.returncode, time.monotonic() - self.begun, self.reason, self.stopped)


def run_tasks(
    tasks: Sequence[Task],
    *,
    room: Resources,
    stop: Stop,
    parallel: int | None = None,
    grace: float = GRACE_SECONDS,
    on_start: Callable[[Task], None] | None = None,
) -> Generator[Ended, None, None]:
    """Run the tasks, first fit in their order, and yield each as it ends; those never started come last.

    Args:
        tasks: Each fits into the empty room.
        room: The resources that they share.
        stop: Once a signal is noted, what runs is ended and nothing more is started.
        parallel: Tasks at a time; None: as many as fit.
        grace: Seconds from SIGTERM to SIGKILL.
        on_start: Called with each task as it starts.
    """
    waiting, running = list(tasks), list[_Running]()
    try:
        while (waiting and stop.signum is None) or running:
            if stop.signum is None:
                yield from _start_what_fits(waiting, running, room=room, parallel=parallel, on_start=on_start)
            for each in list(running):
                if each.has_ended():
                    running.remove(each)
                    room.give(each.task.need, each.gpus)
                    yield each.result()
                else:
                    _see_to_limits(each, stop, grace)
            time.sleep(POLL_SECONDS)
        for task in waiting:
            yield Ended(task, None, 0.0, stop.sentence, stopped=True)
    finally:
        _end_all(running, grace)


def _start_what_fits(
    waiting: list[Task],
    running: list[_Running],
    *,
    room: Resources,
    parallel: int | None,
    on_start: Callable[[Task], None] | None,
) -> Iterator[Ended]:
    """Start the waiting tasks that fit; yield those that cannot be started."""
    for task in list(waiting):
        if parallel is not None and len(running) >= parallel:
            return
        gpus = room.take(task.need)
        if gpus is None:
            continue
        waiting.remove(task)
        try:
            running.append(_start(task, gpus))
        except OSError as error:
            room.give(task.need, gpus)
            yield Ended(task, None, 0.0, f"could not be started: {error}")
        else:
            if on_start is not None:
                on_start(task)


def _start(task: Task, gpus: list[str]) -> _Running:
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", **_visible(task, gpus)}
    with task.log.open("wb") as log:
        process = subprocess.Popen(
            task.command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
    return _Running(task, process, gpus, time.monotonic())


def _visible(task: Task, gpus: Sequence[str]) -> Mapping[str, str]:
    return {"CUDA_VISIBLE_DEVICES": ",".join(gpus)} if task.pinned and gpus else {}


def _see_to_limits(each: _Running, stop: Stop, grace: float) -> None:
    """End a task whose time is up, or that is to stop with all others."""
    now = time.monotonic()
    if stop.signum is not None:
        each.end(stop.sentence, grace=grace, stopped=True)
    elif each.task.timeout is not None and now - each.begun > each.task.timeout:
        each.end(f"ended after {each.task.timeout / 60:.3g} minutes, its timeout", grace=grace)
    if each.kill_at is not None and (now > each.kill_at or stop.hurry):
        each.signal(signal.SIGKILL)


def _end_all(running: Sequence[_Running], grace: float) -> None:
    """End the tasks that still run where the loop was left early."""
    for each in running:
        each.end("left", grace=grace)
    for each in running:
        while not each.has_ended():
            if time.monotonic() > (each.kill_at or 0.0):
                each.signal(signal.SIGKILL)
            time.sleep(POLL_SECONDS)
