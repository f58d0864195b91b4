"""The summary of a night: one value, from which the terminal's table and the three files are made."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dipo.nightly.compare import Comparison
from dipo.nightly.result import JobResult, Status


@dataclass(frozen=True)
class Row:
    """A job's result, and its differences from the night before."""

    result: JobResult
    comparison: Comparison | None
    """None on a job's first night, and where it did not run to its end."""


@dataclass(frozen=True)
class Summary:
    """The summary of a night."""

    name: str
    started: str
    """ISO 8601, UTC."""
    seconds: float
    folder: Path
    stopped: str | None
    """The signal that stopped the night, as a sentence; None where it ran to its end."""
    rows: tuple[Row, ...]
    """In the order of the jobs file."""
    problems: tuple[str, ...]
    """Sentences on what went wrong with the night itself."""
    version: str
    """Version of dipo."""

    def count(self, status: Status) -> int:
        """Count the jobs that ended in this way."""
        return sum(row.result.status is status for row in self.rows)

    @property
    def passed(self) -> bool:
        """Whether no job failed, broke, or was left out."""
        return not self.problems and self.count(Status.PASSED) == len(self.rows)

    @property
    def headline(self) -> str:
        """The numbers of jobs by how they ended, in a line."""
        counts = [f"{self.count(status)} {status.value}" for status in Status if self.count(status)]
        return f"{len(self.rows)} jobs: {', '.join(counts)}"

    def to_plain(self) -> dict[str, Any]:
        """Return nested dictionaries and lists, without the layers, which are in the history."""
        return {
            "night": self.name,
            "started": self.started,
            "seconds": self.seconds,
            "dipo": self.version,
            "stopped": self.stopped,
            "passed": self.passed,
            "counts": {status.value: self.count(status) for status in Status},
            "problems": list(self.problems),
            "jobs": [_row_to_plain(row) for row in self.rows],
        }


def _row_to_plain(row: Row) -> dict[str, Any]:
    result = dataclasses.asdict(dataclasses.replace(row.result, layers=()))
    del result["layers"]
    comparison = None if row.comparison is None else dataclasses.asdict(row.comparison)
    return {**result, "comparison": comparison}
