"""What becomes of an architecture: run as a program, one JSON line for each job, in a process of its own.

    python -m models.trial NAME FOLDER [--jobs PATTERN] [--seconds N]

A line is written before a job begins, too, so that of a process which dies one knows at what.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx

import dipo
from dipo.errors import JobError
from dipo.graph.program import regions
from models import peer
from models.architecture import CALIB, EVAL, Architecture
from models.catalogue import ARCHITECTURES
from models.exports import exported

ALGOS = (
    "none", "bias_correction", "qdrop",
    "brecq", "adaround", "tune", "full", "equalize", "update_bn", "sparse", "analyze",
)  # fmt: skip
ALL_VARIANTS = ALGOS[:3]
"""Algorithms that each variant is given; the first variant is given all."""
PEER = "quantize_static"
TARGETS = ("trt", "qnn", "rk", "openvino")
PRODUCTS = {"MatMul", "Gemm", "Einsum", "Conv", "ConvTranspose"}
INNER = {"LSTM", "GRU", "RNN", "Attention", "If", "Loop", "Scan"}
OPTIONS = {"algo.iters": 3, "algo.tune_iters": 2, "cluster.compile": False}
NO_NOISE_DB = 200.0


@dataclass(frozen=True)
class Job:
    """One thing that is tried with an exported network."""

    architecture: str
    variant: str
    algo: str
    """`quantize_static` for ONNX Runtime's own."""
    target: str
    """For ONNX Runtime's own: whether the network is prepared first."""

    @property
    def name(self) -> str:
        """Return what a pattern is compared with."""
        return f"{self.architecture} {self.variant} {self.algo} {self.target}"


@dataclass(frozen=True)
class Record:
    """What became of a job."""

    job: Job
    state: str
    """`done`; `refused`, by a sentence; `failed`; `begun` in front of it."""
    what: str = ""
    """The sentence or the error."""
    db: dict[str, float | None] | None = None
    """SQNR of the written file against the float network, by output; null for integers and sizes that differ."""
    deployed_db: float | None = None
    """The written file against its simulation."""
    parity: float | None = None
    notes: list[str] | None = None
    in_onnx_runtime: list[str] | None = None
    """Operators that torch does not compute."""
    float_products: bool = False
    """Whether the written file multiplies activations by each other, or runs nodes of more than one step, in float."""
    seconds: float = 0.0

    @staticmethod
    def read(plain: dict) -> Record:
        """Return a record that was written as a line."""
        return Record(**{**plain, "job": Job(**plain["job"])})


def jobs_of(architecture: Architecture) -> Iterator[Job]:
    """Yield everything that is tried with an architecture."""
    for index, variant in enumerate(architecture.variants):
        for algo in ALGOS if index == 0 else ALL_VARIANTS:
            yield Job(architecture.name, variant, algo, "ort")
        yield Job(architecture.name, variant, PEER, "prepared")
        yield Job(architecture.name, variant, PEER, "plain")
    for target in TARGETS:
        yield Job(architecture.name, architecture.variants[0], "none", target)


def run(job: Job, folder: Path) -> Record:
    """Do a job; a refusal or an error is what the record says."""
    start = time.perf_counter()
    try:
        record = _peer(job, folder.resolve()) if job.algo == PEER else _ours(job, folder.resolve())
    except (dipo.UserError, JobError) as error:
        record = Record(job, "refused", str(error))
    except Exception as error:  # noqa: BLE001 - what a faulty network brings about is what is asked
        place = traceback.extract_tb(error.__traceback__)[-1]
        said = next(iter(str(error).splitlines()), "")[:300]
        record = Record(job, "failed", f"{type(error).__name__}: {said} ({Path(place.filename).name}:{place.lineno})")
    return Record(**{**record.__dict__, "seconds": round(time.perf_counter() - start, 2)})


