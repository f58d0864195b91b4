"""A night and a trend as tables that fit the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from dipo.nightly.history import Past
from dipo.nightly.result import JobResult, Status
from dipo.nightly.summary import Row, Summary

STYLES = {Status.PASSED: "green", Status.FAILED: "red", Status.BROKEN: "bold red", Status.NOT_RUN: "yellow"}
NIGHT_WIDTHS = {"FP32 %": 100, "top-1 %": 0, "cosine": 0, "SQNR dB": 72, "time": 0}
"""Columns of a night's table, and from how many columns of the terminal they are shown."""
TREND_WIDTHS = {"top-1 %": 0, "cosine": 0, "SQNR dB": 76, "time": 0}
"""The same for a trend."""
FIGURES = {"top-1 %": ("accuracy_deployed", 2), "cosine": ("cosine", 5), "SQNR dB": ("sqnr_db", 2)}
"""Columns of a trend that show their change, the field of each, and its digits."""
BESIDE, WITH_YEAR = 104, 76
"""Columns of the terminal from which changes stand beside their figures, and from which dates have their year."""


def show_night(summary: Summary, console: Console) -> None:
    """Print the table of a night, and below it a line for each job that failed or differs."""
    columns = [name for name, least in NIGHT_WIDTHS.items() if console.width >= least]
    table = Table(title=Text(f"night {summary.name}"), title_justify="left", title_style="bold")
    table.add_column("job", overflow="fold", min_width=12)
    table.add_column("state")
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    for row in summary.rows:
        result = row.result
        cells = {
            "FP32 %": percent(result.accuracy_fp32),
            "top-1 %": percent(result.accuracy_deployed),
            "cosine": cosine(result.cosine),
            "SQNR dB": decibel(result.sqnr_db),
            "time": duration(result.seconds),
        }
        state = Text(result.status.value, style=STYLES[result.status])
        table.add_row(Text(result.name), state, *(cells[name] for name in columns))
    lines = [*_failures(summary), *_differences(summary.rows), *(Text(problem) for problem in summary.problems)]
    console.print(Group(Text(""), table, *lines))
    headline = f"{summary.headline}, {duration(summary.seconds)}"
    console.print(Text(f"{headline}, {summary.stopped}" if summary.stopped else headline, style="bold"))


def show_trend(trends: Mapping[str, Sequence[Past]], console: Console) -> None:
    """Print a table for each job: its nights, oldest first, with the change from the one before."""
    console.print(Group(*_spaced(_trend(job, pasts, width=console.width) for job, pasts in trends.items())))


def percent(value: float | None) -> str:
    """Two digits behind the point."""
    return "-" if value is None else f"{value:.2f}"


def cosine(value: float | None) -> str:
    """Format a cosine with five decimals."""
    return "-" if value is None else f"{value:.5f}"


def decibel(value: float | None) -> str:
    """Two digits behind the point."""
    return percent(value)


def duration(seconds: float) -> str:
    """Format seconds, such as 12.3 s, 4.5 min or 1.2 h."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def change(value: float | None, digits: int) -> str:
    """Format a change with its sign; empty where there is none."""
    if value is None:
        return ""
    text = f"{value:+.{digits}f}"
    return "=" if float(text) == 0 else text


def _failures(summary: Summary) -> Iterator[Text]:
    for row in summary.rows:
        if not row.result.complete or row.result.failures:
            style = STYLES[row.result.status]
            yield Text.assemble(
                (f"{row.result.name}: {row.result.status.value}: ", style), "; ".join(row.result.failures)
            )


def _differences(rows: Sequence[Row]) -> Iterator[Text]:
    for row in rows:
        comparison = row.comparison
        if comparison is None:
            continue
        gained = [
            f"top-1 {change(comparison.accuracy, 2)}" if change(comparison.accuracy, 2) not in {"", "="} else "",
            f"cosine {change(comparison.cosine, 5)}" if change(comparison.cosine, 5) not in {"", "="} else "",
            f"time x{comparison.seconds_ratio:.2f}" if comparison.seconds_ratio else "",
        ]
        figures = ", ".join(part for part in gained if part)
        yield Text(f"{row.result.name}: {comparison.sentence}" + (f" ({figures})" if figures else ""))


def _trend(job: str, pasts: Sequence[Past], *, width: int) -> Table:
    """Make a job's table; changes stand beside the figures, or below them where the terminal is narrow."""
    beside, columns = width >= BESIDE, [name for name, least in TREND_WIDTHS.items() if width >= least]
    table = Table(title=Text(job), title_justify="left", title_style="bold")
    table.add_column("night", no_wrap=True)
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
        if beside and name in FIGURES:
            table.add_column("", justify="right", no_wrap=True)
    table.add_column("state")
    before: JobResult | None = None
    for past in pasts:
        cells: list[str] = []
        for name in columns:
            shown = _figure(name, past.result, before)
            cells += shown if beside and name in FIGURES else ["\n".join(part for part in shown if part)]
        state = Text(past.result.status.value, style=STYLES[past.result.status])
        night = datetime.fromisoformat(past.started).astimezone()
        table.add_row(f"{night:%Y-%m-%d %H:%M}" if width >= WITH_YEAR else f"{night:%m-%d %H:%M}", *cells, state)
        before = past.result if past.result.complete else before
    return table


def _figure(name: str, result: JobResult, old: JobResult | None) -> tuple[str, str]:
    """Format a figure, and its change from the last night in which the job was complete."""
    if name not in FIGURES:
        return duration(result.seconds), ""
    field, digits = FIGURES[name]
    now, before = getattr(result, field), getattr(old, field) if old is not None else None
    text = "-" if now is None else f"{now:.{digits}f}"
    return text, change(None if now is None or before is None else now - before, digits)


def _spaced(tables: Iterator[Table]) -> Iterator[RenderableType]:
    for number, table in enumerate(tables):
        if number:
            yield Text("")
        yield table
