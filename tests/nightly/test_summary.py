"""A night on the terminal, as JSON, as JUnit XML and as HTML; nothing is run."""

import io
import json
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from rich.console import Console

from dipo.nightly.compare import compare
from dipo.nightly.gates import GateOutcome
from dipo.nightly.history import Past
from dipo.nightly.html import html_page
from dipo.nightly.junit import junit_xml
from dipo.nightly.result import Status
from dipo.nightly.summary import Row, Summary
from dipo.nightly.terminal import change, duration, show_night, show_trend

STARTED = "2026-01-02T03:04:05+00:00"
GATE = GateOutcome("max_top1_drop", 0.5, 1.0, False, "top-1 drop: 1.00 points (90.00 to 89.00), at most 0.5 allowed")


@pytest.fixture
def summary(job_result):
    before = Past("2026-01-01_03-00-00", STARTED, job_result(accuracy_deployed=89.25, layers=job_result().layers[:1]))
    rows = (
        Row(job_result("good"), compare(job_result("good"), before)),
        Row(job_result("low", status=Status.FAILED, gates=(GATE,)), None),
        Row(
            job_result(
                "broken", status=Status.BROKEN, reason="<b>no</b> ONNX & \x1b[31mred\x1b[0m \x00",
                log_tail=("first line", "<script>alert(1)</script>"), layers=(),
                accuracy_fp32=None, accuracy_deployed=None, agreement=None, cosine=None, sqnr_db=None,
            ),
            None,
        ),
        Row(job_result("late", status=Status.NOT_RUN, reason="stopped by Ctrl-C", seconds=0.0, layers=()), None),
    )  # fmt: skip
    return Summary(
        name="2026-01-02_03-04-05", started=STARTED, seconds=83.2, folder=Path("out"), stopped="stopped by Ctrl-C",
        rows=rows, problems=(), version="0.1.0",
    )  # fmt: skip


def shown(what, value, width: int, **more) -> str:
    console = Console(file=io.StringIO(), width=width, highlight=False, **more)
    what(value, console)
    return console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_table_fits_the_terminal_and_names_what_failed(summary, width):
    text = shown(show_night, summary, width)
    assert max(map(len, text.splitlines())) <= width
    assert "\x1b" not in text.replace("\x1b[31mred\x1b[0m", "")
    flat = " ".join(text.split())
    assert GATE.sentence in flat
    assert "first at conv: new (top-1 -0.25" in flat
    assert "late: not run: stopped by Ctrl-C" in flat
    assert "4 jobs: 1 passed, 1 gate failed, 1 broken, 1 not run, 83.2 s, stopped by Ctrl-C" in flat
    assert ("FP32 %" in text) is (width == 120)
    assert ("SQNR dB" in text) is (width > 60)


def test_a_terminal_gets_colours(summary):
    assert "\x1b[" in shown(show_night, summary, 80, force_terminal=True, color_system="standard", legacy_windows=False)


def test_the_night_has_passed_only_where_every_job_has(summary):
    assert not summary.passed
    good = Summary(**{**vars(summary), "rows": summary.rows[:1]})
    assert good.passed
    assert not Summary(**{**vars(good), "problems": ("the history failed",)}).passed


def test_the_json_has_all_figures_and_no_layers(summary):
    content = json.loads(json.dumps(summary.to_plain(), allow_nan=False))
    assert content["counts"] == {"passed": 1, "gate failed": 1, "broken": 1, "not run": 1}
    assert content["passed"] is False
    jobs = {job["name"]: job for job in content["jobs"]}
    assert jobs["good"]["comparison"]["first"] == {"layer": "conv", "changes": ["new"]}
    assert jobs["low"]["gates"][0]["sentence"] == GATE.sentence
    assert jobs["broken"]["accuracy_deployed"] is None
    assert "layers" not in jobs["good"]


