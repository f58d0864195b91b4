"""Files as older and other exporters write them load to the same network, and compute what the file does."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from loaded import assert_same, load_model, ops
from networks import network
from onnx import helper, numpy_helper

from dipo.errors import UserError
from dipo.export.runtime import run_model
from dipo.graph.accessors import array_of
from dipo.graph.layers import layers_of
from dipo.graph.passes.constant_parameters import IR_VERSION

CONV_NET = """(float[N,3,6,6] x) => (float[N,4,6,6] y) {
  [conv] a = Conv<pads=[1,1,1,1]>(x, w, b)
  [relu] c = Relu(a)
  [last] y = Conv(c, v)
}"""
WEIGHTS = {"w": (4, 3, 3, 3), "b": (4,), "v": (4, 4, 1, 1)}


def conv_net(**options) -> onnx.ModelProto:
    return network(CONV_NET, **WEIGHTS, **options)


def test_parameters_that_are_inputs_are_constants_and_the_format_allows_it(tmp_path):
    model = conv_net(opset=8)
    model.ir_version = 3
    model.graph.input.extend(
        helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in model.graph.initializer
    )
    loaded = assert_same(model, tmp_path)
    assert [value.name for value in loaded.graph.inputs] == ["x"]
    assert loaded.ir_version == IR_VERSION


def test_the_domain_of_onnx_may_have_its_long_name(tmp_path):
    model = conv_net()
    model.opset_import[0].domain = "ai.onnx"
    assert assert_same(model, tmp_path).opset_imports == {"": 17}


def test_nodes_may_be_out_of_order(tmp_path):
    model = conv_net()
    nodes = list(model.graph.node)[::-1]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    assert [node.name for node in assert_same(model, tmp_path).graph] == ["conv", "relu", "last"]


def test_a_circle_is_refused(tmp_path):
    model = network("(float[N,4] x) => (float[N,4] y) { a = Add(x, b) \n b = Relu(a) \n y = Neg(b) }")
    with pytest.raises(UserError, match="not a valid ONNX graph"):
        load_model(model, tmp_path)


@pytest.mark.parametrize("by_axis", [False, True])
@pytest.mark.parametrize("constant", [False, True])
def test_sparse_weights_are_read(tmp_path, by_axis, constant):
    model = conv_net()
    values = np.arange(1, 9, dtype=np.float32)
    flat = np.arange(0, 16, 2)
    indices = np.stack(np.unravel_index(flat, (4, 4, 1, 1)), axis=1) if by_axis else flat
    sparse = helper.make_sparse_tensor(
        numpy_helper.from_array(values, "v"), numpy_helper.from_array(indices, "v_indices"), [4, 4, 1, 1]
    )
    del model.graph.initializer[2]
    if constant:
        node = helper.make_node("Constant", [], ["v"], sparse_value=sparse)
        model.graph.node.insert(0, node)
    else:
        model.graph.sparse_initializer.append(sparse)
    loaded = load_model(model, tmp_path) if constant else assert_same(model, tmp_path)
    expected = np.zeros(16, np.float32)
    expected[flat] = values
    np.testing.assert_array_equal([*layers_of(loaded)][1].array.reshape(-1), expected)


OLD_FORMS = {
    "pad": ("[pad] a = Pad<pads=[0,0,1,1,0,0,1,1]>(x)", 9),
    "reflected": ('[pad] a = Pad<mode="reflect",pads=[0,0,1,1,0,0,1,1]>(x)', 7),
    "clip": ("[clip] a = Clip<min=0.0,max=0.5>(x)", 7),
    "relu behind a clip": ("c = Clip<max=0.5>(x) \n a = Relu(c)", 10),
    "slice": ("[cut] a = Slice<axes=[2],starts=[1],ends=[5]>(x)", 9),
    "upsample by attribute": ('[up] a = Upsample<mode="linear",scales=[1.0,1.0,3.0,3.0]>(x)', 8),
    "upsample": ('[up] a = Upsample<mode="nearest">(x, scales)', 9),
    "upsample, linear": ('[up] a = Upsample<mode="linear">(x, scales)', 9),
    "resize": ('[up] a = Resize<mode="nearest">(x, scales)', 10),
    "smaller": ('[up] a = Resize<mode="nearest">(x, halves)', 10),
}  # fmt: skip
FACTORS = {"scales": np.array([1, 1, 3, 3], np.float32), "halves": np.array([1, 1, 0.5, 0.5], np.float32)}


@pytest.mark.parametrize(("text", "opset"), OLD_FORMS.values(), ids=OLD_FORMS)
def test_forms_of_older_operator_sets(tmp_path, text, opset):
    used = {name: value for name, value in FACTORS.items() if name in text}
    text = f"(float[N,3,6,6] x) => (float[N,4,H,W] y) {{ {text} \n [last] y = Conv(a, w) }}"
    loaded = assert_same(network(text, opset=opset, w=(4, 3, 1, 1), **used), tmp_path)
    assert loaded.opset_imports[""] == 11
    assert "Upsample" not in ops(loaded)
    assert [node.name for node in loaded.graph if node.op_type == "Resize"] == ["up"] * ("[up]" in text)


def test_newer_files_keep_their_operator_set(tmp_path):
    assert load_model(conv_net(opset=11), tmp_path).opset_imports[""] == 11
    assert load_model(conv_net(opset=13), tmp_path).opset_imports[""] == 13


def branches(condition: bool) -> onnx.ModelProto:
    """A layer, and an If whose condition is constant with another layer in each branch."""
    model = network("(float[N,3,6,6] x) => (float[N,4,6,6] y) { [first] a = Conv(x, w) }", w=(4, 3, 1, 1),
                    v=(4, 4, 1, 1), u=(4, 4, 1, 1), go=np.array(condition))  # fmt: skip
    graphs = {
        branch: helper.make_graph(
            [helper.make_node("Conv", ["a", weight], [weight + "_out"], name=branch)],
            branch,
            [],
            [helper.make_tensor_value_info(weight + "_out", onnx.TensorProto.FLOAT, None)],
        )
        for branch, weight in (("then_branch", "v"), ("else_branch", "u"))
    }
    model.graph.node.append(helper.make_node("If", ["go"], ["y"], name="if", **graphs))
    return model


@pytest.mark.parametrize("condition", [True, False])
def test_the_branch_that_is_never_taken_reads_nothing(tmp_path, condition):
    loaded = assert_same(branches(condition), tmp_path)
    assert ops(loaded) == ["Conv", "Conv"]
    first, second = loaded.graph
    assert [use.node for use in first.outputs[0].uses()] == [second]


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_limits_and_padding_values_are_scalars(tmp_path, shape):
    constants = {name: np.full(shape, value, np.float32) for name, value in (("low", 0), ("high", 1), ("fill", 0.5))}
    model = network(
        """(float[N,3,6,6] x) => (float[N,4,8,8] y) {
          [clip] a = Clip(x, low, high)
          [pad] b = Pad(a, pads, fill)
          [last] y = Conv(b, w)
        }""",
        pads=np.array([0, 0, 1, 1, 0, 0, 1, 1]), w=(4, 3, 1, 1), **constants,
    )  # fmt: skip
    loaded = load_model(model, tmp_path) if len(shape) > 1 else assert_same(model, tmp_path)
    clip, pad, _ = loaded.graph
    limits = [array_of(value) for value in (*clip.inputs[1:], pad.inputs[2])]
    assert [array.shape for array in limits] == [()] * 3
    assert [array.item() for array in limits] == [0, 1, 0.5]


@pytest.mark.parametrize("opset", [11, 13, 18])
def test_halves_of_the_last_axis_are_split_in_the_form_of_the_operator_set(tmp_path, opset):
    """The optimizer writes a Split as opset 18 does, whatever the model's opset is."""
    text = """(float[N,6] x) => (float[N,3] y) {
      [first] h = MatMul(x, w)
      [right] b = Slice(h, three, six, axis)
      [left] a = Slice(h, zero, three, axis)
      [gate] y = Mul(a, b)
    }"""
    cuts = {name: np.array([value]) for name, value in (("zero", 0), ("three", 3), ("six", 6), ("axis", -1))}
    loaded = assert_same(network(text, opset=opset, w=(6, 6), **cuts), tmp_path)
    assert ops(loaded) == ["MatMul", "Split", "Mul"]
    path = tmp_path / "loaded.onnx"
    ir.save(loaded, path)
    onnx.checker.check_model(str(path), full_check=True)
    assert run_model(path, [{"x": np.ones((2, 6), np.float32)}], threads=1)["y"].shape == (2, 3)
