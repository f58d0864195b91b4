"""Nodes that change nothing are removed, and only they."""

import numpy as np
import onnx_ir as ir
import pytest
from loaded import assert_same, ops
from networks import network

from dipo.graph.accessors import name_of
from dipo.graph.passes import DropNoOps

NO_OPS = {
    "times one": ("Mul(a, k)", np.ones(1, np.float32)),
    "times ones": ("Mul(k, a)", np.ones((4, 1, 1), np.float32)),
    "plus zeros": ("Add(a, k)", np.zeros((1, 4, 1, 1), np.float32)),
    "minus zero": ("Sub(a, k)", np.zeros(1, np.float32)),
    "over one": ("Div(a, k)", np.ones(1, np.float32)),
    "over ones everywhere": ("Div(a, k)", np.ones((4, 6, 6), np.float32)),
}
OTHERS = {
    "times two": ("Mul(a, k)", np.full(1, 2, np.float32)),
    "zero less": ("Sub(k, a)", np.zeros(1, np.float32)),
    "one over": ("Div(k, a)", np.ones(1, np.float32)),
    "plus next to nothing": ("Add(a, k)", np.float32(1e-12)),
    "minus next to nothing": ("Sub(a, k)", np.array([1e-9], np.float32)),
    "times almost one": ("Mul(a, k)", np.float32(1 + 1e-6)),
    "over almost one": ("Div(a, k)", np.float32(1 + 1e-6)),
    "one of several": ("Mul(a, k)", np.array([1, 1, 2, 1], np.float32).reshape(4, 1, 1)),
}


def between(call: str, **constants):
    return network(
        f"""(float[N,3,6,6] x) => (float[N,4,6,6] y) {{
          [c1] a = Conv(x, w)
          [odd] b = {call}
          [c2] y = Conv(b, v)
        }}""",
        w=(4, 3, 1, 1), v=(4, 4, 1, 1), **constants,
    )  # fmt: skip


@pytest.mark.parametrize(("call", "constant"), NO_OPS.values(), ids=NO_OPS)
def test_arithmetic_that_changes_nothing_is_removed(tmp_path, call, constant):
    loaded = assert_same(between(call, k=constant), tmp_path)
    assert ops(loaded) == ["Conv", "Conv"]
    assert "k" not in loaded.graph.initializers


@pytest.mark.parametrize(("call", "constant"), OTHERS.values(), ids=OTHERS)
def test_arithmetic_that_changes_something_stays(tmp_path, call, constant):
    assert len(ops(assert_same(between(call, k=constant), tmp_path))) == 3


def test_arithmetic_that_adds_an_axis_stays():
    text = "(float[N,4] x) => (float[1,N,4] y) { [fc] a = MatMul(x, w) \n [odd] y = Mul(a, k) }"
    model = ir.from_proto(network(text, w=(4, 4), k=np.ones((1, 1, 1), np.float32)))
    model.graph[0].outputs[0].shape = ir.Shape(["N", 4])
    assert not DropNoOps()(model).modified


def test_dropout_is_removed_unless_it_drops(tmp_path):
    assert ops(assert_same(between("Dropout(a, half)", half=np.float32(0.5)), tmp_path)) == ["Conv", "Conv"]
    text = "Dropout(a, half, no)"
    assert ops(assert_same(between(text, half=np.float32(0.5), no=np.array(False)), tmp_path)) == ["Conv", "Conv"]


def test_an_output_keeps_its_name(tmp_path):
    text = "(float[N,3,6,6] x) => (float[N,4,6,6] y) { [c1] a = Conv(x, w) \n [odd] y = Mul(a, k) }"
    loaded = assert_same(network(text, w=(4, 3, 1, 1), k=np.ones((4, 1, 1), np.float32)), tmp_path)
    assert [name_of(value) for value in loaded.graph.outputs] == ["y"]
    assert ops(loaded) == ["Conv"]


def test_an_input_that_is_an_output_keeps_its_node(tmp_path):
    text = "(float[N,4,1,1] x) => (float[N,4,1,1] y, float[N,4,1,1] z) { y = Conv(x, w) \n z = Mul(x, k) }"
    loaded = assert_same(network(text, w=(4, 4, 1, 1), k=np.ones((4, 1, 1), np.float32)), tmp_path)
    assert ops(loaded) == ["Conv", "Identity"]


def test_two_outputs_of_one_value_keep_their_names(tmp_path):
    text = "(float[N,4,1,1] x) => (float[N,4,1,1] y, float[N,4,1,1] z) { y = Conv(x, w) \n [odd] z = Mul(y, k) }"
    loaded = assert_same(network(text, w=(4, 4, 1, 1), k=np.ones((4, 1, 1), np.float32)), tmp_path)
    assert [name_of(value) for value in loaded.graph.outputs] == ["y", "z"]
    assert ops(loaded) == ["Conv", "Identity"]
