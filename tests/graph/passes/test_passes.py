"""The passes one by one, where they say more than the loaded network does."""

import numpy as np
import onnx_ir as ir
import pytest
from networks import network, saved, tiny_cnn

from dipo.errors import UserError
from dipo.graph.load import normalise
from dipo.graph.passes import FreeBatch, NameNodes, OwnParameters, RecordLayerNames, UntieParameters, as_in_file

SHARED = """(float[N,4,8,8] x) => (float[N,4,8,8] y) {
  [first] a = Conv(x, w)
  [second] y = Conv(a, w)
}"""


def raw(model, folder) -> ir.Model:
    return ir.load(saved(model, folder))


def test_shared_weights_are_copied_once(tmp_path):
    model = raw(network(SHARED, w=(4, 4, 1, 1)), tmp_path)
    assert UntieParameters()(model).modified
    assert model.graph[0].inputs[1] is not model.graph[1].inputs[1]
    assert not UntieParameters()(model).modified


def test_nodes_are_named_only_where_the_layers_names_are_known(tmp_path):
    model = raw(tiny_cnn(), tmp_path)
    with pytest.raises(ir.passes.PreconditionError, match="RecordLayerNames"):
        NameNodes()(model)
    RecordLayerNames()(model)
    model.graph[0].name = None
    NameNodes()(model)
    assert model.graph[0].name == "stem", "known by its weight"
    assert not model.meta


def test_a_dynamic_batch_is_left_as_it_is(tmp_path):
    assert not FreeBatch()(raw(tiny_cnn(), tmp_path)).modified
    assert FreeBatch()(raw(tiny_cnn(batch=2), tmp_path)).modified


@pytest.mark.parametrize("axes", [(0,), (2, 3), (0, 2, 3)])
def test_sizes_of_minus_one_are_free(tmp_path, axes):
    """PaddlePaddle's exporter writes them where a size is not known."""
    proto = tiny_cnn()
    for value in (proto.graph.input[0], proto.graph.output[0]):
        for axis in set(axes) & set(range(len(value.type.tensor_type.shape.dim))):
            value.type.tensor_type.shape.dim[axis].dim_value = -1
    model = normalise(raw(proto, tmp_path), source="here")
    sizes = model.graph.inputs[0].shape
    assert [isinstance(size, int) for size in sizes] == [axis not in {0, *axes} for axis in range(4)]
    assert not any(size == -1 for value in as_in_file(model).graph.inputs for size in value.shape)


def test_a_pass_names_the_layer_and_the_caller_the_model(tmp_path):
    text = "(float[2,4] x) => (float[2,5] y) { [fc] y = Gemm(x, w, b) }"
    with pytest.raises(UserError, match=r"^Gemm 'fc' adds"):
        OwnParameters()(raw(network(text, w=(4, 5), b=(2, 5)), tmp_path))
    with pytest.raises(UserError, match=r"^model in memory: Gemm 'fc' adds"):
        normalise(raw(network(text, w=(4, 5), b=(2, 5)), tmp_path), source="model in memory")


def test_constants_that_the_optimizer_makes_under_one_name_are_two(tmp_path):
    """It turns Flattens of one value into Reshapes whose targets have one name."""
    text = """(float[N,4,1,1] x) => (float[N,2] y) {
        [left] a = Flatten<axis=1>(x) [right] b = Flatten<axis=3>(x) [fc] c = Gemm(a, w, z) [same] d = Reshape(b, back)
        [sum] y = Add(c, d)
    }"""
    model = normalise(raw(network(text, w=(4, 2), z=(2,), back=np.array([-1, 2])), tmp_path), source="here")
    read = [
        value for node in model.graph for value in node.inputs if value is not None and value.const_value is not None
    ]
    assert all(model.graph.initializers[value.name] is value for value in read)
    as_in_file(model)
