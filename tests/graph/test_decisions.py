"""Whether samples decide which way an If or a Loop goes."""

from __future__ import annotations

import numpy as np
import pytest
from networks import network, saved

import dipo
from dipo.graph.decisions import decided_by_samples
from dipo.graph.load import load

TURNS = """(float[1,4] x) => (float[1,4] y) {{
  h = MatMul(x, w)
  last = Loop<body = g (int64 i, bool go, float[1,4] a) => (bool on, float[1,4] b) {{
    b = Mul(a, half)
    {condition}
  }}>({turns}, yes, h)
  y = MatMul(last, w2)
}}"""
BRANCH = """(float[1,4] x, float r) => (float[1,4] y) {{
  h = MatMul(x, w)
  {condition}
  c = If(go)<
    then_branch = t () => (float[1,4] u) {{ u = Relu(h) }},
    else_branch = e () => (float[1,4] v) {{ v = Neg(h) }}
  >
  y = MatMul(c, w2)
}}"""
WEIGHTS = {
    "w": (4, 4),
    "w2": (4, 4),
    "half": np.float32(0.5),
    "yes": np.array(True),
    "few": np.int64(3),
    "no": np.float32(0),
}


@pytest.mark.parametrize(
    ("text", "decided"),
    [
        (TURNS.format(condition="on = Identity(go)", turns="few"), False),
        (TURNS.format(condition="m = ReduceMax<keepdims=0>(b)\n on = Greater(m, half)", turns=""), True),
        (TURNS.format(condition="s = Shape(b)\n n = Size(s)\n on = Greater(n, few)", turns=""), False),
        (BRANCH.format(condition="m = ReduceMax<keepdims=0>(h)\n go = Greater(m, no)"), True),
        (BRANCH.format(condition="go = Greater(r, no)"), False),
        (BRANCH.format(condition="s = Size(h)\n go = Greater(s, few)"), False),
    ],
)
def test_numbers_of_samples_decide_and_sizes_do_not(tmp_path, text, decided):
    model = load(saved(network(text, **WEIGHTS), tmp_path), takes_one=True)
    assert decided_by_samples(model, {"x"}) == decided


def test_samples_that_stop_after_different_turns_are_run_apart(tmp_path):
    """The first samples go the same way: nothing that is run on them tells."""
    text = TURNS.format(condition="m = ReduceMax<keepdims=0>(b)\n on = Greater(m, half)", turns="")
    samples = np.ones((12, 4), np.float32)
    samples[6:] *= np.linspace(1, 60, 6)[:, None]
    weights = {**WEIGHTS, "w": np.eye(4, dtype=np.float32)}
    result = dipo.quantize(network(text, **weights), {"x": samples}, algo="none")
    assert result.report.error["deployed_vs_simulated"].sqnr_db > 60
    assert result.report.error["deployed_vs_fp32"].sqnr_db > 25
