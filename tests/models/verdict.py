"""What is right of the records of an architecture, and what is not."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping

from models.trial import ALL_VARIANTS, PEER, Job, Record

EQUAL_DB = 60.0
"""Least of a file against its simulation."""
EQUAL_FLOAT_DB = 40.0
"""The same where activations are multiplied by each other in float, whose sums differ in their last bits: a code behind
them may be the next one."""
BEHIND_DB = 0.5
"""How far an output may lie behind that of ONNX Runtime's own quantization."""
LIMITS: Mapping[tuple[str, str], str] = {}
"""Targets that have no way to say a network, by architecture and target: a piece of the sentence that says so."""


def faults(records: Iterable[Record]) -> list[str]:
    """Return a line for each thing that is not as it should be."""
    all_ = {record.job: record for record in records}
    return [f"{job.name}: {what}" for job, record in all_.items() for what in _faults(record, all_)]


def _faults(record: Record, all_: Mapping[Job, Record]) -> Iterator[str]:
    job = record.job
    if job.algo == PEER:
        return
    if record.state != "done":
        limit = LIMITS.get((job.architecture, job.target))
        if limit is None or limit not in record.what:
            yield f"{record.state}: {record.what}"
        return
    least = EQUAL_FLOAT_DB if record.float_products else EQUAL_DB
    if record.deployed_db is not None and record.deployed_db < least:
        yield f"the file is {record.deployed_db:.1f} dB from its simulation"
    if job.algo == "none" and record.db is not None:
        theirs = best_peer(job, all_)
        for name, own in record.db.items():
            if own is not None and own < theirs.get(name, -math.inf) - BEHIND_DB:
                yield f"output {name} has {own:.1f} dB, {theirs[name]:.1f} by ONNX Runtime's quantize_static"


def best_peer(job: Job, all_: Mapping[Job, Record]) -> dict[str, float]:
    """Return what ONNX Runtime's own quantization of the same network reaches, by output: the better of both ways."""
    best: dict[str, float] = {}
    for way in ("prepared", "plain"):
        record = all_.get(Job(job.architecture, job.variant, PEER, way))
        for name, db in ((record and record.db) or {}).items():
            if db is not None:
                best[name] = max(best.get(name, -math.inf), db)
    return best


def goes_in(records: Iterable[Record]) -> bool:
    """Return whether what each variant is given was done with all of them."""
    own = [record for record in records if record.job.target == "ort" and record.job.algo in ALL_VARIANTS]
    return bool(own) and all(record.state == "done" for record in own)
