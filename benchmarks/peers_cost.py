"""What a command costs as a whole process with all that it starts."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

SAMPLING_SECONDS = 0.2


@dataclass(frozen=True)
class Cost:
    """What one run of a command took."""

    seconds: float
    peak_mb: float
    """Of the process tree: shared pages count once."""


def measure(command: list[str], cwd: Path | None = None) -> Cost:
    """Runs a command to its end; stops, with the end of what it wrote, where it fails."""
    with tempfile.TemporaryFile() as written:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=written, stderr=subprocess.STDOUT, cwd=cwd)
        tree = _TreePeak(process.pid)
        tree.start()
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        tree.stop()
        if status:
            written.seek(0)
            sys.exit(f"{' '.join(command)}\n{written.read().decode(errors='replace')[-2000:]}")
    # The kernel's own figure is of one process, but no short peak escapes it.
    return Cost(seconds, max(tree.peak / 2**20, usage.ru_maxrss / 1024))


class _TreePeak(threading.Thread):
    """Looks, again and again, at the proportional memory of a process and its descendants."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.pid, self.peak, self.ended = pid, 0, threading.Event()

    def run(self) -> None:
        while not self.ended.wait(SAMPLING_SECONDS):
            self.peak = max(self.peak, self._now())

    def stop(self) -> None:
        """Ends the looking."""
        self.ended.set()
        self.join()

    def _now(self) -> int:
        try:
            root = psutil.Process(self.pid)
            processes = [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return 0
        return sum(map(_proportional, processes)) if len(processes) > 1 else 0


def _proportional(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().pss)
    except (psutil.NoSuchProcess, psutil.AccessDenied):  # it ended meanwhile
        return 0
