import logging
import os
import signal
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from loaded import assert_same, load_model, ops
from networks import network, saved, tiny_cnn

import dipo.graph.load
from dipo.errors import UserError
from dipo.graph.accessors import array_of, name_of, node_name
from dipo.graph.layers import layers_of
from dipo.graph.load import in_single_precision, load
from dipo.graph.one_by_one import rows_of
from dipo.graph.passes import as_in_file
from dipo.graph.passes.batch_first import runs_whole

IMAGE = "(float[{batch},3,8,8] x) => (float[{batch},{out}] y)"


BATCH_NORM = {"s": (4,), "t": (4,), "mean": (4,), "var": np.full(4, 0.5, np.float32)}


def test_batch_normalization_and_pad_are_folded_into_the_convolution(tmp_path):
    model = network(
        """(float[N,3,8,8] x) => (float[N,4,8,8] y) {
          [border] p = Pad(x, pads)
          [conv] a = Conv(p, w)
          [norm] b = BatchNormalization(a, s, t, mean, var)
          [relu] y = Relu(b)
        }""",
        pads=np.array([0, 0, 1, 1, 0, 0, 1, 1]), w=(4, 3, 3, 3), **BATCH_NORM,
    )  # fmt: skip
    loaded = assert_same(model, tmp_path)
    assert ops(loaded) == ["Conv", "Relu"]
    assert [node_name(node) for node in loaded.graph] == ["conv", "relu"], "the layer keeps the name that it had"


def test_constants_are_folded(tmp_path):
    model = network(
        """(float[N,6] x) => (float[N,4] y) {
          [half] h = Constant<value = float {0.5}>()
          [scale] scaled = Mul(w, h)
          [turn] turned = Transpose<perm=[1,0]>(scaled)
          [fc] y = MatMul(x, turned)
        }""",
        w=(4, 6),
    )
    loaded = assert_same(model, tmp_path)
    (fc,) = layers_of(loaded)
    assert ops(loaded) == ["MatMul"]
    weight = onnx.numpy_helper.to_array(model.graph.initializer[0])
    np.testing.assert_allclose(fc.array, weight.T / 2)


def test_every_node_has_a_name_of_its_own_and_layers_those_of_the_file(tmp_path):
    model = network(
        """(float[N,3,8,8] x) => (float[N,4,8,8] y) {
          a = Conv<pads=[1,1,1,1]>(x, w1)
          b = Relu(a)
          [Conv_0] c = Conv<pads=[1,1,1,1]>(b, w2)
          [same] d = Relu(c)
          [same] e = Conv<pads=[1,1,1,1]>(d, w3)
          [norm] y = BatchNormalization(e, s, t, mean, var)
        }""",
        w1=(4, 3, 3, 3), w2=(4, 4, 3, 3), w3=(4, 4, 3, 3), **BATCH_NORM,
    )  # fmt: skip
    loaded = load_model(model, tmp_path)
    names = [node_name(node) for node in loaded.graph]
    assert len(set(names)) == len(names)
    assert [layer.name for layer in layers_of(loaded)][1:] == ["Conv_0", "same"]


def test_shared_weights_and_biases_are_untied_and_both_layers_keep_their_names(tmp_path):
    model = network(
        """(float[N,4,8,8] x) => (float[N,4,8,8] y) {
          [first] a = Conv<pads=[1,1,1,1]>(x, w, b)
          [act] r = Relu(a)
          [second] y = Conv<pads=[1,1,1,1]>(r, w, b)
        }""",
        w=(4, 4, 3, 3), b=(4,),
    )  # fmt: skip
    loaded = assert_same(model, tmp_path)
    first, second = layers_of(loaded)
    assert (first.name, second.name) == ("first", "second")
    assert first.weight is not second.weight
    assert first.bias is not second.bias


def test_a_shared_weight_with_two_normalizations_gives_two_layers(tmp_path):
    model = network(
        """(float[N,4,8,8] x) => (float[N,4,8,8] y) {
          [first] a = Conv<pads=[1,1,1,1]>(x, w)
          [norm1] b = BatchNormalization(a, s, t, mean, var)
          [second] c = Conv<pads=[1,1,1,1]>(b, w)
          [norm2] y = BatchNormalization(c, s2, t, mean, var)
        }""",
        w=(4, 4, 3, 3), s2=(4,), **BATCH_NORM,
    )  # fmt: skip
    loaded = assert_same(model, tmp_path)
    assert ops(loaded) == ["Conv", "Conv"]
    assert {node_name(node) for node in loaded.graph} == {"first", "second"}


