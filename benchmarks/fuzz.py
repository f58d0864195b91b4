"""How jobs on odd files end: graphs that hypothesis makes; models, samples and options with something wrong in them.

    python benchmarks/fuzz.py                           10,000 jobs, prints the counts and writes them into fuzz.txt
    python benchmarks/fuzz.py --jobs 500 --seed 7       others, nothing is written
    python benchmarks/fuzz.py --faults FOLDER           keeps the files of each job that ended badly, to try it again

A job is the command line `dipo`, mostly with dry_run=true, one in ten as a whole with algo=none or bias_correction. It
goes in, or is refused with one sentence and nothing left behind; a traceback, a dead process, 60 s without an end, or a
file that is half written is a fault, and the script ends with 1.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from fuzz_jobs import Counts, fuzz

RECORD = Path(__file__).with_suffix(".txt")
JOBS, SEED, CHUNK = 10_000, 1, 250


def fuzz_all(number: int, *, first_seed: int, folder: Path, processes: int, faults: Path | None = None) -> Counts:
    """Run so many jobs, each `CHUNK` of them made from a seed of its own.

    Args:
        number: Of jobs.
        first_seed: The first chunk's.
        folder: Where their files lie while they run.
        processes: How many chunks are at work.
        faults: Folder for the files of jobs that ended badly; None: they go away.
    """
    counts, context = Counts(), multiprocessing.get_context("spawn")
    sizes = [min(CHUNK, number - start) for start in range(0, number, CHUNK)]
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        done = [
            pool.submit(fuzz, size, first_seed=first_seed + index, folder=folder / str(index), faults=faults)
            for index, size in enumerate(sizes)
        ]
        for part in done:
            counts.add_all(part.result())
    return counts


def main() -> int:
    """Run the jobs of the command line, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=JOBS)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--faults", type=Path)
    asked = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        counts = fuzz_all(
            asked.jobs, first_seed=asked.seed, folder=Path(folder), processes=asked.processes, faults=asked.faults
        )
    lines = [f"{counts.jobs} jobs, seeds from {asked.seed} on, {time.monotonic() - began:.0f} s", "", *counts.lines()]
    lines += ["", *(f"FAULT {case.kind} {outcome.what}: {outcome.sentence}" for case, outcome in counts.faults)]
    text = "\n".join(lines).rstrip() + "\n"
    print(text, end="")
    if (asked.jobs, asked.seed) == (JOBS, SEED):
        RECORD.write_text(text)
    return 1 if counts.faults else 0


if __name__ == "__main__":
    sys.exit(main())
