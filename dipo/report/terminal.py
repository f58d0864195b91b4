"""The output of a run on the terminal: progress with remaining time, and one table at the end.

Where the output is no terminal, progress is plain lines: one when a task begins, one now and then, one when it ends.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence

from rich.console import Console, Group
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from dipo.report.analysis import AnalysisReport, AnalysisRow
from dipo.report.measures import OutputError
from dipo.report.network_facts import Preflight
from dipo.report.preflight_table import preflight_table
from dipo.report.report import ConcatRow, Note, Report, TargetRow, worst_output
from dipo.run import REPORT

PLAIN_SECONDS = 10.0
"""Seconds between two plain lines of a task."""
WORST_LAYERS = 5
SENSITIVE_LAYERS = 10
NOTES = 5
WIDE = 110
"""Columns of a console from which on a table may say everything."""
NARROW = 80
"""Columns of a console below which a table leaves room for the names."""


class Terminal:
    """The terminal that a run prints to."""

    def __init__(self, console: Console | None = None) -> None:
        """Speak to standard output by default."""
        self.console = console or Console(highlight=False)

    @classmethod
    def silent(cls) -> Terminal:
        """Return a terminal that says nothing."""
        return cls(Console(quiet=True, force_terminal=False))

    def say(self, text: str) -> None:
        """Print a line; it is not wrapped, so that paths in it can be copied."""
        self.console.print(text, markup=False, emoji=False, soft_wrap=True)

    @contextlib.contextmanager
    def task(self, title: str, total: int, noun: str) -> Iterator[Callable[[int], None]]:
        """Show the progress of a task; yield a function to call with what is done."""
        if self.console.is_terminal:
            with self._bar() as bar:
                task = bar.add_task(title, total=total, noun=noun)
                yield lambda done: bar.update(task, completed=done)
                bar.update(task, completed=total)
            return
        plain = _PlainTask(self.say, title, total, noun)
        yield plain.update
        plain.end()

    def _bar(self) -> Progress:
        return Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None if self.console.width < 60 else 24), MofNCompleteColumn(),
            TextColumn("{task.fields[noun]}"), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
            console=self.console,
        )  # fmt: skip

    def show_preflight(self, found: Preflight, *, every: bool) -> None:
        """Print what a job's network is made of and what it will cost.

        Args:
            found: What is known before the work.
            every: Whether to name all nodes that stay float, not just some.
        """
        self.console.print(preflight_table(found, every=every))

    def show(self, report: Report) -> None:
        """Print the table at the end of a run."""
        each = [_each_output(report, narrow=self.console.width < NARROW)] if len(report.outputs) > 1 else []
        worst = [_layers(report)] if report.worst_layers(WORST_LAYERS) else []
        self.console.print(Group(Text(""), _outputs(report), *each, *worst, _costs(report)))

    def show_analysis(self, analysis: AnalysisReport) -> None:
        """Print the layers that cost most accuracy, and the options that would help them."""
        self.console.print(Group(Text(""), _sensitive(analysis, wide=self.console.width >= WIDE)))
        for option in analysis.options():
            self.say(f"try '{option}'")

    def show_target(self, row: TargetRow, folder: str) -> None:
        """Print a line on another target's files, and one on each difference."""
        parts = [f"{folder}: {', '.join(row.files)}"]
        if row.error is not None:
            agreement = "" if row.error.agreement is None else f"{row.error.agreement:.2f} % / "
            lowest = worst_output(row.outputs, deployed=False)
            beside = "" if lowest is None else f", worst output {lowest[0]} {lowest[1]:.2f} dB"
            parts.append(f"simulation against FP32: {agreement}{row.error.sqnr_db:.2f} dB{beside}")
        if row.weights:
            worst = min(row.weights, key=row.weights.__getitem__)
            parts.append(f"{len(row.weights)} weights rounded again, worst {worst} {row.weights[worst]:.1f} dB")
        self.say(f"{row.name}: {'; '.join(parts)}")
        for text in [*row.differences, *row.notes]:
            self.say(f"  {text}")

    def show_notes(self, notes: Sequence[Note]) -> None:
        """Print the first notes on oddities of the network and steps left out; the report has all."""
        for note in notes[:NOTES]:
            self.say(f"note: {note.name}: {note.what}")
        if len(notes) > NOTES:
            self.say(f"{len(notes) - NOTES} more notes are in {REPORT}")


class _PlainTask:
    def __init__(self, say: Callable[[str], None], title: str, total: int, noun: str) -> None:
        self.say, self.title, self.total, self.noun = say, title, total, noun
        self.begun = self.spoken = time.monotonic()
        say(f"{title}: {total} {noun}")

    def update(self, done: int) -> None:
        now = time.monotonic()
        if done and done < self.total and now - self.spoken >= PLAIN_SECONDS:
            left = (now - self.begun) / done * (self.total - done)
            self.say(f"{self.title}: {done}/{self.total} {self.noun}, {left:.0f} s left")
            self.spoken = now

    def end(self) -> None:
        self.say(f"{self.title}: done in {time.monotonic() - self.begun:.1f} s")


