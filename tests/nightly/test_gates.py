import pytest

from dipo.nightly.gates import judge
from dipo.nightly.settings import GateConfig

MEASURED = {"fp32": 91.4, "deployed": 90.4, "cosine": 0.99, "seconds": 120.0}


@pytest.mark.parametrize(
    ("gate", "passed", "words"),
    [
        ({"max_top1_drop": 1}, True, "1.00 points (91.40 to 90.40)"),
        ({"max_top1_drop": 0.99}, False, "at most 0.99 allowed"),
        ({"max_top1_drop": -2}, False, "1.00 points"),
        ({"min_cosine": 0.99}, True, "0.99"),
        ({"min_cosine": 0.9901}, False, "at least 0.9901 wanted"),
        ({"max_minutes": 2}, True, "2.00 minutes"),
        ({"max_minutes": 1.9}, False, "at most 1.9 allowed"),
    ],
)
def test_each_gate_alone(gate, passed, words):
    (outcome,) = judge(GateConfig(**gate), **MEASURED)
    assert outcome.passed is passed
    assert outcome.gate in gate
    assert words in outcome.sentence


def test_all_gates_are_judged_and_none_where_none_is_set():
    outcomes = judge(GateConfig(max_top1_drop=0.5, min_cosine=0.5, max_minutes=10), **MEASURED)
    assert [(each.gate, each.passed) for each in outcomes] == [
        ("max_top1_drop", False), ("min_cosine", True), ("max_minutes", True)
    ]  # fmt: skip
    assert judge(GateConfig(), **MEASURED) == ()


def test_a_gate_that_cannot_be_judged_has_failed():
    (outcome,) = judge(GateConfig(max_top1_drop=50), **{**MEASURED, "fp32": None, "deployed": None})
    assert (outcome.passed, outcome.value) == (False, None)
    assert "no labels" in outcome.sentence


def test_the_time_limit_is_twice_the_gate_or_what_is_said():
    assert GateConfig().timeout_seconds is None
    assert GateConfig(max_minutes=3).timeout_seconds == 360
    assert GateConfig(max_minutes=3, timeout_minutes=4).timeout_seconds == 240
