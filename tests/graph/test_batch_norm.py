from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from networks import network, saved
from onnx import numpy_helper

from dipo.graph.batch_norm import batch_norm_of
from dipo.graph.layers import layers_of
from dipo.graph.load import load

NORM = {
    "s": np.float32([1, -2, 3, 0.5]), "t": np.float32([0, 1, 2, 3]), "mean": np.float32([0.1, 0, -1, 2]),
    "var": np.float32([0.5, 1, 2, 4]),
}  # fmt: skip
ZOO = Path(__file__).parents[2] / "dipo" / "zoo" / "mobilenet.onnx"


def check_folding(path):
    """W_folded = W gamma / sqrt(var + epsilon) for every layer that a BatchNormalization followed in the file."""
    makers = {value.name: node for node in ir.load(path).graph for value in node.outputs}
    checked = 0
    for layer in layers_of(load(path)):
        norm = batch_norm_of(layer.node)
        maker = makers[layer.output.name]
        assert (norm is not None) == (maker.op_type == "BatchNormalization")
        if norm is not None:
            weight = makers[maker.inputs[0].name].inputs[1].const_value.numpy()
            folded = layer.array
            expected = weight * norm.factor.reshape(-1, 1, 1, 1)
            np.testing.assert_allclose(folded, expected, rtol=1e-5, atol=1e-6 * np.abs(folded).max())
            checked += 1
    return checked


def test_the_embedded_network_remembers_what_was_folded():
    assert check_folding(ZOO) == 31


@pytest.mark.parametrize(("name", "count"), [("resnet20_cifar10.onnx", 19), ("mobilenet_v1_025_224.onnx", 27)])
def test_real_networks_remember_what_was_folded(shared_file, name, count):
    assert check_folding(shared_file(name)) == count


def conv_and_norm(more="", result="b"):
    return network(
        f"""(float[N,3,8,8] x) => (float[N,4,8,8] y) {{
          [conv] a = Conv<pads=[1,1,1,1]>(x, w)
          [norm] b = BatchNormalization<epsilon=0.25>(a, s, t, mean, var)
          {more}
          [end] y = Relu({result})
        }}""",
        w=(4, 3, 3, 3), **NORM,
    )  # fmt: skip


def test_parameters_are_those_of_the_file(tmp_path):
    (layer,) = layers_of(load(saved(conv_and_norm(), tmp_path)))
    norm = batch_norm_of(layer.node)
    np.testing.assert_array_equal(norm.gamma, NORM["s"])
    np.testing.assert_array_equal(norm.beta, NORM["t"])
    assert norm.epsilon == 0.25
    np.testing.assert_allclose(norm.std, np.abs(NORM["s"]) * np.sqrt(NORM["var"] / (NORM["var"] + 0.25)), rtol=1e-6)
    np.testing.assert_allclose(norm.factor, NORM["s"] / np.sqrt(NORM["var"] + 0.25), rtol=1e-6)


def test_a_copy_of_the_network_remembers_and_a_change_stays_its_own(tmp_path):
    model = load(saved(conv_and_norm(), tmp_path))
    (layer,) = layers_of(model.clone())
    norm = batch_norm_of(layer.node)
    changed = norm.divided(np.float32([2, 2, 2, 2])).lowered(np.float32([1, 0, 0, 0]))
    np.testing.assert_allclose(changed.beta, NORM["t"] / 2 - [1, 0, 0, 0])
    np.testing.assert_allclose(changed.gamma, NORM["s"] / 2)
    np.testing.assert_array_equal(norm.beta, NORM["t"])


def test_a_value_that_others_read_before_normalization_is_not_folded(tmp_path):
    model = load(saved(conv_and_norm("[sum] c = Add(a, b)", "c"), tmp_path))
    (layer,) = layers_of(model)
    assert batch_norm_of(layer.node) is None


def test_of_two_in_a_row_the_last_one_counts(tmp_path):
    other = {"s2": np.full(4, 5, np.float32), "t2": np.full(4, 7, np.float32)}
    model = conv_and_norm("[again] c = BatchNormalization(b, s2, t2, mean, var)", "c")
    for name, array in other.items():
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    (layer,) = layers_of(load(saved(model, tmp_path)))
    np.testing.assert_array_equal(batch_norm_of(layer.node).gamma, other["s2"])