def test_the_junit_file_counts_what_its_testcases_say(summary):
    suites = ElementTree.fromstring(junit_xml(summary))
    assert suites.tag == "testsuites"
    (suite,) = suites
    cases = suite.findall("testcase")
    for counted, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        assert suites.get(counted) == suite.get(counted) == str(len(suite.findall(f"testcase/{tag}"))) == "1"
    assert suite.get("tests") == str(len(cases)) == "4"
    assert suite.get("timestamp") == "2026-01-02T03:04:05"
    assert all(case.get("name") and case.get("classname") == "dipo.net" and case.get("time") for case in cases)
    by_name = {case.get("name"): case for case in cases}
    failure, error = by_name["low"].find("failure"), by_name["broken"].find("error")
    assert failure is not None
    assert error is not None
    assert (failure.get("message"), failure.get("type")) == (GATE.sentence, "max_top1_drop")
    assert error.get("message") == "<b>no</b> ONNX & red "
    assert error.text == "first line\n<script>alert(1)</script>"


JUNIT = {
    "testsuites": ({"name", "time", "tests", "failures", "errors", "skipped"}, {"testsuite"}),
    "testsuite": (
        {"name", "tests", "failures", "errors", "skipped", "time", "timestamp", "hostname"},
        {"testcase", "system-err"},
    ),
    "testcase": ({"name", "classname", "time"}, {"failure", "error", "skipped", "system-out"}),
    "failure": ({"message", "type"}, set()),
    "error": ({"message", "type"}, set()),
    "skipped": ({"message"}, set()),
    "system-out": (set(), set()),
    "system-err": (set(), set()),
}
"""Attributes and children that the common schema allows, as far as they are used."""


def test_the_junit_file_holds_nothing_that_the_schema_does_not_know(summary):
    document = junit_xml(Summary(**{**vars(summary), "problems": ("the history\x07 failed",)}))
    assert document.startswith(b"<?xml version='1.0' encoding='utf-8'?>\n")
    for element in ElementTree.fromstring(document).iter():
        attributes, children = JUNIT[element.tag]
        assert set(element.attrib) <= attributes
        assert {child.tag for child in element} <= children


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def test_the_page_needs_nothing_beside_it_and_runs_nothing_from_a_log(summary):
    text = html_page(summary)
    page = Page(text)
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "link", "img", "iframe"}
    assert "http" not in text
    assert "<script>alert(1)</script>" in page.text
    assert "prefers-color-scheme: dark" in text
    links = {attrs["href"] for tag, attrs in page.tags if tag == "a"}
    ids = {attrs["id"] for tag, attrs in page.tags if tag == "section"}
    assert links == {f"#{name}" for name in ids} == {"#good", "#low", "#broken", "#late"}
    flat = " ".join(page.text.split())
    assert GATE.sentence in flat
    assert "1 of 2 ranges differ from night 2026-01-01_03-00-00. First at conv: new" in flat


def test_a_trend_has_the_change_from_the_night_before(job_result):
    trends = {
        "net-none": [
            Past("a", "2026-01-01T12:00:00+00:00", job_result(accuracy_deployed=88.0)),
            Past("b", "2026-01-02T12:00:00+00:00", job_result(status=Status.FAILED, cosine=0.99)),
            Past("c", "2026-01-03T12:00:00+00:00", job_result(status=Status.BROKEN, cosine=None, sqnr_db=None,
                                                              accuracy_deployed=None)),
        ]
    }  # fmt: skip
    for width in (60, 80, 120):
        text = shown(show_trend, trends, width)
        assert max(map(len, text.splitlines())) <= width
        rows = [line for line in text.splitlines() if "01-0" in line]
        assert [state in row for row, state in zip(rows, ("passed", "gate failed", "broken"), strict=True)] == [
            True
        ] * 3
        assert "89.00" in rows[1]
        assert "+1.00" in text
        assert "-0.00800" in text
        assert ("28.00" in text) is (width > 60)
        assert "…" not in text


def test_figures_are_short():
    assert [duration(seconds) for seconds in (1.26, 99.9, 120, 7200)] == ["1.3 s", "99.9 s", "2.0 min", "2.0 h"]
    assert [change(value, 2) for value in (None, 0.0, 0.004, -0.004, 1.0, -0.5)] == [
        "",
        "=",
        "=",
        "=",
        "+1.00",
        "-0.50",
    ]