@pytest.mark.parametrize(
    ("layer", "weight", "channels"),
    [
        ("Conv<pads=[1,1,1,1]>(x, w)", (5, 4, 3, 3), 5),
        ("Conv<group=2,pads=[1,1,1,1]>(x, w)", (6, 2, 3, 3), 6),
        ("ConvTranspose<pads=[1,1,1,1]>(x, w)", (4, 5, 3, 3), 5),
        ("ConvTranspose<group=2,pads=[1,1,1,1]>(x, w)", (4, 3, 3, 3), 6),
    ],
)
def test_a_missing_bias_is_added(tmp_path, layer, weight, channels):
    model = network(f"(float[N,4,8,8] x) => (float[N,{channels},8,8] y) {{ [layer] y = {layer} }}", w=weight)
    (layer,) = layers_of(assert_same(model, tmp_path))
    assert layer.bias is not None
    np.testing.assert_array_equal(array_of(layer.bias), np.zeros(channels))


@pytest.mark.parametrize("bias", ["", ", b"])
def test_the_factors_of_a_gemm_go_into_its_weight_and_bias(tmp_path, bias):
    model = network(
        f"(float[N,4] x) => (float[N,5] y) {{ [fc] y = Gemm<alpha=0.5,beta=3.0,transB=1>(x, w{bias}) }}",
        w=(5, 4), b=(5,),
    )  # fmt: skip
    (layer,) = layers_of(assert_same(model, tmp_path))
    assert set(layer.node.attributes) == {"transB"}
    assert layer.channel_axis == 0


@pytest.mark.parametrize("shape", [(), (1,), (1, 5), (1, 1)])
def test_a_bias_of_another_shape_becomes_one_number_for_each_channel(tmp_path, shape):
    model = network("(float[N,4] x) => (float[N,5] y) { [fc] y = Gemm(x, w, b) }", w=(4, 5), b=np.ones(shape, "f"))
    (layer,) = layers_of(assert_same(model, tmp_path))
    assert array_of(layer.bias).shape == (5,)


def test_a_bias_for_each_row_is_refused(tmp_path):
    model = network("(float[2,4] x) => (float[2,5] y) { [fc] y = Gemm(x, w, b) }", w=(4, 5), b=(2, 5))
    with pytest.raises(UserError, match=r"'fc'.*one number for each channel"):
        load_model(model, tmp_path)


def test_initializers_listed_as_inputs_are_none(tmp_path):
    model = tiny_cnn()
    for tensor in model.graph.initializer:
        model.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    loaded = assert_same(model, tmp_path)
    assert [value.name for value in loaded.graph.inputs] == ["image"]
    assert len(list(layers_of(loaded))) == 4


def test_a_vector_that_is_multiplied_is_no_layer(tmp_path):
    model = network("(float[N,3,4] x) => (float[N,3] y) { [dot] y = MatMul(x, v) }", v=(4,))
    assert list(layers_of(assert_same(model, tmp_path))) == []


@pytest.mark.parametrize("opset", [9, 11, 13, 17])
def test_nodes_that_the_optimizer_makes_are_of_the_network_s_operator_set(tmp_path, opset):
    """A Reshape by computed sizes has constant ones afterwards, and `allowzero`, which operator set 14 brought."""
    model = network(
        """(float[N,4,6] x) => (float[N,8] y) {
          [fc] a = MatMul(x, w)
          [shape] s = Shape(a)
          [first] n = Gather(s, zero)
          [join] t = Concat<axis=0>(n, rest)
          [flat] y = Reshape(a, t)
        }""",
        opset=opset, w=(6, 2), zero=np.array([0]), rest=np.array([-1]),
    )  # fmt: skip
    loaded = assert_same(model, tmp_path)
    for node in loaded.graph:
        known = onnx.defs.get_schema(node.op_type, loaded.opset_imports[""], "").attributes
        assert node.attributes.keys() <= known.keys()


