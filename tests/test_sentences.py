"""No sentence without a way out: every `UserError` says what the user can do."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import dipo

PACKAGE = Path(dipo.__file__).parent
ERRORS = {"UserError", "JobError", "FixedBatchError"}
ADVICE = re.compile(
    r"\b("
    r"add|allow|announce|apply|ask|begin|calibrate|check|choose|convert|copy|correct|end|export|find|"
    r"free|give|go on|have|install|keep|leave|list|load|look|make|mend|move|name|order|"
    r"prune|put|rename|repair|report|restore|resume|return|say|see|set|start|store|take|try|"
    r"uninstall|update|wait|write|do the run again|do the work"
    r")\b"
)
"""What a user is told to do. Words of options, such as `calibration`, are none."""


def sentences():
    """Each error that is raised with a text of its own: its place, and what is fixed of the text."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ERRORS and node.args:
                parts = [part.value for part in ast.walk(node.args[0]) if isinstance(part, ast.Constant)]
                holes = [
                    ast.unparse(part.value) for part in ast.walk(node.args[0]) if isinstance(part, ast.FormattedValue)
                ]
                holes += [ast.unparse(node.args[0])] if isinstance(node.args[0], ast.Call) else []
                yield f"{path.relative_to(PACKAGE)}:{node.lineno}", "".join(map(str, parts)), holes


ELSEWHERE = re.compile(
    r"\b(choose\w*\(|_KNOWN|_ANEW|_BEGIN|_WRITABLE|_not_taken|invalid\(|(error|refusal|complaint|why|remedy)\b)"
)
"""What is put into a sentence and has the advice in it: words of another sentence, or a choice of names."""


def test_every_sentence_says_what_the_user_can_do():
    found = list(sentences())
    assert len(found) > 250
    without = [
        f"{place}: {text!r}"
        for place, text, holes in found
        if not ADVICE.search(text) and not any(ELSEWHERE.search(hole) for hole in holes)
    ]
    assert not without, "\n".join(without)


@pytest.mark.parametrize("text", ["the model is broken", "no calibration data", "trt knows no such type"])
def test_a_sentence_without_advice_is_found(text):
    assert not ADVICE.search(text)
