"""The consumers' verdicts on the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dipo.report.measures import OutputError
from dipo.verify.verdict import FAR_DB, State, TensorOutcome, Verdict

SHOWN = 5
"""Tensors of a state that are named unless all are asked for."""
WIDE = 120
"""Columns from which on files and consumers stand side by side."""


def show(verdicts: Sequence[Verdict], console: Console, *, root: Path, every: bool) -> None:
    """Print a table with a row for each consumer of each file, and the tensors that were not just accepted.

    Args:
        verdicts: The verdicts to show.
        console: The terminal that is printed to.
        root: The folder that names of files are relative to.
        every: Name every tensor.
    """
    console.print("\nwhat the consumers make of the files", style="bold")
    console.print(_table(verdicts, root, narrow=console.width < WIDE))
    for verdict in verdicts:
        lines = _lines(verdict, every=every)
        if lines:
            console.print(
                f"\n{_name(verdict.file, root)}, {verdict.consumer}:", markup=False, emoji=False, soft_wrap=True
            )
        for line in lines:
            console.print(f"  {line}", markup=False, emoji=False, soft_wrap=True)


def _table(verdicts: Sequence[Verdict], root: Path, *, narrow: bool) -> Table:
    """Make a table with one line for each verdict; on a narrow terminal two, the consumer below the file."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("file\n  consumer" if narrow else "file", overflow="fold")
    if not narrow:
        table.add_column("consumer", overflow="fold")
    for name in ("ac-\ncepted", "ig-\nnored", "re-\ncomputed", "SQNR\ndB", "agree-\nment %"):
        table.add_column(
            name if narrow else name.replace("-\n", "").replace("\n", " "),
            justify="right",
            vertical="bottom",
            no_wrap=True,
        )
    table.add_column("verdict", vertical="bottom", no_wrap=True)
    last = None
    for verdict in verdicts:
        # A file with several consumers is named once.
        name = "" if verdict.file == last else _name(verdict.file, root)
        last = verdict.file
        if narrow:
            who = [Text(f"{name}\n  {verdict.consumer}" if name else f"  {verdict.consumer}")]
        else:
            who = [Text(name), Text(verdict.consumer)]
        table.add_row(*who, *(Text(cell) for cell in _cells(verdict)))
    return table


def _cells(verdict: Verdict) -> tuple[str, ...]:
    if verdict.not_checked is not None:
        return *[""] * 5, "unchecked"
    if verdict.refused is not None:
        return *[""] * 5, "refused"
    counts = [str(verdict.count(state)) for state in (State.ACCEPTED, State.IGNORED, State.RECOMPUTED)]
    error = verdict.error
    measured = ["-", "-"] if error is None else [f"{error.sqnr_db:.1f}", _agreement(error)]
    return *counts, *measured, "failed" if verdict.failed else "ok"


def _agreement(error: OutputError) -> str:
    return "-" if error.agreement is None else f"{error.agreement:.1f}"


def _lines(verdict: Verdict, *, every: bool) -> list[str]:
    lines = list(verdict.notes)
    if verdict.not_checked is not None:
        lines.append(f"not checked: {verdict.not_checked}")
    if verdict.refused is not None:
        lines.append(f"refused: {verdict.refused}")
    if verdict.far:
        lines.append(
            f"its outputs are less than {FAR_DB:g} dB from those of quantized.onnx: it computes something else"
        )
    for state in (State.ACCEPTED, State.RECOMPUTED, State.IGNORED):
        fates = [fate for fate in verdict.tensors if fate.state is state]
        if state is State.ACCEPTED and not every:
            continue
        # An ignored tensor fails the check: all of them are named.
        shown = fates if every or state is State.IGNORED else fates[:SHOWN]
        lines += [_line(fate) for fate in shown]
        if len(fates) > len(shown):
            lines.append(f"{len(fates) - len(shown)} more {state} (all=true names them)")
    return lines


def _line(fate: TensorOutcome) -> str:
    return f"{fate.state} {fate.name}" + (f": {fate.why}" if fate.why else "")


def _name(file: Path, root: Path) -> str:
    return str(file.relative_to(root)) if file.is_relative_to(root) else str(file)
