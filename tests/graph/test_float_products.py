"""Products that stay float are named, with the reason, and products of activations are not."""

import numpy as np
import pytest
from loaded import load_model
from networks import network

from dipo.graph.float_products import float_products, tables_of_layers
from dipo.graph.layers import layers_of

PRODUCTS = {
    "left": ("[odd] b = MatMul(w, a)", {"w": (4, 4)}, "left factor"),
    "vector": ("[odd] b = MatMul(a, w)", {"w": (4,)}, "vector"),
    "turned": ("c = Flatten(a) \n [odd] b = Gemm<transA=1>(c, w)", {"w": (2, 4)}, "transA"),
    "activations": ("c = Transpose<perm=[0,2,1]>(a) \n [odd] b = MatMul(a, c)", {}, None),
    "layer": ("[odd] b = MatMul(a, w)", {"w": (4, 4)}, None),
}


@pytest.mark.parametrize(("text", "constants", "reason"), PRODUCTS.values(), ids=PRODUCTS)
def test_the_reason_for_which_a_product_stays_float(tmp_path, text, constants, reason):
    model = network(
        f"(float[N,4,4] x) => (float[N,K] y) {{ [first] a = MatMul(x, v) \n {text} \n y = Relu(b) }}",
        v=(4, 4), **constants,
    )  # fmt: skip
    model.graph.output[0].type.tensor_type.ClearField("shape")
    found = float_products(load_model(model, tmp_path))
    assert list(found) == (["odd"] if reason else [])
    assert reason is None or reason in found["odd"]


def test_a_kernel_that_is_computed_from_the_samples_is_named(tmp_path):
    text = """(float[N,4,6,6] x) => (float[N,4,6,6] y) {
      [first] a = Conv(x, v)
      m = ReduceMean<axes=[0,2,3],keepdims=1>(a)
      k = Mul(m, w)
      [odd] y = Conv(a, k)
    }"""
    found = float_products(load_model(network(text, v=(4, 4, 1, 1), w=(4, 4, 1, 1)), tmp_path))
    assert "computed from the samples" in found["odd"]


@pytest.mark.parametrize("turned", [True, False])
def test_a_table_beside_the_layer_that_is_made_of_it_is_named(tmp_path, turned):
    weight = "w = Transpose<perm=[1,0]>(t)" if turned else "w = Identity(t)"
    text = f"""(float[N,8] x) => (float[N,8] y, float[N,1,8] z) {{
      {weight}
      [head] y = MatMul(x, w)
      i = ArgMax<axis=1>(y)
      [words] z = Gather(t, i)
      [other] o = Gather(u, i)
    }}"""
    loaded = load_model(network(text, t=(8, 8), u=np.ones((8, 8), np.float32)), tmp_path)
    assert tables_of_layers(loaded, {layer.name for layer in layers_of(loaded)}) == {"words": "head"}
    assert tables_of_layers(loaded, set()) == {}
