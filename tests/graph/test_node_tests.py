"""The operators against ONNX's own node tests; WRITE_DOCS=1 in the environment writes docs/operators.md's table."""

from __future__ import annotations

import functools
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx
from node_tests import NodeTest, differs, in_onnxruntime, in_torch, node_tests

PAGE = Path(__file__).parents[2] / "docs" / "operators.md"
MARK = f"<!-- node tests: written by WRITE_DOCS=1 pytest tests/graph/{Path(__file__).name} -->\n"
LEAST_IN_TORCH = 0.92
"""Share of all tests with a float32 value."""
LEAST_OF_ITS_OWN = 0.95
"""Share of those left without `NO_TORCH_OPERATORS` and without types that torch lacks."""
NO_TORCH_OPERATORS = {
    "Bernoulli", "GRU", "If", "LSTM", "Loop", "NonMaxSuppression", "OptionalGetElement", "RNN", "Scan", "SequenceMap",
    "SplitToSequence", "TfIdfVectorizer",
}  # fmt: skip
"""Recurrences, control flow, sequences, random numbers, boxes, texts: ONNX Runtime runs them."""
TORCH_TYPES = {
    onnx.TensorProto.DataType.Value(name)
    for name in ("FLOAT", "DOUBLE", "FLOAT16", "BFLOAT16", "INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16",
                 "UINT32", "UINT64", "BOOL", "FLOAT8E4M3FN", "FLOAT8E4M3FNUZ", "FLOAT8E5M2", "FLOAT8E5M2FNUZ",
                 "INT2", "UINT2", "INT4", "UINT4", "FLOAT4E2M1")
}  # fmt: skip


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


def _is_for_torch(test: NodeTest) -> bool:
    graph = test.model.graph
    types = {value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)}
    return test.operator not in NO_TORCH_OPERATORS and types <= TORCH_TYPES


def test_torch_computes_most_tests() -> None:
    found = [each for each in outcomes()[::2] if each.test.has_floats]
    own = [each for each in found if _is_for_torch(each.test)]
    left = sorted(each.test.name for each in own if each.by != "torch")
    assert sum(each.by == "torch" for each in found) >= LEAST_IN_TORCH * len(found), left
    assert len(own) - len(left) >= LEAST_OF_ITS_OWN * len(own), left


def _table() -> str:
    counts: dict[str, Counter[str]] = {}
    for each in outcomes()[::2]:
        if each.test.has_floats:
            counts.setdefault(each.test.operator, Counter())["other" if each.wrong else each.by] += 1
    total = sum(counts.values(), Counter())
    num = sum(total.values())
    rows = [f"| {op} | {_cells(found)} |" for op, found in sorted(counts.items())]
    said = (
        f"Of the {num} tests of onnx {onnx.__version__} with a float32 value, torch computes {total['torch']} "
        f"({100 * total['torch'] / num:.0f} %), and ONNX Runtime {total['onnxruntime']} others.\n\n"
    )
    names = ("operator", "tests", "torch", "ONNX Runtime", "ONNX Runtime, otherwise than the test", "neither")
    head = f"| {' | '.join(names)} |\n|{'---|' * len(names)}\n"
    return said + head + "\n".join(rows) + "\n"


def _cells(found: Mapping[str, int]) -> str:
    numbers = (sum(found.values()), *(found.get(by, 0) for by in ("torch", "onnxruntime", "other", "neither")))
    return " | ".join(str(number or "") for number in numbers)


def test_the_table_is_current() -> None:
    text = PAGE.read_text("utf-8")
    wanted = text.partition(MARK)[0] + MARK + _table()
    if os.environ.get("WRITE_DOCS") == "1":
        PAGE.write_text(wanted, "utf-8")
        text = wanted
    assert text == wanted, "docs/operators.md is stale, run this test with WRITE_DOCS=1"
