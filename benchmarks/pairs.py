"""Two commands as whole processes, in turns: seconds, peak memory of the largest process, and the ratios.

    python benchmarks/pairs.py NAME --runs 5 -- COMMAND A ... -- COMMAND B ...

Writes `NAME.txt` beside this script. Absolute seconds belong to a machine; the ratios, from pairs that ran one after
the other, less so.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Cost:
    """What one run of a command took."""

    seconds: float
    peak_mb: float


def measure(command: list[str]) -> Cost:
    """Runs a command to its end; stops where it fails."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    errors = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{' '.join(command)}\n{errors.decode()[-2000:]}")
    return Cost(time.perf_counter() - start, usage.ru_maxrss / 1024)


def main() -> None:
    """Prints and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("--runs", type=int, default=5)
    cut = sys.argv.index("--")
    args = parser.parse_args(sys.argv[1:cut])
    rest = sys.argv[cut + 1 :]
    commands = [rest[: rest.index("--")], rest[rest.index("--") + 1 :]]
    costs: list[list[Cost]] = [[], []]
    for _ in range(args.runs):
        for command, runs in zip(commands, costs, strict=True):
            runs.append(measure(command))
    lines = []
    for letter, command, runs in zip("AB", commands, costs, strict=True):
        seconds = [run.seconds for run in runs]
        lines += [
            f"{letter}: {' '.join(command)}",
            f"   seconds min {min(seconds):.2f} median {statistics.median(seconds):.2f} max {max(seconds):.2f}, "
            f"peak {statistics.median(run.peak_mb for run in runs):.0f} MB",
        ]
    times = [a.seconds / b.seconds for a, b in zip(*costs, strict=True)]
    peaks = [a.peak_mb / b.peak_mb for a, b in zip(*costs, strict=True)]
    ratios = f"time {statistics.median(times):.2f}, peak memory {statistics.median(peaks):.2f}"
    lines.append(f"A / B, median of {args.runs} pairs: {ratios}")
    text = "\n".join(lines)
    print(text)
    Path(__file__).with_name(f"{args.name}.txt").write_text(text + "\n")


if __name__ == "__main__":
    main()
