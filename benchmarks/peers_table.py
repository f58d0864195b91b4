"""The table that `peers.py` writes: scores of two networks beside each other, rows replaced one by one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

PEER, RIVAL = 22, 50
NOTES = "\nNotes\n"
HEAD = (
    f"{'peer':{PEER}} {'top-1':>6}  {'agree':>6}  {'SQNR':>6}   {'dipo':{RIVAL}} {'top-1':>6} {'agree':>6} {'SQNR':>6} "
    f"{'time':>7} {'memory':>7} {'dipo s':>7} {'dipo MB':>8} {'runs':>5}"
)


@dataclass(frozen=True)
class Score:
    """A quantized network on the held-out images."""

    top1: float
    """Per cent."""
    agree: float
    """Per cent of the images with the float network's top-1."""
    sqnr_db: float

    @classmethod
    def of(cls, logits: NDArray[np.float32], reference: NDArray[np.float32], labels: NDArray[np.int64]) -> Score:
        """From logits [N, classes]; the SQNR, 10 log10(sum r^2 / sum (r - q)^2), is over all of them."""
        best = logits.argmax(1)
        error = np.square(reference - logits, dtype=np.float64).sum()
        signal = np.square(reference, dtype=np.float64).sum()
        sqnr = 10 * np.log10(signal / max(error, np.finfo(np.float64).tiny))
        return cls(100 * float((best == labels).mean()), 100 * float((best == reference.argmax(1)).mean()), float(sqnr))


@dataclass(frozen=True)
class Line:
    """One peer against one run of dipo."""

    peer: str
    rival: str
    peer_score: Score
    dipo_score: Score
    time: float
    memory: float
    dipo_seconds: float
    dipo_mb: float
    runs: int

    def __str__(self) -> str:
        """As in the table; what is better than dipo's has a star."""
        ours, theirs = self.dipo_score, self.peer_score
        return (
            f"{self.peer:{PEER}} {_starred(theirs.top1, ours.top1)} {_starred(theirs.agree, ours.agree)} "
            f"{_starred(theirs.sqnr_db, ours.sqnr_db)}  {self.rival:{RIVAL}} "
            f"{ours.top1:6.2f} {ours.agree:6.2f} {ours.sqnr_db:6.2f} "
            f"{self.time:7.2f} {self.memory:7.2f} {self.dipo_seconds:7.1f} {self.dipo_mb:8.0f} {self.runs:5d}"
        )


def _starred(theirs: float, ours: float) -> str:
    return f"{theirs:6.2f}{'*' if theirs > ours else ' '}"


def unexplained(path: Path) -> list[str]:
    """The peers of the table that have a star and of which its notes say nothing."""
    table, _, notes = path.read_text().partition(NOTES)
    rows = table.partition(f"{HEAD}\n")[2].splitlines()
    return sorted({row.split()[0] for row in rows if "*" in row and row.split()[0] not in notes})


def update(path: Path, header: Sequence[str], lines: Sequence[Line], *, order: Sequence[str]) -> None:
    """Writes the lines into the table: in the place of the same peer's, the peers in their order, its notes kept."""
    text = path.read_text() if path.is_file() else ""
    table, _, notes = text.partition(NOTES)
    _, _, body = table.partition(f"{HEAD}\n")
    new = {line.peer for line in lines}
    kept = [row for row in body.splitlines() if row.strip() and row.split()[0] not in new]
    rows = [row for row in kept if row.split()[0] in order] + [str(line) for line in lines]
    rows.sort(key=lambda row: order.index(row.split()[0]))
    written = "\n".join([*header, "", HEAD, *rows]) + "\n" + NOTES + notes
    temporary = path.with_suffix(".tmp")
    temporary.write_text(written)
    temporary.replace(path)
