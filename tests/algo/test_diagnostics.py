"""What stays float without being asked for is said."""

import numpy as np
import pytest
from loaded import load_model
from networks import network

from dipo.algo.calibrate import quantize_model
from dipo.algo.diagnostics import diagnose, lost_channels
from dipo.export.targets import TARGETS
from dipo.graph.plan import make_plan
from dipo.recipe import CalibConfig, PrecisionConfig


def test_products_without_a_quantized_weight_and_tables_beside_a_layer_are_named(tmp_path):
    text = """(float[N,4,8] x) => (float[N,4,8] y, float[N,1,8,8] z) {
      w = Transpose<perm=[1,0]>(t)
      [head] h = MatMul(x, w)
      [left] y = MatMul(v, h)
      i = ArgMax<axis=1>(h)
      [words] z = Gather(t, i)
    }"""
    model = load_model(network(text, t=(8, 8), v=(4, 4)), tmp_path)
    plan = make_plan(model, TARGETS["ort"].spec, PrecisionConfig())
    found = {each.name: each.what for each in diagnose(model, plan, {})}
    assert found.keys() == {"left", "words"}
    assert "stays float" in found["left"]
    assert "layer 'head'" in found["words"]


@pytest.mark.parametrize(("op", "shape"), [("Conv", (8, 4, 3, 3)), ("ConvTranspose<group=8>", (8, 1, 3, 3))])
def test_channels_that_a_common_scale_makes_zero_are_named(tmp_path, op, shape):
    weight = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    weight[[2, 5]] *= 1e-4
    weight[3] = 0
    inputs = 4 if op == "Conv" else 8
    text = f"(float[N,{inputs},6,6] x) => (float[N,8,m,n] y) {{ [up] y = {op}(x, w) }}"
    model = load_model(network(text, w=weight), tmp_path)
    for per_channel, lost in ((True, 0), (False, 2)):
        precision = PrecisionConfig(weight_bits=8, act_bits=8, weight_per_channel=per_channel)
        plan = make_plan(model, TARGETS["ort"].spec, precision)
        plan.activations.clear()
        plan.aliases.clear()
        layers = quantize_model(model, plan=plan, ranges={}, cfg=CalibConfig()).layers
        found = lost_channels(model, layers)
        assert [each.name for each in found] == ["up"] * (lost > 0)
        assert all(f"{lost} of its 8 channels are rounded to zero" in each.what for each in found)
