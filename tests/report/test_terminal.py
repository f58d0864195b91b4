import io
from dataclasses import replace

import pytest
from rich.console import Console

from dipo.report import terminal as module
from dipo.report.measures import OutputError, OutputFigures
from dipo.report.report import ConcatRow, LayerRow, Note, OutputRow, Report, TargetRow
from dipo.report.terminal import WORST_LAYERS, Terminal


def console(width: int = 120, *, is_terminal: bool = False) -> Console:
    color = "standard" if is_terminal else None
    return Console(file=io.StringIO(), width=width, force_terminal=is_terminal, color_system=color, highlight=False)


def shown(terminal: Terminal) -> str:
    return terminal.console.file.getvalue()


FIGURES = OutputFigures(98.25, 0.99911, 27.29, 0.125, None)


@pytest.fixture
def report() -> Report:
    return Report(
        model="net[v2]",
        algo="brecq",
        platform="ort",
        precision="w4a8",
        samples={"calibration": 32, "evaluation": 100},
        evaluated_on="evaluation",
        parity=1e-6,
        accuracy={"fp32": 92.5, "simulated": 91.25, "deployed": None},
        error={
            "simulated_vs_fp32": OutputError(98.5, 0.99912, 27.31),
            "deployed_vs_fp32": OutputError(98.25, 0.99911, 27.29),
            "deployed_vs_simulated": OutputError(99.75, 0.99999, 61.5),
        },
        outputs=[OutputRow("logits", [10], "float32", 1, FIGURES, FIGURES)],
        layers=[LayerRow(f"/features/{i}/[/b]/Conv", 0.99 - i / 100, 40.0 - i) for i in range(8)],
        concats=[],
        units=[],
        not_reconstructed=[],
        analysis=None,
        equalized=[],
        notes=[],
        files={"float": 2048 * 1024, "quantized.onnx": 512 * 1024, "ranges.json": 2048},
        seconds={"load": 1.25, "calibrate": 3.5},
        peak_rss_mb={"driver": 300.0},
        workers={},
        versions={},
    )


def test_the_table_names_the_networks_and_their_figures(report):
    terminal = Terminal(console())
    terminal.show(report)
    text = shown(terminal)
    lines = text.splitlines()
    assert "net[v2]: brecq, w4a8 for ort, 100 evaluation samples" in text
    for name, figures in {
        "FP32": ["92.50"],
        "simulated": ["91.25", "98.50", "0.99912", "27.31"],
        "deployed": ["-", "98.25", "0.99911", "27.29"],
        "deployed against simulated": ["99.75", "0.99999", "61.50"],
    }.items():
        (line,) = [line for line in lines if line.strip("│ ").startswith(f"{name} ") and line.count("│") == 6][:1]
        assert [cell.strip() for cell in line.strip("│").split("│")[1:] if cell.strip()] == figures
    assert "quantized.onnx 512 KB (0.25 of the float file)" in text
    assert "load 1.2 s, calibrate 3.5 s" in text


def test_the_worst_layers_come_first_and_their_names_are_no_markup(report):
    terminal = Terminal(console())
    terminal.show(report)
    named = [line for line in shown(terminal).splitlines() if "/features/" in line]
    assert len(named) == WORST_LAYERS
    assert "/features/7/[/b]/Conv" in named[0]
    assert "33.00" in named[0]


def cells(text: str, name: str) -> list[str]:
    """Return the cells of the first row that begins with the name."""
    line = next(line for line in text.splitlines() if line.strip("│ ").startswith(f"{name} "))
    return [cell.strip() for cell in line.strip("│").split("│")]


def test_the_worst_of_several_outputs_stands_in_the_headline_and_each_has_a_row(report):
    boxes = OutputFigures(None, 0.9999, 42.5, 3.5, None)
    lost = OutputFigures(None, 0.0, 0.0, 1.0, None)
    mask = OutputFigures(None, None, None, None, 97.5)
    rows = [
        OutputRow("boxes", [64, 4], "float32", None, boxes, boxes),
        OutputRow("[scores]", [64, 5], "float32", None, boxes, lost),
        OutputRow("mask", [], "bool", None, mask, mask),
    ]
    error = {name: replace(error, agreement=None) for name, error in report.error.items()}
    terminal = Terminal(console())
    terminal.show(replace(report, outputs=rows, error=error))
    text = shown(terminal)
    assert cells(text, "deployed")[1:] == ["-", "-", "0.99911", "27.29"]
    assert cells(text, "worst output [scores]")[-1] == "0.00"
    assert cells(text, "worst output boxes")[-1] == "42.50"
    assert cells(text, "boxes") == ["boxes", "64x4", "-", "0.99990", "42.50", "3.5"]
    assert cells(text, "mask") == ["mask", "1", "97.50", "-", "-", "-"]


