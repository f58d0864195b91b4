"""`events.jsonl`: what happened in a run, one JSON object a line, for people and programs that follow it."""

from __future__ import annotations

import datetime
import hashlib
import json
import logging
import math
import os
import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

log = logging.getLogger("dipo")

FILE = "events.jsonl"
"""Its name in the run folder."""

EVENTS: Mapping[str, tuple[str, ...]] = {
    "run_begins": ("model", "algo", "precision", "platform", "versions", "config_hash"),
    "run_resumes": (),
    "stage_begins": ("stage",),
    "stage_ends": ("stage", "seconds"),
    "unit_ends": ("step", "index", "name", "steps", "loss_first", "loss_last", "seconds", "steps_per_second"),
    "headroom_judged": ("share", "gain_db"),
    "step_judged": ("step", "samples", "gain_db", "kept"),
    "worker_starts": ("worker", "node"),
    "worker_dies": ("worker", "reason"),
    "retry": ("work", "attempt"),
    "checkpoint_damaged": ("file", "reason"),
    "sink_fails": ("sink", "reason"),
    "run_ends": ("status", "seconds"),
}
"""Every event, and the fields that it has at least; any of them may have others and a `message` for people."""

STATUSES = ("done", "failed", "stopped")
"""How a run ends: with its report, with an error, by a signal."""

MAX_REASON = 500


class Sink(Protocol):
    """A receiver of the events besides the file."""

    name: str

    def take(self, event: Mapping[str, Any]) -> None:
        """Take one event, as it stands in the file; where it raises, the run goes on without this sink."""
        ...

    def close(self) -> None:
        """Close the sink after the last event."""
        ...


@dataclass(frozen=True)
class Torn:
    """A line that is no event: its writer was killed, or somebody edited the file."""

    number: int
    """Number of the line, from 1."""
    text: str
    is_last: bool
    """The file ends with it, without a newline: it may still be being written."""


