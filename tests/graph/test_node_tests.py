"""The operators against ONNX's own node tests."""

from __future__ import annotations

import functools
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from node_tests import NodeTest, differs, in_onnxruntime, in_torch, node_tests

LEAST_IN_TORCH = 0.88
"""Share of the tests with float32 values."""


@dataclass(frozen=True)
class Outcome:
    """What became of a node test."""

    test: NodeTest
    by: str
    """`torch`, or `onnxruntime` where `bind` refuses the node, or `neither`."""
    wrong: str | None
    """How its numbers differ from what is right; None if they do not."""


@functools.cache
def outcomes() -> tuple[Outcome, ...]:
    """The outcome of each test, of its form with constant options and of that with computed ones."""
    return tuple(_outcome(test, constant=constant) for test in node_tests() for constant in (True, False))


def _outcome(test: NodeTest, *, constant: bool) -> Outcome:
    expected = [outputs for _, outputs in test.data]
    made = in_torch(test, constant=constant)
    by = "torch"
    if made is None:
        made = in_onnxruntime(test)
        by = "neither" if made is None else "onnxruntime"
    if made is None:
        return Outcome(test, by, None)
    wrong = next((how for each, right in zip(made, expected, strict=True) if (how := differs(test, each, right))), None)
    if wrong is not None and by == "torch":
        # Where the two differ, ONNX Runtime is the reference: it is what runs the network that is written.
        right = in_onnxruntime(test)
        if right is not None and not any(differs(test, each, other) for each, other in zip(made, right, strict=True)):
            wrong = None
    return Outcome(test, by, wrong)


def test_torch_computes_what_bind_takes_and_nothing_else() -> None:
    assert {each.test.name: each.wrong for each in outcomes() if each.by == "torch" and each.wrong} == {}


def test_torch_computes_most_tests() -> None:
    by: Mapping[str, int] = Counter(each.by for each in outcomes()[::2] if each.test.has_floats)
    assert by["torch"] >= LEAST_IN_TORCH * sum(by.values()), by


DOCS = Path(__file__).parents[2] / "docs" / "operators.md"
MARK = "<!-- written by tests/graph/test_node_tests.py -->\n"


def table() -> str:
    """What computes the tests with floats, by operator."""
    rows: dict[str, Counter[str]] = {}
    for each in outcomes()[::2]:
        if each.test.has_floats:
            rows.setdefault(each.test.operator, Counter())[each.by] += 1
    total = sum(rows.values(), Counter())
    columns = ("torch", "onnxruntime", "neither")
    lines = ["| operator | torch | ONNX Runtime | neither |", "|---|---|---|---|"]
    for name, found in [("all", total), *sorted(rows.items())]:
        lines.append(f"| {name} | {' | '.join(str(found[column] or '') for column in columns)} |")
    return "\n".join(lines) + "\n"


def test_the_table_in_the_docs_is_what_the_code_does() -> None:
    """WRITE_DOCS=1 in the environment writes it anew."""
    before, _, written = DOCS.read_text("utf-8").partition(MARK)
    if os.environ.get("WRITE_DOCS"):
        DOCS.write_text(f"{before}{MARK}\n{table()}", "utf-8")
        return
    assert written.strip() == table().strip()
