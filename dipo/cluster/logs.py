"""A worker's log, kept in its memory until the driver fetches it: the machines may share no disk."""

from __future__ import annotations

import collections
import logging
import os
import stat
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

LIMIT_BYTES = 1 << 20
"""Most bytes that wait to be fetched; the newest are kept."""

FETCH_SECONDS = 5.0
"""Seconds between two fetches of the workers' logs by the driver; a worker's death can lose so much."""

STDERR = 2

RAY_MARKS = (":job_id:", ":actor_name:", ":task_name:")
"""Beginnings of the lines that Ray writes into its log files for itself."""

FORMAT = "%(asctime)s %(levelname)s %(message)s"


class WorkerLog(logging.Handler):
    """A handler that keeps records of the `dipo` logger and the lines that the process writes to its standard error.

    Ray redirects a worker's standard error, Python's and native code's alike, to a file on the worker's machine. That
    file is read, not diverted: the traces of a crash stay there. Where standard error is no file, only records
    are kept.
    """

    def __init__(self, *, limit: int = LIMIT_BYTES, stderr: int | None = STDERR) -> None:
        """Keep records and lines from now on.

        Args:
            limit: Most bytes to keep.
            stderr: Descriptor of the standard error; None: records only.
        """
        super().__init__()
        self.setFormatter(logging.Formatter(FORMAT))
        self._limit = limit
        self._lines: collections.deque[bytes] = collections.deque()
        self._size = self._dropped = 0
        self._stderr = _own_view(stderr) if stderr is not None else None
        self._read = os.fstat(self._stderr).st_size if self._stderr is not None else 0

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record; `logging` holds this handler's lock."""
        try:
            self._keep(self.format(record))
        except Exception:  # noqa: BLE001 - as every handler does: a record that cannot be formatted is reported
            self.handleError(record)

    def drain(self) -> str:
        """Return the whole lines since the last call, or nothing; may be called from another thread."""
        assert self.lock is not None
        with self.lock:
            for line in self._written_to_stderr():
                self._keep(f"stderr: {line}")
            gap = [f"... {self._dropped} lines were dropped here\n".encode()] if self._dropped else []
            text = b"".join([*gap, *self._lines]).decode()
            self._lines.clear()
            self._size = self._dropped = 0
        return text

    def close(self) -> None:
        """Stop keeping records; lines that were not drained are lost."""
        assert self.lock is not None
        with self.lock:
            if self._stderr is not None:
                os.close(self._stderr)
                self._stderr = None
        logging.getLogger("dipo").removeHandler(self)
        super().close()

    def _keep(self, text: str) -> None:
        # A cut may fall into a character.
        line = text.encode(errors="replace")[-self._limit + 1 :].decode(errors="ignore").encode() + b"\n"
        self._lines.append(line)
        self._size += len(line)
        while self._size > self._limit:
            self._size -= len(self._lines.popleft())
            self._dropped += 1

    def _written_to_stderr(self) -> list[str]:
        """Return the whole lines of standard error since the last call; of very many the last."""
        if self._stderr is None:
            return []
        size = os.fstat(self._stderr).st_size
        # A file that has become shorter has begun anew.
        start = max(self._read if self._read <= size else 0, size - self._limit)
        text = os.pread(self._stderr, size - start, start)
        # The rest of a line is yet to come, unless there is nothing but this line.
        whole = text[: text.rfind(b"\n") + 1] if len(text) < self._limit else text
        self._read = start + len(whole)
        lines = whole.decode(errors="replace").splitlines()
        return [line for line in lines if not line.startswith(RAY_MARKS)]


def worker_log(rank: int, *, limit: int = LIMIT_BYTES) -> WorkerLog:
    """Start the log of this process, a worker's; for a Ray actor's constructor.

    Args:
        rank: Rank of the worker.
        limit: Most bytes to keep until they are fetched.
    """
    log = logging.getLogger("dipo")
    collected = WorkerLog(limit=limit)
    log.addHandler(collected)
    log.setLevel(logging.INFO)
    # Ray's own handler would write every record to the standard error, which is collected as well.
    log.propagate = False
    log.info("worker %d starts on %s, process %d", rank, os.uname().nodename, os.getpid())
    return collected


class LogFetcher:
    """The driver's side: it fetches the workers' logs, now and then and at the end."""

    def __init__(self, keep: Callable[[int, str], None], *, interval: float = FETCH_SECONDS) -> None:
        """Prepare to fetch; no worker is asked yet.

        Args:
            keep: Function that stores the next piece of a worker's log, given its rank, as `append_worker_log` does.
            interval: Seconds between two rounds.
        """
        self._keep, self._interval = keep, interval
        self._asked: dict[Any, int] = {}
        self._last = time.monotonic()

    def fetch(self, actors: Mapping[int, Any], *, patience: float | None = None) -> None:
        """Keep the answers so far and ask again; do nothing within the interval, so that every poll may call this.

        Args:
            actors: Ray actors with a method `drain_log`, by rank.
            patience: Seconds to wait for the answers, whatever the interval, before the workers are ended; None: none.
        """
        import ray

        now = time.monotonic()
        if patience is None and now - self._last < self._interval:
            return
        self._last = now
        # What came since the round before; who has not answered yet is not asked twice.
        self._collect(ray, 0)
        waiting = set(self._asked.values())
        self._asked |= {actor.drain_log.remote(): rank for rank, actor in actors.items() if rank not in waiting}
        if patience is not None:
            self._collect(ray, patience)

    def _collect(self, ray: Any, timeout: float) -> None:
        if not self._asked:
            return
        answered, _ = ray.wait(list(self._asked), num_returns=len(self._asked), timeout=timeout)
        for reference in answered:
            rank = self._asked.pop(reference)
            try:
                text = ray.get(reference)
            except ray.exceptions.RayError as error:
                # The pool reports its death; here only the end of its log is missing.
                text = f"... the log of this worker ends: {type(error).__name__}\n"
            self._keep(rank, text)


def append_worker_log(folder: Path, rank: int, text: str) -> None:
    """Append a drained piece of a worker's log to `workers/worker-<rank>.log` in the run folder, on the driver.

    Raises:
        OSError: The disk is full or gone.
    """
    if not text:
        return
    path = folder / "workers" / f"worker-{rank}.log"
    path.parent.mkdir(exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(text)


def _own_view(descriptor: int) -> int | None:
    """Return a descriptor of the same file, opened once more for reading; None where it is no file."""
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return None
        return os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