class Events:
    """Appends events to a file and hands them to the sinks; as a context manager it also sees the run's end.

    A block that is left by an exception before `run_ends` was emitted emits it: `failed`, or `stopped` for what is no
    error, such as Ctrl-C.
    """

    def __init__(self, path: Path, sinks: Sequence[Sink] = ()) -> None:
        """Open the file; one that a killed run left goes on on a line of its own.

        Raises:
            OSError: The file cannot be written.
        """
        self.path = path
        self.sinks = list(sinks)
        self._ended = False
        self._start = time.monotonic()
        # A pool's threads may report a dead worker while the driver reports a unit.
        self._lock = threading.RLock()
        self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
        size = os.fstat(self._file).st_size
        if size and os.pread(self._file, 1, size - 1) != b"\n":
            os.write(self._file, b"\n")

    def emit(self, event: str, /, **fields: Any) -> None:
        """Write one event.

        Args:
            event: One of `EVENTS`.
            fields: Its fields. Mappings become flat, `accuracy={"fp32": 99.5}` is `accuracy.fp32`; numbers that JSON
                does not know become null.

        Raises:
            OSError: The disk is full or gone; the file then ends with the event before.
            ValueError: An unknown event, or one without a field that it needs.
            TypeError: A field is nothing that JSON knows.
        """
        _check(event, fields)
        now = datetime.datetime.now(tz=datetime.UTC).astimezone().isoformat(timespec="milliseconds")
        record = {"time": now, "event": event, **{key: _plain(value) for key, value in flat(fields).items()}}
        with self._lock:
            self._write(record)
            self._ended = self._ended or event == "run_ends"
            for sink in list(self.sinks):
                # One that failed on this event has been taken out while the others heard of it.
                if sink in self.sinks:
                    self._hand(sink, record)

    def close(self) -> None:
        """Close the sinks and the file."""
        with self._lock:
            for sink in list(self.sinks):
                try:
                    sink.close()
                except Exception as error:  # noqa: BLE001 - foreign code, and the run's work is done
                    self._drop(sink, error)
            self.sinks = []
            os.close(self._file)

    def __enter__(self) -> Events:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is not None and not self._ended:
                self._end_by(error)
        finally:
            self.close()

    def _end_by(self, error: BaseException) -> None:
        status = "failed" if isinstance(error, Exception) else "stopped"
        seconds = round(time.monotonic() - self._start, 3)
        try:
            self.emit("run_ends", status=status, seconds=seconds, message=reason_of(error))
        except OSError as full:
            # What ended the run matters more than that its end could not be noted.
            log.error("%s: the run's end could not be written: %s", self.path, full)

    def _write(self, record: Mapping[str, Any]) -> None:
        """Write a whole line in one call: a killed process leaves all of it or, at worst, a torn last line."""
        line = (json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n").encode()
        size = os.fstat(self._file).st_size
        written = os.write(self._file, line)
        try:
            while written < len(line):
                written += os.write(self._file, line[written:])
        except OSError:
            os.ftruncate(self._file, size)
            raise

    def _hand(self, sink: Sink, record: Mapping[str, Any]) -> None:
        try:
            sink.take(record)
        except Exception as error:  # noqa: BLE001 - whatever a tracking server does, the run goes on
            self._drop(sink, error)

    def _drop(self, sink: Sink, error: Exception) -> None:
        # Not closed: that would wait for the same dead server once more.
        self.sinks.remove(sink)
        reason = reason_of(error)
        log.warning("%s fails and gets no more events: %s", sink.name, reason)
        self.emit("sink_fails", sink=sink.name, reason=reason, message=f"{sink.name} gets no more events")


def read_events(path: Path) -> Iterator[dict[str, Any] | Torn]:
    """Read a run's events, oldest first; a line that is no event comes as `Torn`, none is left out.

    Raises:
        OSError: The file cannot be read.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            event = _parse(line)
            text = line.removesuffix(b"\n").decode(errors="replace")
            yield Torn(number, text, is_last=not line.endswith(b"\n")) if event is None else event


def flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested mappings into one, with their keys joined by dots."""
    result: dict[str, Any] = {}
    for key, value in nested.items():
        result |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return result


def config_hash(config: Mapping[str, Any]) -> str:
    """Return twelve hexadecimal digits that two configurations share only if they are equal.

    Args:
        config: Nested mappings of plain values, as in `config.yaml`.
    """
    text = json.dumps(config, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def reason_of(error: BaseException) -> str:
    """Return an error in one line, without the credentials that an address in it may have."""
    lines = str(error).strip().splitlines()
    text = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return without_credentials(text)[:MAX_REASON]


def without_credentials(text: str) -> str:
    """Strip user names and passwords from the addresses in a text."""
    return re.sub(r"://[^/@\s]+@", "://", text)


def _check(event: str, fields: Mapping[str, Any]) -> None:
    if event not in EVENTS:
        raise ValueError(f"unknown event '{event}': choose from {', '.join(EVENTS)}")
    missing = [name for name in EVENTS[event] if name not in fields]
    if missing:
        raise ValueError(f"event '{event}' lacks {', '.join(missing)}")
    taken = [name for name in ("time", "event") if name in fields]
    if taken:
        raise ValueError(f"event '{event}': the field {taken[0]} is every event's own")
    if event == "run_ends" and fields["status"] not in STATUSES:
        raise ValueError(f"status '{fields['status']}' of run_ends: choose from {', '.join(STATUSES)}")


def _plain(value: Any) -> Any:
    """Return a value as JSON can hold it."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "item"):  # a number of numpy or torch
        return _plain(value.item())
    raise TypeError(f"an event's field is a {type(value).__name__}, which JSON does not know")


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        event = json.loads(line)
    except ValueError:  # UnicodeDecodeError is one, too
        return None
    return event if isinstance(event, dict) and "event" in event and "time" in event else None