def _outputs(report: Report) -> Table:
    samples = f"{report.samples['evaluation']} {report.evaluated_on} samples"
    title = f"{report.model}: {report.algo}, {report.precision} for {report.platform}, {samples}"
    table = Table(title=Text(title), title_justify="left", title_style="bold")
    table.add_column("network", overflow="fold")
    for name in ("top-1 %", "agreement %", "cosine", "SQNR dB"):
        table.add_column(name, justify="right")
    table.add_row("FP32", _percent(report.accuracy["fp32"]), "", "", "")
    for name in ("simulated", "deployed"):
        table.add_row(name, _percent(report.accuracy[name]), *_error_cells(report.error[f"{name}_vs_fp32"]))
        worst = worst_output(report.outputs, deployed=name == "deployed")
        if worst is not None:
            table.add_row(Text(f"  worst output {worst[0]}"), "", "", "", f"{worst[1]:.2f}")
    table.add_row("deployed against simulated", "", *_error_cells(report.error["deployed_vs_simulated"]))
    return table


def _error_cells(error: OutputError) -> tuple[str, str, str]:
    return _percent(error.agreement), f"{error.cosine:.5f}", f"{error.sqnr_db:.2f}"


def _each_output(report: Report, *, narrow: bool) -> Table:
    """Return a table of the outputs, for a network with several; a single one's row is that of the network."""
    table = Table(title="outputs of the deployed network", title_justify="left", title_style="bold")
    table.add_column("output", overflow="fold")
    for name in (
        ("same %", "cosine", "SQNR dB") if narrow else ("sample", "same %", "cosine", "SQNR dB", "largest error")
    ):
        table.add_column(name, justify="right")
    for row in report.outputs:
        error = row.deployed or row.simulated
        same = error.equal if error.agreement is None else error.agreement
        cells = [
            "x".join(map(str, row.shape)) or "1",
            _percent(same),
            "-" if error.cosine is None else f"{error.cosine:.5f}",
            _percent(error.sqnr_db),
            "-" if error.max_error is None else f"{error.max_error:.3g}",
        ]
        table.add_row(Text(row.name), *(cells[1:-1] if narrow else cells))
    return table


def _layers(report: Report) -> Table:
    what = "layers and inputs of Concats" if report.concats else "layers"
    table = Table(title=f"worst {what}, with the errors of those before", title_justify="left", title_style="bold")
    table.add_column("layer", overflow="fold")
    table.add_column("cosine", justify="right")
    table.add_column("SQNR dB", justify="right")
    for row in report.worst_layers(WORST_LAYERS):
        name = f"{row.name}, input of {row.concat}" if isinstance(row, ConcatRow) else row.name
        table.add_row(Text(name), f"{row.cosine:.5f}", f"{row.sqnr_db:.2f}")
    return table


def _sensitive(analysis: AnalysisReport, *, wide: bool) -> Table:
    num_samples = f"{analysis.sensitivity_samples} samples"
    table = Table(title=f"most sensitive layers, each quantized alone, {num_samples}", title_justify="left")
    table.title_style = "bold"
    table.add_column("layer", overflow="fold")
    if wide:
        table.add_column("bits")
    for name in ("network dB", "share %", "weight dB", "input dB", "in place dB") if wide else ("network dB",):
        table.add_column(name, justify="right")
    table.add_column("advice" if wide else "hurts, advice")
    for row in analysis.most_sensitive(SENSITIVE_LAYERS):
        table.add_row(Text(row.name), *(_wide_cells(row) if wide else _narrow_cells(row)))
    return table


def _wide_cells(row: AnalysisRow) -> tuple[str, ...]:
    activation = row.alone.activation
    return (
        f"w{row.weight_bits}" + ("" if row.act_bits is None else f"a{row.act_bits}"),
        f"{row.sensitivity.sqnr_db:.2f}",
        f"{100 * row.sensitivity.share:.1f}",
        f"{row.alone.weight.sqnr_db:.2f}",
        "float" if activation is None else f"{activation.sqnr_db:.2f}",
        f"{row.accumulated.sqnr_db:.2f}",
        row.advice or "",
    )


def _narrow_cells(row: AnalysisRow) -> tuple[str, str]:
    return f"{row.sensitivity.sqnr_db:.2f}", row.hurts + (f": {row.advice}" if row.advice else "")


def _costs(report: Report) -> Text:
    times = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in report.seconds.items())
    float_size = report.files["float"]
    models = [name for name in report.files if name.endswith(".onnx")]
    beside = {"float", *(f"{name}.data" for name in models)}
    sizes = ", ".join(
        f"{name} {_size(report.model_size(name))} ({report.model_size(name) / float_size:.2f} of the float file)"
        if name in models
        else f"{name} {_size(size)}"
        for name, size in report.files.items()
        if name not in beside
    )
    return Text(f"time: {times}\nwritten: {sizes}")


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _size(num_bytes: int) -> str:
    if num_bytes < 1024:
        return f"{num_bytes} B"
    return f"{num_bytes / 1024:.0f} KB" if num_bytes < 10 << 20 else f"{num_bytes / (1 << 20):.0f} MB"
