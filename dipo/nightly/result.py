"""The result of a job, read from the files in its folder."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from dipo.nightly.gates import GateOutcome, judge
from dipo.nightly.jobs import NightJob
from dipo.nightly.layers import LayerState, read_layers
from dipo.nightly.runner import Ended

REPORT = "report.json"
MODEL = "quantized.onnx"
LOG_LINES = 20
"""Number of lines of a broken job's log that summaries show."""


class Status(StrEnum):
    """The ways in which a job ends."""

    PASSED = "passed"
    FAILED = "gate failed"
    BROKEN = "broken"
    NOT_RUN = "not run"


@dataclass(frozen=True)
class JobResult:
    """The result of one job of one night."""

    name: str
    model: str
    algo: str
    platform: str
    precision: str
    options: tuple[str, ...]
    status: Status
    seconds: float
    """From its start to its end."""
    folder: str
    """The run's."""
    reason: str | None = None
    """Why it is broken or was not run."""
    accuracy_fp32: float | None = None
    """Top-1 in per cent; None without labels."""
    accuracy_deployed: float | None = None
    agreement: float | None = None
    """Top-1 agreement of the deployed network with the float one; cosine and SQNR compare the same two."""
    cosine: float | None = None
    sqnr_db: float | None = None
    gates: tuple[GateOutcome, ...] = ()
    layers: tuple[LayerState, ...] = ()
    log_tail: tuple[str, ...] = ()
    """Last lines of a broken job's output."""

    @property
    def complete(self) -> bool:
        """Whether the job ran to its end, whatever its gates say."""
        return self.status in {Status.PASSED, Status.FAILED}

    @property
    def failures(self) -> list[str]:
        """Sentences on why a job has not passed."""
        return [self.reason] if self.reason else [gate.sentence for gate in self.gates if not gate.passed]


def collect(job: NightJob, ended: Ended, folder: Path) -> JobResult:
    """Judge a job that has ended, or was never started.

    Args:
        job: The job of the jobs file.
        ended: How its process ended.
        folder: The folder of its run.
    """
    common: dict[str, Any] = {
        "name": job.name,
        "model": job.model,
        "algo": job.config.algo.name,
        "platform": job.config.platform.name,
        "precision": job.precision,
        "options": job.options,
        "seconds": ended.seconds,
        "folder": str(folder.absolute()),
    }
    if ended.returncode != 0:
        status = Status.NOT_RUN if ended.stopped else Status.BROKEN
        tail = _tail(ended.task.log) if status is Status.BROKEN else ()
        return JobResult(**common, status=status, reason=ended.reason or _cause(ended, tail), log_tail=tail)
    try:
        measured = _measured(folder)
    except Exception as error:  # noqa: BLE001 - one job's broken files must not end the night; the summary names them
        reason = f"its files cannot be read: {type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
        return JobResult(**common, status=Status.BROKEN, reason=reason, log_tail=_tail(ended.task.log))
    gates = judge(
        job.gate,
        fp32=measured["accuracy_fp32"],
        deployed=measured["accuracy_deployed"],
        cosine=measured.pop("worst_cosine"),
        seconds=ended.seconds,
    )
    status = Status.PASSED if all(gate.passed for gate in gates) else Status.FAILED
    return JobResult(**common, **measured, status=status, gates=gates)


def printable(text: str) -> str:
    """Strip colours, and the control characters that XML does not allow and terminals obey."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|[^\t\n\r\x20-\x7e\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "", text)


def _measured(folder: Path) -> dict[str, Any]:
    """Read the figures of `report.json` and the layers of the model beside it."""
    report = json.loads((folder / REPORT).read_text(encoding="utf-8"))
    error = report["error"]["deployed_vs_fp32"]
    outputs = [row["deployed"] or {} for row in report.get("outputs", [])]
    errors = {layer["name"]: (layer["cosine"], layer["sqnr_db"]) for layer in report["layers"]}
    return {
        "accuracy_fp32": report["accuracy"]["fp32"],
        "accuracy_deployed": report["accuracy"]["deployed"],
        "agreement": error["agreement"],
        "cosine": error["cosine"],
        # All outputs together may hide that one of them is lost.
        "worst_cosine": min([error["cosine"], *(row["cosine"] for row in outputs if row.get("cosine") is not None)]),
        "sqnr_db": error["sqnr_db"],
        "layers": read_layers(folder / MODEL, errors),
    }


def _tail(log: Path) -> tuple[str, ...]:
    if not log.exists():
        return ()
    return tuple(printable(log.read_text(encoding="utf-8", errors="replace")).splitlines()[-LOG_LINES:])


def _cause(ended: Ended, tail: tuple[str, ...]) -> str:
    """Return the sentence with which the job ended, or how it ended."""
    said = next((line.removeprefix("dipo: ") for line in reversed(tail) if line.startswith("dipo: ")), None)
    if said:
        return said
    code = ended.returncode or 0
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    return f"ended with {how}; {'its log is empty' if not tail else f'last line of its log: {tail[-1]}'}"