@pytest.mark.parametrize("width", [120, 80, 60])
def test_a_long_name_of_an_output_is_whole_and_leaves_no_column_of_letters(report, width):
    names = [f"a_rather_long_name_of_one_of_the_outputs_of_a_detector_level_{i}" for i in range(3)]
    good, worst = (OutputFigures(99.5, 0.9999, sqnr, 3.5, None) for sqnr in (42.5, 12.5))
    rows = [OutputRow(name, [64, 4], "float32", 1, good, worst if name == names[1] else good) for name in names]
    terminal = Terminal(console(width))
    terminal.show(replace(report, outputs=rows))
    text = shown(terminal)
    assert max(map(len, text.splitlines())) <= width
    first = "".join(line.strip("│").split("│")[0].strip() for line in text.splitlines() if line.startswith("│"))
    assert f"worstoutput{names[1]}" in first.replace(" ", "")
    assert all(name in first for name in names)
    assert "…" not in text
    assert len(text.splitlines()) < 60


def test_a_single_output_is_the_network_itself(report):
    terminal = Terminal(console())
    terminal.show(report)
    assert "worst output" not in shown(terminal)
    assert "outputs of" not in shown(terminal)


def test_inputs_of_concats_stand_among_the_layers(report):
    terminal = Terminal(console())
    terminal.show(replace(report, concats=[ConcatRow("scores", "join", 0.0, 0.0, 0.4)]))
    text = shown(terminal)
    assert "worst layers and inputs of Concats" in text
    assert cells(text, "scores, input of join") == ["scores, input of join", "0.00000", "0.00"]


def test_the_worst_output_of_another_target_is_named():
    boxes, lost = (OutputFigures(None, 1.0, sqnr, 0.0, None) for sqnr in (42.5, 0.25))
    rows = [OutputRow(name, [4], "float32", None, each, None) for name, each in (("boxes", boxes), ("scores", lost))]
    row = TargetRow("rk", [], {}, {}, OutputError(None, 0.99, 41.0), [], {"quantized.onnx": 1}, rows)
    terminal = Terminal(console())
    terminal.show_target(row, "run/rk")
    assert "simulation against FP32: 41.00 dB, worst output scores 0.25 dB" in shown(terminal)


@pytest.mark.parametrize("width", [120, 60, 40])
def test_tables_fit_the_console_and_lose_no_figure(report, width):
    terminal = Terminal(console(width))
    terminal.show(report)
    text = shown(terminal)
    assert max(map(len, text.splitlines())) <= width
    flat = "".join(text.split())
    assert "\x1b" not in text
    for figure in ("92.50", "0.99912", "27.31"):
        assert figure in flat or width == 40


def test_a_line_is_left_as_it_is_however_long_or_odd():
    terminal = Terminal(console(40))
    line = "run folder: " + "/long[red]" * 20 + " :smile:"
    terminal.say(line)
    assert shown(terminal) == line + "\n"


def test_progress_without_a_terminal_is_plain_lines_now_and_then(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    terminal = Terminal(console(60))
    with terminal.task("unit 1/3 /conv1", 100, "steps") as progress:
        for step in range(1, 101):
            now[0] += 0.5
            progress(step)
    lines = shown(terminal).splitlines()
    assert lines[0] == "unit 1/3 /conv1: 100 steps"
    assert lines[1] == "unit 1/3 /conv1: 20/100 steps, 40 s left"
    assert lines[-1] == "unit 1/3 /conv1: done in 50.0 s"
    assert len(lines) == 6
    assert "\x1b" not in shown(terminal)


def test_a_task_that_broke_is_not_called_done():
    terminal = Terminal(console())
    with pytest.raises(RuntimeError), terminal.task("calibrate", 8, "samples"):
        raise RuntimeError
    assert "done" not in shown(terminal)


@pytest.mark.parametrize("width", [120, 50])
def test_progress_in_a_terminal_is_a_bar_that_ends_full(width):
    terminal = Terminal(console(width, is_terminal=True))
    with terminal.task("unit 1/2 /a/[/b]", 8, "samples") as progress:
        progress(3)
    text = shown(terminal)
    assert "8/8" in text
    assert "unit 1/2 /a/[/b]" in text


def test_the_first_notes_are_told_and_the_others_counted():
    terminal = Terminal(console())
    terminal.show_notes([Note(f"/layer[{index}]", "its weight is all zero") for index in range(8)])
    lines = shown(terminal).splitlines()
    assert lines[0] == "note: /layer[0]: its weight is all zero"
    assert len(lines) == 6
    assert lines[-1] == "3 more notes are in report.json"