# The batch

RESHAPES = {
    "whole": ("Reshape(p, shape)", [1, 4]),
    "rest": ("Reshape(p, shape)", [1, -1]),
    "flatten": ("Flatten(p)", [0]),
}


@pytest.mark.parametrize(("reshape", "target"), RESHAPES.values(), ids=RESHAPES)
def test_a_fixed_batch_is_made_dynamic(tmp_path, reshape, target):
    model = network(
        f"""(float[1,3,8,8] x) => (float[1,10] y) {{
          [conv] a = Conv<pads=[1,1,1,1]>(x, w)
          [pool] p = GlobalAveragePool(a)
          [shape] f = {reshape}
          [fc] y = Gemm(f, v)
        }}""",
        w=(4, 3, 3, 3), v=(4, 10), shape=np.array(target),
    )  # fmt: skip
    loaded = assert_same(model, tmp_path)
    for value in (*loaded.graph.inputs, *loaded.graph.outputs):
        assert not isinstance(value.shape[0], int)
    for node in loaded.graph:
        assert not isinstance(node.outputs[0].shape[0], int)


def test_a_fixed_batch_of_several_samples_is_made_dynamic_too(tmp_path):
    loaded = assert_same(tiny_cnn(batch=4), tmp_path, batch=7)
    assert not isinstance(loaded.graph.inputs[0].shape[0], int)


def test_a_shape_that_only_looks_like_the_batch_stays(tmp_path):
    model = network(
        """(float[1,6] x) => (float[1,2] y) {
          [grid] a = Reshape(x, shape)
          [turn] b = Transpose<perm=[0,2,1]>(a)
          [flat] c = Flatten(b)
          [fc] y = Gemm(c, w)
        }""",
        shape=np.array([1, -1, 1]), w=(6, 2),
    )  # fmt: skip
    assert_same(model, tmp_path)


@pytest.mark.parametrize(("size", "mode"), [(16, "nearest"), (11, "linear"), (24, "nearest")])
def test_the_sizes_of_a_resize_fix_no_batch(tmp_path, size, mode):
    model = network(
        f"""(float[1,3,8,8] x) => (float[1,3,{size},{size}] y) {{
          [conv] a = Conv(x, w)
          [up] y = Resize<mode="{mode}">(a, , , sizes)
        }}""",
        w=(3, 3, 1, 1), sizes=np.array([1, 3, size, size]),
    )  # fmt: skip
    assert_same(model, tmp_path)


def test_a_batch_that_is_merged_with_another_dimension_and_parted_again_is_made_dynamic(tmp_path):
    model = network(
        """(float[2,3,4] x) => (float[2,4,3] y) {
          [flat] a = Reshape(x, down)
          [fc] b = MatMul(a, w)
          [back] c = Reshape(b, up)
          [turn] y = Transpose<perm=[0,2,1]>(c)
        }""",
        down=np.array([6, 4]), up=np.array([2, 3, 4]), w=(4, 4),
    )  # fmt: skip
    assert_same(model, tmp_path, batch=5)


def test_a_batch_that_a_shuffle_moves_to_an_inner_axis_is_made_dynamic(tmp_path):
    model = network(
        """(float[1,8,4,4] x) => (float[1,4,4,4] y) {
          [conv] a = Conv(x, w)
          [part] b = Reshape(a, pairs)
          [turn] c = Transpose<perm=[1,0,2]>(b)
          [back] d = Reshape(c, halves)
          [half] y = Gather<axis=0>(d, second)
        }""",
        w=(8, 8, 1, 1), pairs=np.array([4, 2, 16]), halves=np.array([2, -1, 4, 4, 4]), second=np.array(1),
    )  # fmt: skip
    loaded = assert_same(model, tmp_path)
    assert list(loaded.graph.outputs[0].shape[1:]) == [4, 4, 4]


