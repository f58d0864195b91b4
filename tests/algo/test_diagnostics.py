"""What stays float without being asked for is said."""

from loaded import load_model
from networks import network

from dipo.algo.diagnostics import diagnose
from dipo.export.targets import TARGETS
from dipo.graph.plan import make_plan
from dipo.recipe import PrecisionConfig


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
