"""Inputs with the samples on another axis, or without them; networks that take one sample at a time."""

import numpy as np
import onnx_ir as ir
import pytest
from networks import network

import dipo
from dipo.errors import UserError
from dipo.graph.input_axes import find_input_axes
from dipo.graph.load import normalise
from dipo.graph.passes import as_in_file


@pytest.mark.parametrize(
    ("shapes", "axes"),
    [
        ({"x": ("N", 3, 8, 8)}, [0]),
        ({"x": (1, 64), "state": (2, 1, 128), "sr": ()}, [0, 1, None]),
        ({"x": ("batch", "seq"), "state": (2, "batch", 8), "mask": ("seq", "seq")}, [0, 1, None]),
        ({"ids": ("b0", "s0"), "mask": ("b1", "s1")}, [0, 0]),
        ({"x": (None, 7), "state": (2, None, 6)}, [0, 1]),
        ({"x": ("N", 8), "table": (77, 77)}, [0, None]),
        ({"x": (4, 8), "z": (4, 2), "table": (1, 1, 8, 8)}, [0, 0, None]),
        ({"state": (2, 1, 8), "x": (1, 64), "past": (1, 4, 0, 8)}, [1, 0, 0]),
    ],
)
def test_where_inputs_count_samples(shapes, axes):
    assert list(find_input_axes(shapes).values()) == axes


GRU = """(float[N,7,4] x, float[1,N,6] h, float scale) => (float[N,5] y, float[1,N,6] last) {
    [time] t = Transpose<perm=[1,0,2]>(x)
    [gru] s, last = GRU<hidden_size=6>(t, W, R, B, , h)
    [flat] f = Squeeze(last, zero)
    [fc] g = Gemm(f, fw, fb)
    [scaled] y = Mul(g, scale)
}"""
GRU_WEIGHTS = {
    "W": (1, 18, 4), "R": (1, 18, 6), "B": (1, 36), "zero": np.array([0]), "fw": (6, 5), "fb": (5,),
}  # fmt: skip
FIXED = """(float[1,3,6,6] x) => (float[4] y, float most) {
    [conv] a = Conv(x, cw, cb)
    [relu] b = Relu(a)
    [rows] r = Reshape(b, rows)
    [fc] m = MatMul(r, mw)
    [all] y = ReduceSum<keepdims=0>(m, zero)
    [most] most = ReduceMax<keepdims=0>(y)
}"""
FIXED_WEIGHTS = {
    "cw": (5, 3, 3, 3), "cb": (5,), "rows": np.array([16, 5]), "mw": (5, 4), "zero": np.array([0]),
}  # fmt: skip
DETECTOR = """(float[N,3,6,6] x) => (float[N,32,2] scores, int64[k,3] picks) {
    [conv] a = Conv(x, cw, cb)
    [relu] b = Relu(a)
    [head] c = Conv(b, dw, db)
    [rows] r = Reshape(c, rows)
    boxes, logits = Split<axis=2>(r, parts)
    [sure] scores = Sigmoid(logits)
    [turned] t = Transpose<perm=[0,2,1]>(scores)
    [nms] picks = NonMaxSuppression(boxes, t, most, overlap, least)
}"""
DETECTOR_WEIGHTS = {
    "cw": (5, 3, 3, 3), "cb": (5,), "dw": (12, 5, 1, 1), "db": (12,), "rows": np.array([0, 32, 6]),
    "parts": np.array([4, 2]), "most": np.array([5]), "overlap": np.float32([0.5]), "least": np.float32([0.3]),
}  # fmt: skip


STATE_OF_ONE = """(float[1,7,4] x) => (float[1,5] y) {
    [time] t = Transpose<perm=[1,0,2]>(x)
    [gru] s, last = GRU<hidden_size=6>(t, W, R, B, , h)
    [flat] f = Squeeze(last, zero)
    [fc] y = Gemm(f, fw, fb)
}"""
PLACES_OF_ONE = """(float[1,3,8] x) => (float[1,5] y) {
    [first] a = MatMul(x, pw)
    [pick] p = Gather<axis=0>(a, zero)
    [mean] m = ReduceMean<axes=[1], keepdims=0>(p)
    [fc] y = Gemm(m, fw, fb)
}"""