@pytest.mark.parametrize("axis", [1, -2])
def test_a_constant_that_is_joined_to_every_sample_fixes_no_batch(tmp_path, axis):
    """A class token, in a network that was exported for one sample."""
    model = network(
        f"""(float[1,4,6] x) => (float[1,5,3] y) {{
          [tokens] a = MatMul(x, w)
          [join] b = Concat<axis={axis}>(token, a)
          [place] c = Add(b, positions)
          [head] y = MatMul(c, v)
        }}""",
        w=(6, 6), v=(6, 3), token=(1, 1, 6), positions=(1, 5, 6),
    )  # fmt: skip
    loaded = assert_same(model, tmp_path)
    assert [value.name for value in loaded.graph.inputs] == ["x"]
    assert [str(value.shape[0]) for value in loaded.graph.outputs] == ["batch"]


def test_of_a_graph_that_depends_on_its_batch_a_sample_is_all_that_it_takes(tmp_path):
    model = network(
        "(float[2,3,4] x) => (float[3,8] y) { [fc] a = MatMul(x, w) [mix] y = Reshape(a, shape) }",
        shape=np.array([3, 8]), w=(4, 4),
    )  # fmt: skip
    loaded = load_model(model, tmp_path)
    assert runs_whole(loaded)
    assert rows_of(loaded) == {}
    assert [list(value.shape)[1:] for value in loaded.graph.inputs] == [[2, 3, 4]]
    assert [list(value.shape) for value in as_in_file(loaded).graph.inputs] == [[2, 3, 4]]


# What is refused


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    assert "no such file" in refusal(tmp_path / "absent.onnx")
    assert "folder" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [("text.onnx", b"words, no network\n" * 9), ("net.json", b'{"a": 1}'), ("none.onnx", b""), ("0.onnx", b"\0" * 99)],
)  # fmt: skip
def test_what_is_no_onnx_file_is_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    message = refusal(tmp_path / name)
    assert "not an ONNX file" in message or "no complete ONNX graph" in message


@pytest.mark.parametrize("keep", [0.01, 0.1, 0.5, 0.9, 0.99])
def test_a_truncated_file_is_refused_wherever_it_ends(tmp_path, keep):
    content = tiny_cnn().SerializeToString()
    path = tmp_path / "cut.onnx"
    path.write_bytes(content[: int(len(content) * keep)])
    assert "truncated" in refusal(path)


def test_a_file_that_ends_between_two_fields_is_refused(tmp_path):
    model = tiny_cnn()
    del model.opset_import[:]
    assert "no complete ONNX graph" in refusal(saved(model, tmp_path))


def test_a_quantized_model_is_refused(tmp_path):
    model = network(
        "(float[N,4] x) => (float[N,4] y) { [q] a = QuantizeLinear(x, s, z) [d] y = DequantizeLinear(a, s, z) }",
        s=np.float32(0.1), z=np.uint8(0),
    )  # fmt: skip
    message = refusal(saved(model, tmp_path))
    assert "quantized already" in message
    assert "'q'" in message


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(tmp_path, value):
    model = tiny_cnn()
    array = onnx.numpy_helper.to_array(model.graph.initializer[2]).copy()
    array[0, 0, 0, 0] = value
    model.graph.initializer[2].CopyFrom(onnx.numpy_helper.from_array(array, "w2"))
    assert "'w2'" in refusal(saved(model, tmp_path))


def test_other_constants_may_be_infinite_but_not_nan(tmp_path):
    text = "(float[N,4] x) => (float[N,4] y) { s = Add(x, m) y = Softmax<axis=-1>(s) }"
    mask = np.array([0, -np.inf, np.inf, 1], np.float32)
    (constant,) = load(saved(network(text, m=mask), tmp_path)).graph.initializers.values()
    np.testing.assert_array_equal(constant.const_value.numpy(), mask)
    mask[0] = np.nan
    assert "'m' has NaN" in refusal(saved(network(text, m=mask), tmp_path))


def as_initializer(tensor):
    model = tiny_cnn()
    model.graph.initializer[2].CopyFrom(tensor)
    return model


def as_constant(tensor):
    model = tiny_cnn()
    model.graph.node.insert(0, onnx.helper.make_node("Constant", [], ["w2"], name="made", value=tensor))
    del model.graph.initializer[2]
    return model


def as_attribute(tensor):
    model = tiny_cnn()
    model.graph.node.append(onnx.helper.make_node("ConstantOfShape", ["b1"], ["odd"], name="made", value=tensor))
    return model


