"""Which steps of an algorithm may follow which."""

import itertools

import pytest

from dipo.algo.steps import STEPS, check_order
from dipo.config import AlgoConfig
from dipo.errors import UserError
from dipo.launch import main

SENSIBLE = [
    [],
    ["equalize", "bias_correction", "adaround"],
    ["equalize", "sparsify", "update_bn", "qdrop", "bias_correction", "tune", "analyze"],
    ["brecq", "update_bn", "bias_correction"],
    ["equalize", "tune"],
]


@pytest.mark.parametrize("steps", SENSIBLE, ids=",".join)
def test_sensible_orders_are_taken(steps):
    check_order(steps)


@pytest.mark.parametrize(
    ("steps", "reason"),
    [
        (["brecq", "equalize"], "it changes the float network that brecq has quantized already"),
        (["bias_correction", "sparsify"], "it takes weights away that bias_correction has made up for"),
        (["bias_correction", "update_bn"], "it sets the channel means itself"),
        (["tune", "bias_correction"], "it would undo what was tuned end to end"),
        (["adaround", "qdrop"], "it would round the float weights once more"),
        (["analyze", "tune"], "the analysis would not show it"),
        (["tune", "tune"], "tune comes twice"),
    ],
)
def test_senseless_orders_are_refused_with_the_reason(steps, reason):
    with pytest.raises(UserError) as caught:
        AlgoConfig(steps=steps)
    assert reason in str(caught.value)
    assert str(caught.value).startswith("algo.steps: ")
    assert "\n" not in str(caught.value)


def test_of_two_steps_one_order_at_least_is_taken_unless_both_learn_the_rounding():
    for pair in itertools.combinations(STEPS, 2):
        taken = [order for order in (pair, pair[::-1]) if _is_taken(order)]
        learns = all(STEPS[name].learns_rounding for name in pair)
        assert bool(taken) != learns, pair


def _is_taken(order):
    try:
        check_order(order)
    except UserError:
        return False
    return True


@pytest.mark.parametrize(
    ("pattern", "reason"), [("2:2", "of M weights"), ("0:4", "of M weights"), ("half", "give unstructured, or N:M")]
)
def test_patterns_of_sparsity_are_checked(pattern, reason):
    with pytest.raises(UserError, match=reason):
        AlgoConfig(sparsity_pattern=pattern)


def test_a_pattern_of_layers_to_spare_has_to_fit_one(tiny_job, tmp_path, capsys):
    assert main(tiny_job.arguments(f"run.dir={tmp_path / 'run'}", "+algo=sparse", "algo.sparsity_skip=[lefft]")) == 2
    assert "algo.sparsity_skip 'lefft': no layer is named like that, choose from left" in capsys.readouterr().err