def _ours(job: Job, folder: Path) -> Record:
    architecture = ARCHITECTURES[job.architecture]
    path, samples = exported(architecture, job.variant, folder)
    result = dipo.quantize(
        str(path),
        architecture.part(samples, 0, CALIB),
        eval_data=architecture.part(samples, CALIB, CALIB + EVAL),
        algo=job.algo,
        target=job.target,
        options=OPTIONS,
    )
    # Other targets' biases are not those of ONNX Runtime's kernels: the report has their figure.
    made = result.folder / "quantized.onnx"
    db = compared(architecture, path, made, samples) if job.target == "ort" else None
    report = result.report
    deployed = report.error.get("deployed_vs_simulated")
    notes = [f"{note.name}: {note.what}" for note in report.notes]
    reached = None if deployed is None else deployed.sqnr_db
    foreign = sorted({node.op_type for group in regions(result._source.model) for node in group})
    return Record(job, "done", "", db, reached, report.parity, notes, foreign, has_float_products(made))


def has_float_products(path: Path) -> bool:
    """Return whether a network multiplies matrices of which none is constant, or has nodes that do so within."""
    graph = onnx.load(path).graph
    made: set[str] = {value.name for value in graph.input}
    for node in graph.node:
        if node.op_type in INNER or (node.op_type in PRODUCTS and all(name in made for name in node.input[:2])):
            return True
        if any(name in made for name in node.input):
            made.update(node.output)
    return False


def _peer(job: Job, folder: Path) -> Record:
    architecture = ARCHITECTURES[job.architecture]
    path, samples = exported(architecture, job.variant, folder)
    with tempfile.TemporaryDirectory() as scratch:
        made = peer.quantized(
            path, feeds(architecture, samples, 0, CALIB), Path(scratch) / "q.onnx", prepared=job.target == "prepared"
        )
        return Record(job, "done", "", compared(architecture, path, made, samples))


def feeds(architecture: Architecture, samples: dict, start: int, stop: int) -> list[dict]:
    """Return samples one by one."""
    return [architecture.part(samples, row, row + 1) for row in range(start, stop)]


def compared(architecture: Architecture, path: Path, made: Path, samples: dict) -> dict[str, float | None]:
    """Return the SQNR of each output of a written file on the samples of the evaluation, one sample at a time."""
    rows = feeds(architecture, samples, CALIB, CALIB + EVAL)
    float_, own = peer.outputs(path, rows), peer.outputs(made, rows)
    return {name: sqnr_db(float_[name], own[name]) for name in float_}


def sqnr_db(reference: Sequence[np.ndarray], other: Sequence[np.ndarray]) -> float | None:
    """Return 10 log10(signal/noise) over all samples; None for integers and where sizes differ."""
    if reference[0].dtype.kind != "f" or any(a.shape != b.shape for a, b in zip(reference, other, strict=True)):
        return None
    a, b = (np.concatenate([row.ravel() for row in rows]).astype(np.float64) for rows in (reference, other))
    kept = np.isfinite(a)
    signal, noise = float((a[kept] ** 2).sum()), float(((a - b)[kept] ** 2).sum())
    if not math.isfinite(noise):
        return -NO_NOISE_DB
    return (
        NO_NOISE_DB if noise == 0 else max(-NO_NOISE_DB, min(NO_NOISE_DB, 10 * math.log10(max(signal, 1e-300) / noise)))
    )


class TimeOverError(Exception):
    """A job took longer than it may."""


def _over(*_: object) -> None:
    raise TimeOverError("longer than it may take")


def main() -> None:
    """Write the records of an architecture, line by line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=ARCHITECTURES)
    parser.add_argument("folder", type=Path, help="where exported networks are kept")
    parser.add_argument("--jobs", default=".", help="pattern of 'NAME VARIANT ALGO TARGET'")
    parser.add_argument("--seconds", type=int, default=120, help="of a job")
    args = parser.parse_args()
    signal.signal(signal.SIGALRM, _over)
    for job in jobs_of(ARCHITECTURES[args.name]):
        if re.search(args.jobs, job.name):
            _say(Record(job, "begun"))
            signal.alarm(args.seconds)
            record = run(job, args.folder)
            signal.alarm(0)
            _say(record)


def _say(record: Record) -> None:
    sys.stdout.write(json.dumps(asdict(record)) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