def inside_a_branch(tensor):
    model = tiny_cnn()
    out = onnx.helper.make_tensor_value_info("inner", onnx.TensorProto.FLOAT, None)
    node = onnx.helper.make_node("Identity", ["w2"], ["inner"])
    branch = onnx.helper.make_graph([node], "branch", [], [out], [tensor])
    condition = onnx.numpy_helper.from_array(np.array(True), "condition")
    model.graph.initializer.append(condition)
    node = onnx.helper.make_node("If", ["condition"], ["odd"], name="made", then_branch=branch, else_branch=branch)
    model.graph.node.append(node)
    return model


def tensor(kind):
    """Return a tensor whose data is not what it says."""
    whole = onnx.numpy_helper.from_array(np.ones((8, 8, 3, 3), np.float32), "w2")
    if kind == "cut":
        whole.raw_data = whole.raw_data[:-4]
    elif kind == "other dims":
        whole.dims[0] = 7
    elif kind == "negative":
        whole.dims[0] = -8
    elif kind == "huge":
        whole.dims[0] = 1 << 60
    elif kind == "untyped":
        whole.data_type = onnx.TensorProto.UNDEFINED
    elif kind == "other type":
        whole.data_type = onnx.TensorProto.INT8
    elif kind == "no data":
        whole.raw_data = b""
    return whole


@pytest.mark.parametrize("kind", ["cut", "other dims", "negative", "huge", "untyped", "other type", "no data"])
@pytest.mark.parametrize("place", [as_initializer, as_constant, as_attribute, inside_a_branch])
def test_tensors_that_are_not_what_they_say_are_refused(tmp_path, kind, place):
    message = refusal(saved(place(tensor(kind)), tmp_path))
    assert "'w2'" in message or "'made'" in message, message


def test_a_graph_without_a_name_gets_one(tmp_path):
    model = tiny_cnn()
    model.graph.name = ""
    assert assert_same(model, tmp_path).graph.name
    assert in_single_precision(tmp_path / "net.onnx").graph.name


@pytest.mark.parametrize("value", [1.0, "one", [1], tiny_cnn().graph])
def test_an_attribute_of_another_type_is_refused(tmp_path, value):
    model = tiny_cnn()
    head = model.graph.node[-1]
    head.attribute[0].CopyFrom(onnx.helper.make_attribute("transB", value))
    message = refusal(saved(model, tmp_path))
    assert "'head' (Gemm)" in message
    assert "'transB'" in message


@pytest.mark.parametrize("kind", ["INT", "TENSOR"])
def test_an_attribute_that_refers_to_a_parameter_outside_of_a_function_is_refused(tmp_path, kind):
    model = tiny_cnn()
    attribute = model.graph.node[-1].attribute[0]
    attribute.CopyFrom(onnx.AttributeProto(name="transB", ref_attr_name="flipped"))
    attribute.type = onnx.AttributeProto.AttributeType.Value(kind)
    message = refusal(saved(model, tmp_path))
    assert "'head' (Gemm)" in message
    assert "'flipped'" in message


@pytest.mark.parametrize("opset", [0, -1, 999, 1 << 40, -(1 << 63)])
def test_an_opset_that_is_none_is_refused(tmp_path, opset):
    model = tiny_cnn()
    model.opset_import[0].version = opset
    assert f"opset {opset} is none" in refusal(saved(model, tmp_path))


def cut_network(window):
    return network(
        f"""(float[N,3,8,8] x) => (float[N,3,4,8] y) {{
          [conv] a = Conv(x, w)
          [pool] p = MaxPool<kernel_shape=[{window},1]>(a)
          [cut] b = Slice(p, start, stop, axis)
          [last] y = Conv(b, w)
        }}""",
        w=(3, 3, 1, 1), start=np.array([0]), stop=np.array([4]), axis=np.array([2]),
    )  # fmt: skip


def test_an_input_of_a_negative_size_is_refused(tmp_path):
    model = cut_network(window=2)
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = -3
    assert "'x' has the shape" in refusal(saved(model, tmp_path))


