"""What everything else relies on holds for every network, and its checks see where it does not."""

import inspect

import networks
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from networks import network, saved, tiny_cnn

from dipo.graph.layers import layers_of
from dipo.graph.load import load
from dipo.graph.passes import invariants

BATCH_NORM = {"s": (4,), "t": (4,), "mean": (4,), "var": np.full(4, 0.5, np.float32)}
NETWORKS = {
    name: function
    for name, function in inspect.getmembers(networks, inspect.isfunction)
    if function.__module__ == "networks"
    and not any(p.default is p.empty for p in inspect.signature(function).parameters.values())
}
"""Every function of `networks` that makes one without being told anything."""
TEXTS = {
    "normalised and shared": (
        """(float[1,4,8,8] x) => (float[1,4,8,8] y) {
          p = Pad(x, pads)
          a = Conv(p, w)
          b = BatchNormalization(a, s, t, mean, var)
          c = Conv<pads=[1,1,1,1]>(b, w)
          y = Relu(c)
        }""",
        {"w": (4, 4, 3, 3), "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]), **BATCH_NORM},
    ),
    "factors": (
        """(float[N,4] x) => (float[N,4] y) {
          a = Gemm<alpha=0.5,beta=2.0>(x, w, b)
          c = Gemm<transB=1>(a, w)
          y = MatMul(c, w)
        }""",
        {"w": (4, 4), "b": (1,)},
    ),
    "transposed and grouped": (
        """(float[N,4,5,5] x) => (float[N,6,7,7] y) { y = ConvTranspose<group=2>(x, w) }""",
        {"w": (4, 3, 3, 3)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", [*NETWORKS, *TEXTS])
def test_a_loaded_network_has_the_form(tmp_path, name):
    model = NETWORKS[name]() if name in NETWORKS else network(TEXTS[name][0], **TEXTS[name][1])
    loaded = load(saved(model, tmp_path))
    for check in invariants.INVARIANTS:
        check(loaded)


@pytest.mark.parametrize("name", ["resnet20_cifar10.onnx", "mobilenet_v1_025_224.onnx"])
def test_real_networks_have_the_form(shared_file, name):
    loaded = load(shared_file(name))
    for check in invariants.INVARIANTS:
        check(loaded)


def loaded_cnn(tmp_path) -> ir.Model:
    return load(saved(tiny_cnn(), tmp_path))


def test_a_normalization_behind_a_convolution_is_seen(tmp_path):
    text = """(float[N,4,8,8] x) => (float[N,4,8,8] y) {
      a = Conv(x, w)
      y = BatchNormalization(a, s, t, mean, var)
    }"""
    raw = ir.load(saved(network(text, w=(4, 4, 1, 1), **BATCH_NORM), tmp_path))
    with pytest.raises(ir.passes.InvariantError, match="normalises"):
        invariants.check_folded(raw)


def test_a_function_that_is_left_is_seen(tmp_path):
    model = tiny_cnn()
    model.opset_import.append(onnx.helper.make_opsetid("own", 1))
    node = onnx.helper.make_node("Relu", ["a"], ["b"])
    model.functions.append(onnx.helper.make_function("own", "Act", ["a"], ["b"], [node], model.opset_import[:1]))
    with pytest.raises(ir.passes.InvariantError, match="functions are left"):
        invariants.check_inlined(ir.load(saved(model, tmp_path)))


def test_two_nodes_of_one_name_are_seen(tmp_path):
    model = loaded_cnn(tmp_path)
    model.graph[1].name = model.graph[0].name
    with pytest.raises(ir.passes.InvariantError, match="2 nodes are named 'stem'"):
        invariants.check_names(model)


def test_a_weight_that_two_layers_read_is_seen(tmp_path):
    model = loaded_cnn(tmp_path)
    first, second = list(layers_of(model))[1:3]
    second.node.replace_input_with(1, first.weight)
    with pytest.raises(ir.passes.InvariantError, match="does not own 'w2'"):
        invariants.check_ownership(model)


def test_a_layer_without_bias_and_one_with_a_factor_are_seen(tmp_path):
    model = loaded_cnn(tmp_path)
    head = list(layers_of(model))[-1].node
    head.attributes["alpha"] = ir.AttrFloat32("alpha", 2.0)
    with pytest.raises(ir.passes.InvariantError, match="'head' has a factor"):
        invariants.check_biases(model)
    del head.attributes["alpha"]
    head.resize_inputs(2)
    with pytest.raises(ir.passes.InvariantError, match="'head' has no bias"):
        invariants.check_biases(model)


def test_a_fixed_batch_is_seen(tmp_path):
    model = loaded_cnn(tmp_path)
    model.graph.inputs[0].shape = ir.Shape([1, 3, 8, 8])
    with pytest.raises(ir.passes.InvariantError, match="'image' has the shape"):
        invariants.check_batch(model)
