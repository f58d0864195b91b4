"""Weights that are computed from constants are layers' weights, whatever their size."""

import numpy as np
import onnx_ir as ir
import pytest
from loaded import assert_same, load_model, ops
from networks import network

from dipo.errors import UserError
from dipo.graph.layers import layers_of
from dipo.graph.passes import FoldWeights

LARGE = 100
"""Side of a square that is above the size up to which the optimizer folds constants."""
ENDS = {"zero": np.array([0]), "end": np.array([LARGE]), "first": np.array([0])}
CHAINS = {
    "transposed": "w = Transpose<perm=[1,0]>(t)",
    "sliced": "w = Slice(long, zero, end, first)",
    "reshaped": "w = Reshape(flat, square)",
    "cast": "h = Cast<to=10>(t) \n w = Cast<to=1>(h)",
    "identity": "w = Identity(t)",
    "integers with a scale": "i = Cast<to=1>(codes) \n c = Sub(i, point) \n w = Mul(c, scale)",
    "normalised": "n = ReduceL2<axes=[1],keepdims=1>(t) \n d = Div(t, n) \n w = Mul(d, gain)",
    "by a shape": "s = Shape(t) \n f = Reshape(flat, s) \n w = Transpose(f)",
}
CONSTANTS = {
    "t": (LARGE, LARGE),
    "long": (2 * LARGE, LARGE),
    "flat": (LARGE * LARGE,),
    "square": np.array([LARGE, LARGE]),
    "codes": np.random.default_rng(0).integers(-127, 128, (LARGE, LARGE)).astype(np.int8),
    "point": np.float32(3),
    "scale": np.float32(0.001),
    "gain": (LARGE, 1),
    **ENDS,
}


@pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS)
def test_a_large_weight_behind_constants_is_a_layers(tmp_path, chain):
    used = {name: value for name, value in CONSTANTS.items() if f"({name}" in chain or f", {name}" in chain}
    text = f"(float[N,{LARGE}] x) => (float[N,{LARGE}] y) {{ {chain} \n [fc] y = MatMul(x, w) }}"
    loaded = assert_same(network(text, **used), tmp_path)
    assert ops(loaded) == ["MatMul"]
    assert [layer.name for layer in layers_of(loaded)] == ["fc"]
    assert list(loaded.graph.initializers) == ["w"], "nothing is kept beside it"


def test_the_weight_and_the_bias_of_a_convolution_are_folded_before_its_normalization_is(tmp_path):
    norm = dict.fromkeys(("s", "t", "mean"), (4,)) | {"var": np.ones(4, np.float32)}
    loaded = assert_same(
        network(
            """(float[N,64,8,8] x) => (float[N,4,6,6] y) {
              w = Slice(long, zero, end, first)
              [conv] a = Conv(x, w)
              y = BatchNormalization(a, s, t, mean, var)
            }""",
            long=(16, 64, 3, 3), zero=np.array([0]), end=np.array([4]), first=np.array([0]), **norm,
        ),
        tmp_path,
    )  # fmt: skip
    assert ops(loaded) == ["Conv"]


def test_a_table_that_is_tied_to_the_head_stays_for_who_gathers_from_it(tmp_path):
    text = f"""(float[N,{LARGE}] x) => (float[N,{LARGE}] y, float[N,1,{LARGE}] z) {{
      w = Transpose<perm=[1,0]>(t)
      [head] y = MatMul(x, w)
      i = ArgMax<axis=1>(y)
      [embedding] z = Gather(t, i)
    }}"""
    loaded = load_model(network(text, t=(LARGE, LARGE)), tmp_path)
    assert [layer.name for layer in layers_of(loaded)] == ["head"]
    assert set(loaded.graph.initializers) == {"t", "w"}


def test_two_layers_behind_one_transpose_own_their_weights(tmp_path):
    text = f"""(float[N,{LARGE}] x) => (float[N,{LARGE}] y) {{
      w = Transpose<perm=[1,0]>(t)
      [first] a = MatMul(x, w)
      [second] y = MatMul(a, w)
    }}"""
    loaded = assert_same(network(text, t=(LARGE, LARGE)), tmp_path)
    assert [layer.name for layer in layers_of(loaded)] == ["first", "second"]


def test_what_no_layer_multiplies_does_not_grow(tmp_path):
    text = """(float[N,300] x) => (float[N,300] y) {
      [large] e = Expand(one, shape)
      [sum] s = ReduceSum<keepdims=0>(e, axes)
      [fc] a = MatMul(x, w)
      y = Add(a, s)
    }"""
    constants = {"one": np.ones((1, 1), np.float32), "shape": np.array([2000, 300]), "axes": np.array([0])}
    model = ir.from_proto(network(text, w=(300, 300), **constants))
    assert not FoldWeights()(model).modified


@pytest.mark.parametrize("text", ["w = RandomNormal<shape=[4,4]>()", "w = Mul(x, v)"])
def test_a_random_weight_and_one_of_the_samples_are_not_folded(text):
    model = network(f"(float[4,4] x) => (float[4,4] y) {{ {text} \n y = MatMul(x, w) }}", v=(4, 4))
    assert not FoldWeights()(ir.from_proto(model)).modified


def test_a_weight_that_cannot_be_computed_is_named(tmp_path):
    text = "(float[N,4] x) => (float[N,4] y) { [bad] w = Reshape(v, shape) \n y = MatMul(x, w) }"
    with pytest.raises(UserError, match="weight 'w' is computed from constants"):
        load_model(network(text, v=(4, 5), shape=np.array([4, 4])), tmp_path)


def test_a_fill_without_dimensions_is_a_number(tmp_path):
    text = """(float[N,4] x) => (float[N,4] y) {
      fill = ConstantOfShape<value=float[1] {2.0}>(none)
      [shift] y = Add(x, fill)
    }"""
    loaded = assert_same(network(text, none=np.zeros(0, np.int64)), tmp_path)
    assert ops(loaded) == ["Add"]
    assert loaded.graph.node(0).inputs[1].shape == ()


@pytest.mark.parametrize(("size", "kept"), [(8, []), (10_000, ["ConstantOfShape"])])
def test_small_tensors_of_one_number_are_constants(tmp_path, size, kept):
    text = f"""(float[N,{size}] x) => (float[N,{size}] y) {{
      [gain] a = Mul(x, w)
      [fill] f = ConstantOfShape<value=float[1] {{2.0}}>(shape)
      [shift] y = Add(a, f)
    }}"""
    loaded = load_model(network(text, w=(size,), shape=np.array([size])), tmp_path)
    assert ops(loaded) == ["Mul", *kept, "Add"]


def test_a_class_token_as_torch_expands_it_to_a_fixed_batch_is_a_constant(tmp_path):
    """Sizes of -1 stay: ones times -1, compared with the sizes that were asked for, choose between 1 and these."""
    text = """(float[1,4,6] x) => (float[1,5,3] y) {
      [tokens] a = MatMul(x, w)
      ones = ConstantOfShape<value=int64[1] {1}>(three)
      open = Mul(ones, minus)
      is_open = Equal(asked, open)
      sizes = Where(is_open, ones, asked)
      expanded = Expand(token, sizes)
      [join] b = Concat<axis=1>(expanded, a)
      [head] y = MatMul(b, v)
    }"""
    numbers = {"three": np.array([3]), "minus": np.array(-1), "asked": np.array([1, -1, -1])}
    loaded = assert_same(network(text, w=(6, 6), v=(6, 3), token=(1, 1, 6), **numbers), tmp_path)
    assert ops(loaded) == ["MatMul", "Concat", "MatMul"]
