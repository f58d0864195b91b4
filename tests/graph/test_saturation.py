import numpy as np
import onnx_ir as ir
import pytest
from networks import network, saved

from dipo.graph.load import load
from dipo.graph.saturation import Interval, constant_reach, saturated_parts

LAST = "[soft] y = Softmax<axis=-1>(s)"
FORMS = {
    "sum": (f"[mask] s = Add(a, b) {LAST}", {"a": (-13, np.inf), "b": (-15, np.inf), "s": (-10, np.inf)}),
    "difference": (f"[mask] s = Sub(a, b) {LAST}", {"a": (-15, np.inf), "b": (-np.inf, 15), "s": (-10, np.inf)}),
    "chosen": (f"c = Cast<to=9>(b) [mask] s = Where(c, a, a2) {LAST}", {"a2": (-10, np.inf), "s": (-10, np.inf)}),
    "moved": (f"m = Add(a, b) [t] s = Transpose<perm=[0,2,1]>(m) {LAST}", {"m": (-10, np.inf), "a": (-13, np.inf)}),
    "joined": (f"[join] s = Concat<axis=1>(a, b) {LAST}", {"a": (-10, np.inf), "b": (-10, np.inf)}),
    "clipped": (f"[clip] s = Max(a, b) {LAST}", {"a": (-10, np.inf)}),
    "scaled": (f"[scale] s = Mul(a, b) {LAST}", {"s": (-10, np.inf)}),
    "read twice": (f"[mask] s = Add(a, b) [other] z = Relu(a) {LAST} ", {"b": (-15, np.inf)}),
    "added to itself": (f"[mask] s = Add(a, a) {LAST}", {"s": (-10, np.inf)}),
}
SEEN = {"a": Interval(-7, 5), "b": Interval(-5, 3)}


def parts_of(nodes, tmp_path, *, outputs="float[N,4,4] y", **constants):
    text = f"(float[N,4,4] a0, float[N,4,4] b0) => ({outputs}) {{ a = Exp(a0) a2 = Abs(a0) b = Exp(b0) {nodes} }}"
    if " z " in nodes:
        text = text.replace(f"({outputs})", f"({outputs}, float[N,4,4] z)")
    return saturated_parts(load(saved(network(text, **constants), tmp_path)))


@pytest.mark.parametrize("form", FORMS)
def test_limits_pass_through_what_lies_before_a_softmax(form, tmp_path):
    nodes, expected = FORMS[form]
    (part,) = parts_of(nodes, tmp_path)
    found = part.reaches({"soft": Interval(low=-10)}, SEEN)
    assert found == {name: found[name] for name in part.values}
    for name, (low, high) in expected.items():
        assert found[name] == Interval(low, high), name


@pytest.mark.parametrize(
    "nodes",
    ["s = Add(a, b) y = Softmax<axis=-1>(s) z = Relu(s)", "[log] s = Add(a, b) y = LogSoftmax<axis=-1>(s)"],
)
def test_what_others_read_keeps_its_reach(nodes, tmp_path):
    assert parts_of(nodes, tmp_path) == []


def test_an_output_keeps_its_reach(tmp_path):
    assert parts_of("s = Add(a, b) y = Softmax<axis=-1>(s)", tmp_path, outputs="float[N,4,4] y, float[N,4,4] s") == []


def test_softmaxes_of_one_mask_are_one_part(tmp_path):
    (part,) = parts_of(
        "s = Add(a, b) t = Add(a2, b) [one] u = Softmax<axis=-1>(s) [two] v = Softmax<axis=-1>(t) y = Add(u, v)",
        tmp_path,
    )
    assert [node.name for node in part.softmaxes] == ["one", "two"]
    seen = SEEN | {"a2": Interval(0, 100)}
    found = part.reaches({"one": Interval(low=-10), "two": Interval(low=0)}, seen)
    assert found["b"].low == min(-10 - 5, 0 - 100)
    assert found["s"].low == -10 and found["t"].low == 0


@pytest.mark.parametrize("low", [-1e4, -3.4e38, -np.inf])
def test_a_constant_mask_needs_what_its_sum_needs(low, tmp_path):
    mask = np.array([0, low, 3], np.float32)
    text = "(float[N,3] x) => (float[N,3] y) { [mask] s = Add(x, m) y = Softmax<axis=-1>(s) }"
    model = load(saved(network(text, m=mask), tmp_path))
    (node,) = saturated_parts(model)[0].nodes
    value: ir.Value = node.inputs[1]
    grids = {"x": Interval(-4, 6), "s": Interval(-10, 9)}
    assert constant_reach(value, node, grids) == Interval(-16, 13)
    assert constant_reach(value, node, {"s": grids["s"]}) == Interval()