def test_what_a_library_aborts_on_is_refused(tmp_path):
    """A window larger than the image leaves a negative size, on which ONNX's shape inference of a Slice aborts."""
    assert "SIGABRT" in refusal(saved(cut_network(window=40), tmp_path))


def ends(number):
    return lambda *_, **__: os.kill(os.getpid(), number)


def test_a_file_that_ends_a_library_s_process_is_refused(tmp_path, monkeypatch):
    path = saved(tiny_cnn(), tmp_path)
    monkeypatch.setattr("dipo.graph.load.normalise", ends(signal.SIGABRT))
    assert "SIGABRT" in refusal(path)


def test_a_file_that_a_library_never_ends_with_is_refused(tmp_path, monkeypatch):
    path = saved(tiny_cnn(), tmp_path)
    monkeypatch.setattr("dipo.graph.load._allowed_seconds", lambda *_: 0.2)
    monkeypatch.setattr("dipo.graph.load._NORMALISE", "while True: pass")
    monkeypatch.setattr("dipo.graph.load.normalise", lambda *_, **__: time.sleep(60))
    assert "do not come to an end" in refusal(path)


def test_a_fork_that_hangs_for_a_lock_of_this_process_is_not_the_file_s_fault(tmp_path, monkeypatch):
    path = saved(tiny_cnn(), tmp_path)
    wait = dipo.graph.load.fork_ends
    monkeypatch.setattr("dipo.graph.load.fork_ends", lambda _, seconds: wait(lambda: time.sleep(60), seconds=0.2))
    assert len(list(layers_of(load(path)))) == 4


def test_missing_and_short_external_data_are_refused(tmp_path):
    path = tmp_path / "net.onnx"
    onnx.save(tiny_cnn(), path, save_as_external_data=True, location="net.data", size_threshold=0)
    assert len(list(layers_of(load(path)))) == 4
    data = (tmp_path / "net.data").read_bytes()
    (tmp_path / "net.data").write_bytes(data[:64])
    assert "incomplete" in refusal(path)
    (tmp_path / "net.data").unlink()
    assert "net.data" in refusal(path)


def test_weights_of_integers_are_refused(tmp_path):
    model = network("(int32[N,4] x) => (int32[N,5] y) { [fc] y = Gemm(x, w) }", w=np.ones((4, 5), np.int32))
    assert "'fc' has int32 weights" in refusal(saved(model, tmp_path))


def test_a_constant_output_is_refused(tmp_path):
    model = network(
        "(float[N,4] x) => (float[N,4] y, float[4] z) { [fc] y = MatMul(x, w) z = Identity(k) }", w=(4, 4), k=(4,)
    )
    assert "'z' is a constant" in refusal(saved(model, tmp_path))


def test_an_invalid_graph_is_refused(tmp_path):
    model = network("(float[N,4] x) => (float[N,4] y) { [a] y = Unknown(z) }")
    assert "reads 'z', which nothing makes" in refusal(saved(model, tmp_path))


def test_nothing_reaches_the_terminal(tmp_path, capfd):
    model = network(
        """(float[1,3,8,8] x) => (float[1,3,8,8] y, float[1,3,8,8] z) {
          [bad] a = Conv<pads=[1,1,1,1]>(x, w)
          [div] d = Div(one, zero)
          [cast] e = Cast<to=1>(d)
          [add] y = Add(a, e)
          [own] z = Relu(a)
        }""",
        w=(3, 3, 3, 3), one=np.float32(1), zero=np.float32(0),
    )  # fmt: skip
    load_model(model, tmp_path)
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")
    assert logging.getLogger("onnxscript").level == logging.NOTSET


@pytest.mark.parametrize(("name", "layers"), [("resnet20_cifar10.onnx", 20), ("mobilenet_v1_025_224.onnx", 28)])
def test_real_networks_lose_their_normalizations(shared_file, name, layers):
    path = shared_file(name)
    loaded = load(path)
    assert "BatchNormalization" not in ops(loaded)
    found = [layer.name for layer in layers_of(loaded)]
    assert len(found) >= layers
    assert set(found) <= {node.name for node in onnx.load(path).graph.node}
    assert all(name_of(layer.weight) for layer in layers_of(loaded))
