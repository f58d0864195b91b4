"""What becomes of the architectures in `tests/models`, and of the same networks in ONNX Runtime's static quantization.

    python benchmarks/models.py [--only PATTERN] [--jobs PATTERN] [--workers 2] [--folder FOLDER] [--seconds N]

Each architecture is exported and tried in a process of its own, with a time limit. Its records lie in
`models.jsonl` beside this script, one line each; those that are not made again are kept, so that the whole can be made
in pieces. `models.txt` says what of them is not as it should be, docs/models.md has the table. SQNR in dB is that of
the output that lost the most, on samples that calibration did not see, one at a time in ONNX Runtime.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import onnxruntime  # noqa: E402
import torch  # noqa: E402
from models.catalogue import GROUPS  # noqa: E402
from models.trial import ALGOS, ALL_VARIANTS, PEER, TARGETS, Job, Record, jobs_of  # noqa: E402
from models.verdict import best_peer, faults, goes_in  # noqa: E402

import dipo  # noqa: E402

RECORDS, FAULTS = Path(__file__).with_suffix(".jsonl"), Path(__file__).with_suffix(".txt")
PAGE = ROOT / "docs" / "models.md"
MARK = "<!-- written by benchmarks/models.py -->"
ARCHITECTURES = {each.name: each for group in GROUPS for each in group.ARCHITECTURES}
SHORT = {"script": "old", "dynamo": "new", "made": "onnx"}
"""What the table calls the exporters."""


def tried(name: str, *, jobs: str, folder: Path, seconds: int) -> list[Record]:
    """Tries an architecture in a process of its own; its records, the last of which says at what it died, if it did."""
    paths = os.pathsep.join((str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")))
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "models.trial", name, str(folder), "--jobs", jobs]
    with tempfile.TemporaryFile("w+") as lines:
        state = ""
        try:
            done = subprocess.run(
                command, env=environment, stdout=lines, stderr=subprocess.DEVNULL, timeout=seconds, check=False
            )
            state = "" if done.returncode == 0 else f"the process ended with {done.returncode}"
        except subprocess.TimeoutExpired:
            state = f"more than {seconds} s"
        lines.seek(0)
        # Libraries print what they like, too.
        found = {record.job: record for record in map(_record, (line for line in lines if line.startswith("{")))}
    return [Record(record.job, "failed", state) if record.state == "begun" else record for record in found.values()]


def _record(line: str) -> Record:
    return Record.read(json.loads(line))


def kept() -> dict[Job, Record]:
    """The records that there are, of architectures that there still are."""
    if not RECORDS.exists():
        return {}
    wanted = {job for architecture in ARCHITECTURES.values() for job in jobs_of(architecture)}
    found = {record.job: record for record in map(_record, RECORDS.read_text().splitlines())}
    return {job: record for job, record in found.items() if job in wanted}


def save(records: dict[Job, Record]) -> None:
    """Writes the records in the order of the architectures and their jobs, and what is made of them."""
    order = [job for architecture in ARCHITECTURES.values() for job in jobs_of(architecture) if job in records]
    lines = [json.dumps({**asdict(records[job]), "notes": None}) for job in order]
    RECORDS.write_text("\n".join(lines) + "\n")
    found = faults(records[job] for job in order)
    FAULTS.write_text("\n".join([*head(records.values()), "", *found]) + "\n")
    text = PAGE.read_text(encoding="utf-8")
    before, mark, _ = text.partition(MARK)
    PAGE.write_text(f"{before}{mark}\n\n" + "\n".join(table(records)) + "\n", encoding="utf-8")


def head(records: Iterable[Record]) -> list[str]:
    """What was run, with counts."""
    states = Counter((PEER if record.job.algo == PEER else "dipo", record.state) for record in records)
    counts = ", ".join(f"{who} {state} {number}" for (who, state), number in sorted(states.items()))
    return [
        "python benchmarks/models.py",
        f"dipo {dipo.__version__}, torch {torch.__version__}, ONNX Runtime {onnxruntime.__version__}",
        f"jobs: {counts}",
    ]


def table(records: dict[Job, Record]) -> list[str]:
    """The lines of the table."""
    titles = ["architecture", "exports", "in", "parity", "none dB", f"`{PEER}` dB", "bias_correction dB", "qdrop dB"]
    titles += ["other steps", "targets", "deployed dB", "operators in ONNX Runtime"]
    lines = [f"| {' | '.join(titles)} |", f"|{'---|' * len(titles)}"]
    for name in ARCHITECTURES:
        own = [record for record in records.values() if record.job.architecture == name]
        if own:
            lines.append(f"| {' | '.join(row(name, own))} |")
    return lines


def row(name: str, own: list[Record]) -> list[str]:
    """The cells of an architecture: figures of its first export, counts over all."""
    architecture = ARCHITECTURES[name]
    by_job = {record.job: record for record in own}
    first = architecture.variants[0]
    inside = [variant for variant in architecture.variants if goes_in(r for r in own if r.job.variant == variant)]
    others = [by_job.get(Job(name, first, algo, "ort")) for algo in ALGOS if algo not in ALL_VARIANTS]
    targets = [by_job.get(Job(name, first, "none", target)) for target in TARGETS]
    plain = by_job.get(Job(name, first, "none", "ort"))
    deployed = [r.deployed_db for r in own if r.deployed_db is not None]
    parities = [r.parity for r in own if r.parity is not None]
    theirs = best_peer(Job(name, first, "none", "ort"), by_job)
    missing = [each.job.algo for each in others if each and each.state != "done"]
    refusing = [each.job.target for each in targets if each and each.state != "done"]
    return [
        name,
        ", ".join(
            SHORT[exporter] for exporter in dict.fromkeys(variant.split("-")[0] for variant in architecture.variants)
        ),
        f"{len(inside)} of {len(architecture.variants)}",
        f"{max(parities):.0e}" if parities else "-",
        _db(plain),
        f"{min(theirs.values()):.1f}" if theirs else _refused(by_job.get(Job(name, first, PEER, "prepared"))),
        *(_db(by_job.get(Job(name, first, algo, "ort"))) for algo in ("bias_correction", "qdrop")),
        _all_but(others, missing),
        _all_but(targets, refusing),
        f"{min(deployed):.0f}{' *' if any(r.float_products for r in own) else ''}" if deployed else "-",
        ", ".join(sorted({operator for r in own for operator in r.in_onnx_runtime or ()})) or "-",
    ]


def _all_but(records: list[Record | None], without: list[str]) -> str:
    if any(record is None for record in records):
        return "-"
    return "all" if not without else f"all but {', '.join(without)}"


def _refused(record: Record | None) -> str:
    return "-" if record is None or record.state == "done" else "refused"


def _db(record: Record | None) -> str:
    if record is None or record.state != "done":
        return "-" if record is None else record.state
    known = [db for db in (record.db or {}).values() if db is not None]
    return f"{min(known):.1f}" if known else "sizes vary"


def main() -> None:
    """Tries the architectures and writes the records behind each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=".", help="pattern of the architectures")
    parser.add_argument("--jobs", default=".", help="pattern of 'NAME VARIANT ALGO TARGET'")
    parser.add_argument("--workers", type=int, default=1, help="architectures at the same time")
    parser.add_argument("--seconds", type=int, default=900, help="of an architecture")
    parser.add_argument("--folder", type=Path, help="where exported networks are kept; one that goes away by default")
    args = parser.parse_args()
    records = kept()
    names = [name for name in ARCHITECTURES if re.search(args.only, name)]
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(args.workers) as pool:
        folder = args.folder or Path(scratch)

        def one(name: str) -> tuple[str, list[Record], float]:
            start = time.perf_counter()
            return name, tried(name, jobs=args.jobs, folder=folder, seconds=args.seconds), time.perf_counter() - start

        for name, made, spent in pool.map(one, names):
            records |= {record.job: record for record in made}
            save(records)
            print(
                f"{name}: {len(made)} jobs, {spent:.0f} s",
                *(f"  {line}" for line in faults(made)),
                sep="\n",
                flush=True,
            )


if __name__ == "__main__":
    main()
