"""The passes one by one, where they say more than the loaded network does."""

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from networks import network, saved, tiny_cnn

import dipo
from dipo.errors import UserError
from dipo.graph.load import normalise
from dipo.graph.passes import (
    FreeBatch,
    NameNodes,
    OwnParameters,
    RecordLayerNames,
    TrueShapes,
    UntieParameters,
    as_in_file,
)

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


FLAT_ROWS = """(float[N,3,T] x) => (float{declared} y) {{
  [turn] a = Transpose<perm=[0,2,1]>(x)
  [fc] b = MatMul(a, w)
  s = Shape(x)
  n = Gather(s, first)
  t = Gather(s, third)
  z = Concat<axis=0>(n, t, one, rest)
  q = Max(z, rest)
  [back] y = {last}
}}"""
FLAT_ROWS_CONSTANTS = {
    "w": (3, 5),
    "first": np.array([0]),
    "third": np.array([2]),
    "one": np.array([1]),
    "rest": np.array([-1]),
}


@pytest.mark.parametrize(
    ("declared", "last", "expected"),
    [
        ("[1,L]", "Reshape(b, q)", [None, None, None, None]),
        ("[N,T,1,5]", "Reshape(b, z)", ["N", "T", 1, 5]),
        ("[N,5]", "Identity(b)", ["N", "T", 5]),
        ("[N,T,7]", "Identity(b)", ["N", "T", 5]),
        ("[N,steps,5]", "Identity(b)", ["N", "steps", 5]),
    ],
    ids=["rank of a target", "right", "rank", "size", "another name"],
)
def test_a_declared_shape_that_cannot_be_right_gives_way(tmp_path, declared, last, expected):
    model = raw(
        network(
            FLAT_ROWS.format(declared=declared, last=last),
            opset=12,
            **FLAT_ROWS_CONSTANTS,
        ),
        tmp_path,
    )
    TrueShapes()(model)
    found = model.graph.outputs[0].shape
    assert [size if isinstance(size, int) else size.value for size in found] == expected


def test_targets_do_not_follow_from_a_shape_that_cannot_be_right():
    """As of a recognizer whose output is declared as a list of codes, and is one of scores."""
    text = FLAT_ROWS.format(declared="[1,L]", last="Reshape(b, q)")
    model = network(text, opset=12, **FLAT_ROWS_CONSTANTS)
    samples = {"x": np.random.default_rng(0).normal(size=(16, 3, 4)).astype(np.float32)}
    found = dipo.quantize(model, samples, algo="bias_correction")
    session = ort.InferenceSession(found.model.SerializeToString())
    assert session.run(None, {"x": samples["x"][:2]})[0].shape == (2, 4, 1, 5)
    assert found.report.error["deployed_vs_simulated"].sqnr_db > 140


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
