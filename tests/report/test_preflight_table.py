"""The table in front of a job: what it says, and that it fits any terminal."""

import dataclasses
import io

import pytest
from rich.console import Console

from dipo.report.network_facts import Estimate, FloatRow, NetworkFacts, Preflight, RegionRow
from dipo.report.preflight_table import amount, duration, preflight_table

FACTS = NetworkFacts(
    operators={"Conv": 21, "Relu": 19, "Add": 9, "Reshape": 4, "Gemm": 2, "Sigmoid": 2, "Concat": 1},
    regions=[
        RegionRow(["lstm"], {"LSTM": 1}, 0.25),
        RegionRow(["nms", "pick"], {"NonMaxSuppression": 1, "Cast": 1}, 0),
    ],
    layers=23,
    quantized=22,
    stays_float=[
        FloatRow("lstm", "LSTM", "computed in ONNX Runtime, its weights stay float", 0.25),
        FloatRow("head", "Gemm", "left out by precision.skip", 0.05),
    ],
    units=11,
    parameters=270_896,
    multiplications=40_551_040,
    quantized_share=0.7,
)
FOUND = Preflight(
    title="net: qdrop, w8a8 for ort",
    facts=FACTS,
    samples={"calibration": "npz, 64 samples of 3x32x32, labels", "pixels": "0 to 255 become 0 to 1"},
    estimate=Estimate({"calibrate": 0.4, "qdrop": 190.0, "verify": 3.0}, ["analyze"], 2, 612.4),
)


def shown(found: Preflight, *, width: int, every: bool = False) -> str:
    out = io.StringIO()
    Console(file=out, width=width, highlight=False).print(preflight_table(found, every=every))
    return out.getvalue()


def test_it_says_all_that_is_known():
    text = shown(FOUND, width=120)
    for words in (
        "58 nodes: 21 Conv, 19 Relu, 9 Add, 4 Reshape, 2 Gemm and 3 of others",
        "lstm (LSTM), 25.0 % of the multiplications",
        "nms and others, 2 nodes: 1 NonMaxSuppression, 1 Cast",
        "22 of 23 layers, 70.0 % of the multiplications",
        "2 products, 30.0 % of the multiplications",
        "head (Gemm, 5.0 %): left out by precision.skip",
        "271 thousand",
        "40.6 million a sample",
        "0 to 255 become 0 to 1",
        "about 610 MB a worker",
        "about 3.2 min with 2 workers, and analyze: calibrate 1 s, qdrop 3.2 min, verify 3.0 s",
    ):
        assert words in text, words
    assert "\x1b" not in text, "where there are no colours"


@pytest.mark.parametrize("width", [50, 80, 200])
def test_no_line_is_wider_than_the_terminal(width):
    lines = shown(FOUND, width=width).splitlines()
    assert max(map(len, lines)) <= width
    words = " ".join(line.strip("│ ").partition("│")[2].strip() for line in lines)
    assert "LSTM" in words


def test_many_floats_are_counted_unless_all_are_asked_for():
    rows = [FloatRow(f"head{number}", "Gemm", "left out by precision.skip", 0.01) for number in range(12)]
    many = dataclasses.replace(FOUND, facts=dataclasses.replace(FACTS, stays_float=rows))
    assert "and 7 more, see --verbose" in shown(many, width=100)
    assert "head11" not in shown(many, width=100)
    assert "head11" in shown(many, width=100, every=True)


def test_what_is_not_there_is_not_said():
    facts = dataclasses.replace(FACTS, regions=[], stays_float=[], units=None, quantized_share=1.0)
    text = shown(dataclasses.replace(FOUND, facts=facts, estimate=None), width=100)
    assert "units" not in text
    assert "stays float" not in text
    assert "in ONNX Runtime │ nothing" in text
    assert "not measured" in text


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (999, "999"), (1000, "1.00 thousand"), (68_341, "68.3 thousand"), (4.1e10, "41.0 billion")],
)
def test_amounts(number, text):
    assert amount(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "1 s"), (4.26, "4.3 s"), (75, "75 s"), (194, "3.2 min"), (3000, "50 min"), (40_000, "11 h")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text
