"""The view of a layer, and how its weight lies."""

import numpy as np
import onnx_ir as ir
import pytest
from networks import network, saved

from dipo.graph.accessors import node_name, sole_consumer
from dipo.graph.layers import Layer, is_layer, layer_of, layers_of
from dipo.graph.load import load
from dipo.graph.target_spec import WeightForm

LAYERS = {
    "conv": ("Conv(x, w)", (6, 4, 3, 3), 4, 0, 6, 2),
    "grouped": ("Conv<group=2>(x, w)", (6, 2, 3, 3), 4, 0, 6, 2),
    "depthwise": ("Conv<group=4>(x, w)", (4, 1, 3, 3), 4, 0, 4, 2),
    "transposed": ("ConvTranspose(x, w)", (4, 6, 3, 3), 4, 1, 6, 2),
    "transposed grouped": ("ConvTranspose<group=2>(x, w)", (4, 3, 3, 3), 4, 1, 6, 2),
    "transposed depthwise": ("ConvTranspose<group=4>(x, w)", (4, 1, 3, 3), 4, 1, 4, 2),
    "gemm": ("Gemm(x, w)", (4, 6), 4, 1, 6, 0),
    "gemm turned": ("Gemm<transB=1>(x, w)", (6, 4), 4, 0, 6, 0),
    "matmul": ("MatMul(x, w)", (4, 6), 4, 1, 6, 0),
}
"""What a layer computes, the shape of its weight, its input channels, the axis of its output channels and their number,
and the dimensions behind them."""
FORMS = dict.fromkeys(["transposed grouped", "transposed depthwise"], WeightForm.TRANSPOSED_GROUPS)


def layer_from(text: str, shape: tuple[int, ...], folder) -> Layer:
    data = "[N,4,8,8]" if "Conv" in text else "[N,4]"
    made = "[N,c,h,v]" if "Conv" in text else "[N,6]"
    model = network(f"(float{data} x) => (float{made} y) {{ [it] y = {text} }}", w=shape)
    (layer,) = layers_of(load(saved(model, folder)))
    return layer


@pytest.mark.parametrize("kind", LAYERS)
def test_a_layer_says_where_its_channels_are(tmp_path, kind):
    text, shape, inputs, axis, outputs, spatial = LAYERS[kind]
    layer = layer_from(text, shape, tmp_path)
    assert (layer.name, layer.shape, layer.channel_axis) == ("it", shape, axis)
    assert (layer.num_channels, layer.layout.num_inputs, layer.num_spatial) == (outputs, inputs, spatial)
    assert layer.is_depthwise == kind.endswith("depthwise")
    assert layer.scale_axis == (0 if layer.is_depthwise else axis)
    assert layer.layout.form is FORMS.get(kind, WeightForm.PLAIN)
    assert (layer.bias is None) == (kind == "matmul")
    assert layer.output.name == "y"
    assert layer.input.name == "x"
    assert layer == layer_of(layer.node)


@pytest.mark.parametrize("kind", LAYERS)
def test_rows_are_the_weights_of_an_output_channel(tmp_path, kind):
    text, shape, inputs, _, outputs, _ = LAYERS[kind]
    layer = layer_from(text, shape, tmp_path)
    rows = layer.layout.split(layer.array)
    assert rows.shape[0] * rows.shape[1] == outputs
    assert rows.shape[0] * rows.shape[3] == inputs
    np.testing.assert_array_equal(layer.layout.join(rows), layer.array)
    np.testing.assert_array_equal(layer.layout.filters(layer.array), rows.transpose(0, 1, 3, 2))
    factors = np.arange(1.0, outputs + 1)
    scaled = layer.layout.split(layer.layout.scaled(layer.array, factors))
    np.testing.assert_allclose(scaled / rows, np.broadcast_to(factors.reshape(*rows.shape[:2], 1, 1), rows.shape))


def test_filters_are_a_view_that_changes_the_weight(tmp_path):
    layer = layer_from(*LAYERS["transposed grouped"][:2], tmp_path)
    weight = layer.array.copy()
    layer.layout.filters(weight)[1, 2] = 0
    np.testing.assert_array_equal(weight[2:, 2], 0)
    assert np.count_nonzero(weight == 0) == weight[2:, 2].size


def test_what_multiplies_by_no_constant_matrix_is_no_layer(tmp_path):
    model = network(
        """(float[N,3,4] x) => (float[N,3] y, float[N,3,3] z) {
          [vector] y = MatMul(x, v)
          [turn] t = Transpose<perm=[0,2,1]>(x)
          [computed] z = MatMul(x, t)
        }""",
        v=(4,),
    )  # fmt: skip
    assert not any(is_layer(node) for node in load(saved(model, tmp_path)).graph)
    assert layer_of(ir.node("Conv", [None], domain="custom")) is None


def test_a_stack_of_matrices_is_told_from_one(tmp_path):
    model = network("(float[N,2,3,4] x) => (float[N,2,3,5] y) { [it] y = MatMul(x, w) }", w=(2, 4, 5))
    (layer,) = layers_of(load(saved(model, tmp_path)))
    assert layer.is_stack
    assert layer.channel_axis == 2
    assert layer.layout.split(layer.array).shape == (2, 5, 1, 4)


def test_a_sole_consumer_reads_once_and_alone(tmp_path):
    model = network(
        """(float[N,4] x) => (float[N,4] y, float[N,4] c) {
          [one] a = Relu(x)
          [two] b = Sigmoid(a)
          [twice] c = Mul(b, b)
          [last] y = Relu(c)
        }"""
    )
    nodes = {node_name(node): node for node in load(saved(model, tmp_path)).graph}
    assert sole_consumer(nodes["one"].outputs[0]) is nodes["two"]
    assert sole_consumer(nodes["two"].outputs[0]) is None, "it is read twice"
    assert sole_consumer(nodes["twice"].outputs[0]) is None, "the network's user reads it, too"
    assert sole_consumer(nodes["last"].outputs[0]) is None