STATE_OF_FOUR = STATE_OF_ONE.replace("float[1,", "float[4,")
MEAN_OF_THREE = """(float[3,5,6] x) => (float[3,5,4] y) {
    [first] a = MatMul(x, aw)
    [mean] m = ReduceMean<axes=[0], keepdims=1>(a)
    [rest] b = Sub(a, m)
    [fc] y = MatMul(b, bw)
}"""
PLACES_OF_FOUR = """(float[4,5,6] x) => (float[4,5,4] y) {
    [first] a = MatMul(x, aw)
    [places] b = Add(a, places)
    [relu] c = Relu(b)
    [fc] y = MatMul(c, bw)
}"""
PLACES_WEIGHTS = {"aw": (6, 8), "places": (4, 5, 8), "bw": (8, 4)}
NO_BATCH = """(float[3,6,6] x) => (float[5,4,4] y) {
    [batch] a = Unsqueeze(x, zero)
    [conv] b = Conv(a, cw, cb)
    [none] y = Squeeze(b, zero)
}"""


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


NETWORKS = {
    "state and scale": (GRU, GRU_WEIGHTS, {"x": normal(16, 7, 4), "h": normal(1, 16, 6), "scale": np.float32(0.5)}),
    "one at a time": (FIXED, FIXED_WEIGHTS, {"x": normal(16, 3, 6, 6)}),
    "a state of one": (STATE_OF_ONE, GRU_WEIGHTS | {"h": (1, 1, 6)}, {"x": normal(16, 7, 4)}),
    "places of one": (
        PLACES_OF_ONE,
        {"pw": (8, 6), "zero": np.array([0]), "fw": (6, 5), "fb": (5,)},
        {"x": normal(16, 3, 8)},
    ),
    "a state of four": (STATE_OF_FOUR, GRU_WEIGHTS | {"h": (1, 4, 6)}, {"x": normal(32, 7, 4)}),
    "four with places": (PLACES_OF_FOUR, PLACES_WEIGHTS, {"x": normal(32, 5, 6)}),
    "four at a time": (PLACES_OF_FOUR, PLACES_WEIGHTS, {"x": normal(8, 4, 5, 6)}),
    "a mean of three": (MEAN_OF_THREE, {"aw": (6, 8), "bw": (8, 4)}, {"x": normal(24, 5, 6)}),
    "no batch": (
        NO_BATCH,
        {"cw": (5, 3, 3, 3), "cb": (5,), "zero": np.array([0])},
        {"x": normal(16, 3, 6, 6)},
    ),
    "boxes": (DETECTOR, DETECTOR_WEIGHTS, {"x": normal(16, 3, 6, 6)}),
}


@pytest.mark.parametrize("name", list(NETWORKS))
@pytest.mark.parametrize("step", ["none", "bias_correction", "qdrop"])
def test_they_are_quantized_and_written_as_they_are(name, step):
    text, weights, samples = NETWORKS[name]
    model = network(text, **weights)
    found = dipo.quantize(
        model, samples, algo=step, options={"cluster.compile": False, **({"algo.iters": 4} if step == "qdrop" else {})}
    )
    assert found.report.error["deployed_vs_fp32"].sqnr_db > 25
    assert found.report.error["deployed_vs_simulated"].sqnr_db > 60
    ours, own = found.model.graph, model.graph
    for written, given in ((ours.input, own.input), (ours.output, own.output)):
        assert [(value.name, value.type) for value in written] == [(value.name, value.type) for value in given]


def test_samples_that_are_left_over_are_refused():
    model = network(STATE_OF_FOUR, **GRU_WEIGHTS, h=(1, 4, 6))
    with pytest.raises(UserError, match=r"on 4 samples at a time.*give 8 or 12 of them"):
        dipo.quantize(model, {"x": normal(10, 7, 4)}, algo="none")


def test_a_layer_that_makes_a_vector_is_refused():
    model = network("(float[6] x) => (float[4] y) { [fc] y = MatMul(x, w) }", w=(6, 4))
    with pytest.raises(UserError, match=r"layer 'fc' makes a vector.*export the model with a batch"):
        dipo.quantize(model, {"x": normal(16, 6)}, algo="none")


def test_values_of_a_scalar_that_differ_between_samples_are_each_samples_own():
    samples = NETWORKS["state and scale"][2] | {"scale": np.linspace(0.1, 3, 16, dtype=np.float32)}
    model = network(GRU, **GRU_WEIGHTS)
    found = dipo.quantize(model, samples, algo="bias_correction")
    assert found.report.error["deployed_vs_fp32"].sqnr_db > 25
    assert found.report.error["deployed_vs_simulated"].sqnr_db > 60


def test_a_class_token_that_is_expanded_by_the_batch_is_taken():
    model = network(
        """(float[N,7,12] x) => (float[N,5] y) {
          [embed] p = MatMul(x, pw)
          s = Shape(p) n = Gather(s, first) [sizes] e = Concat<axis=0>(n, one, one)
          [token] t = Expand(token, e)
          [join] c = Concat<axis=1>(t, p)
          [mix] m = MatMul(c, mw)
          [pick] z = Gather<axis=1>(m, nought)
          [fc] y = Gemm(z, fw, fb)
        }""",
        pw=(12, 8), first=np.array([0]), one=np.array([1]), token=(1, 1, 8), mw=(8, 8), nought=np.array(0), fw=(8, 5),
        fb=(5,),
    )  # fmt: skip
    found = dipo.quantize(model, {"x": normal(16, 7, 12)}, algo="bias_correction", options={"data.batch_size": 5})
    assert found.report.error["deployed_vs_fp32"].sqnr_db > 30
    assert found.report.error["deployed_vs_simulated"].sqnr_db > 60


def test_targets_that_follow_from_shapes_are_constants():
    model = normalise(
        ir.from_proto(
            network(
                """(float[N,3,6,6] x) => (float[N,4] y) {
                  [conv] a = Conv(x, cw, cb)
                  s = Shape(a) n = Gather(s, nought) i = Unsqueeze(n, axes) t = Concat<axis=0>(i, rest)
                  [flat] f = Reshape(a, t)
                  [fc] y = Gemm(f, fw, fb)
                }""",
                cw=(5, 3, 3, 3), cb=(5,), nought=np.array(0), axes=np.array([0]), rest=np.array([-1]), fw=(80, 4),
                fb=(4,),
            )
        ),
        source="here",
    )  # fmt: skip
    assert [node.name for node in model.graph] == ["conv", "flat", "fc"]
    assert as_in_file(model).graph.inputs[0].shape[0] == "N"
    target = model.graph.node("flat").inputs[1].const_value.numpy()
    assert target.tolist() in ([0, 80], [0, -1])


@pytest.mark.parametrize("platform", ["ort", "qnn"])
def test_boxes_of_which_the_first_sample_has_none(platform):
    """What stands for an output of varying size is compared as the file rounds it."""
    more = "    [places] i = Gather<axis=1>(picks, last)\n    [kept] k = Gather<axis=1>(boxes, i)\n}"
    text = DETECTOR.replace("float[N", "float[1").replace("int64[k,3] picks", "float[1,k,1,4] k").replace("}", more)
    weights = DETECTOR_WEIGHTS | {
        "cb": np.zeros(5, np.float32), "db": np.zeros(12, np.float32), "last": np.array([2]),
        "rows": np.array([1, 32, 6]), "least": np.float32([0.55]),
    }  # fmt: skip
    samples = normal(16, 3, 6, 6)
    samples[0] = 0
    found = dipo.quantize(network(text, **weights), {"x": samples}, algo="none", target=platform)
    assert found.report.error["deployed_vs_fp32"].sqnr_db > 25
    assert found.report.error["deployed_vs_simulated"].sqnr_db > 60
