import numpy as np
import pytest
from networks import network, saved, tiny_cnn

from dipo.errors import UserError
from dipo.export.platforms import RULES
from dipo.graph.load import layers_of, load, name_of, node_name
from dipo.graph.plan import Plan, make_plan

WIDTHS = {"weight_bits": 4, "act_bits": 4}


@pytest.fixture
def plan_of(tmp_path):
    def plan(model, *, platform: str = "ort", **settings) -> Plan:
        loaded = load(saved(model, tmp_path))
        return make_plan(loaded, rules=RULES[platform], **{**WIDTHS, **settings})

    return plan


def bits(plan: Plan) -> dict[str, int]:
    return {name: spec.bits for name, spec in plan.activations.items()}


def test_first_and_last_layer_and_what_only_sums_and_poolings_read_keep_8_bits(plan_of):
    plan = plan_of(tiny_cnn())
    assert {name: layer.spec.bits for name, layer in plan.layers.items()} == {
        "stem": 8,
        "left": 4,
        "right": 4,
        "head": 8,
    }
    found = bits(plan)
    assert found.pop("image") == 8, "what the first layer reads"
    assert found.pop("b") == 4, "a layer reads it, and a sum"
    assert found.pop("d") == 4
    assert found.pop("e") == 8, "only a sum reads it"
    assert found.pop("h") == 8, "only a pooling reads it"
    assert set(found.values()) == {8}


def test_no_exception_for_first_and_last_where_none_is_wanted(plan_of):
    plan = plan_of(tiny_cnn(), first_last_bits=None)
    assert {layer.spec.bits for layer in plan.layers.values()} == {4}
    assert bits(plan)["image"] == 4


def test_the_exception_never_narrows(plan_of):
    plan = plan_of(tiny_cnn(), weight_bits=16, act_bits=16)
    assert {layer.spec.bits for layer in plan.layers.values()} == {16}
    assert set(bits(plan).values()) == {16}


def test_weights_are_symmetric_from_8_bits_on_and_per_channel(plan_of):
    layers = plan_of(tiny_cnn()).layers
    assert layers["stem"].spec.symmetric
    assert layers["stem"].spec.signed
    assert not layers["left"].spec.symmetric
    assert not layers["left"].spec.signed
    assert all(layer.spec.per_channel and layer.axis == 0 and layer.bias for layer in layers.values())
    per_tensor = plan_of(tiny_cnn(), weight_per_channel=False, weight_symmetric=True).layers
    assert all(not layer.spec.per_channel and layer.spec.symmetric for layer in per_tensor.values())


def test_trt_fuses_the_residual_sum_into_the_layer_that_ends_its_branch(plan_of):
    plan = plan_of(tiny_cnn(), platform="trt")
    assert "e" not in plan.activations, "the layer's output goes into the sum inside one kernel"
    assert {"image", "b", "d", "h"} <= set(plan.activations)
    assert all(spec.symmetric and spec.signed for spec in plan.activations.values())
    assert all(layer.spec.symmetric for layer in plan.layers.values())


TWO_BRANCHES = """(float[N,4,8,8] x) => (float[N,4,8,8] y) {
  [short] a = Conv(x, w1)
  [long] b = Conv<pads=[1,1,1,1]>(x, w2)
  [sum] c = Add(a, b)
  [relu] d = Relu(c)
  [last] y = Conv(d, w3)
}"""


def test_trt_fuses_only_one_of_two_branches(plan_of):
    plan = plan_of(network(TWO_BRANCHES, w1=(4, 4, 1, 1), w2=(4, 4, 3, 3), w3=(4, 4, 1, 1)), platform="trt")
    assert ("a" in plan.activations, "b" in plan.activations) == (True, False)


PASSED_THROUGH = """(float[N,4,8,8] x) => (float[N,4,4,4] y) {
  [first] a = Conv<pads=[1,1,1,1]>(x, w1)
  [relu] b = Relu(a)
  [middle] c = Conv<pads=[1,1,1,1],strides=[2,2]>(b, w2)
  [cut] d = Slice(b, starts, ends, axes, steps)
  [pad] e = Pad(d, pads, fill)
  [sum] f = Add(c, e)
  [last] y = Conv(f, w3)
}"""
SLICED = {
    "w1": (2, 4, 3, 3), "w2": (4, 2, 3, 3), "w3": (4, 4, 1, 1), "starts": np.array([0, 0]), "ends": np.array([8, 8]),
    "axes": np.array([2, 3]), "steps": np.array([2, 2]), "pads": np.array([0, 1, 0, 0, 0, 1, 0, 0]),
}  # fmt: skip


def test_a_shortcut_of_slice_and_pad_has_the_scale_of_what_it_was_made_of(plan_of):
    plan = plan_of(network(PASSED_THROUGH, fill=np.float32(0), **SLICED))
    assert plan.shared == {"e": "b"}
    assert "e" not in plan.activations
    assert plan.activations["b"].bits == 4


def test_padding_with_a_number_that_the_grid_may_lack_needs_a_scale_of_its_own(plan_of):
    plan = plan_of(network(PASSED_THROUGH, fill=np.float32(3), **SLICED))
    assert plan.shared == {}
    assert {"b", "e"} <= set(plan.activations)


def test_a_layer_behind_a_pass_through_operator_sets_the_width(plan_of):
    model = network(
        """(float[N,4,8,8] x) => (float[N,2] y) {
          [first] a = Conv(x, w1)
          [relu] b = Relu(a)
          [pool] c = MaxPool<kernel_shape=[2,2],strides=[2,2]>(b)
          [middle] d = Conv(c, w2)
          [mean] e = GlobalAveragePool(d)
          [flat] f = Flatten(e)
          [last] y = Gemm(f, w3)
        }""",
        w1=(4, 4, 1, 1), w2=(4, 4, 1, 1), w3=(4, 2),
    )  # fmt: skip
    plan = plan_of(model)
    loaded_name = plan.shared.get("c", "c")
    assert plan.activations[loaded_name].bits == 4


def test_layers_know_the_quantized_value_that_they_read(tmp_path):
    text = PASSED_THROUGH.replace("Conv(f, w3)", "Conv(e, w3)").replace(" y)", " y, float[N,4,4,4] f)")
    model = load(saved(network(text, fill=np.float32(0), **SLICED), tmp_path))
    plan = make_plan(model, rules=RULES["ort"], weight_bits=8, act_bits=8)
    inputs = {node_name(node): plan.input_of(node) for node in layers_of(model)}
    assert inputs == {"first": "x", "middle": "b", "last": "b"}
    skipped = make_plan(model, rules=RULES["ort"], weight_bits=8, act_bits=8, skip=["first"])
    assert skipped.input_of(next(iter(layers_of(model)))) is None


def test_overrides_set_what_they_name_and_later_ones_win(plan_of):
    plan = plan_of(
        tiny_cnn(),
        overrides={"*": {"weight_bits": 6}, "r*": {"weight_bits": 3, "act_bits": 5, "weight_per_channel": False}},
    )
    assert {name: layer.spec.bits for name, layer in plan.layers.items()} == {
        "stem": 6,
        "left": 6,
        "right": 3,
        "head": 6,
    }
    assert not plan.layers["right"].spec.per_channel
    assert plan.layers["left"].spec.per_channel
    assert bits(plan)["d"] == 5


def test_a_value_has_the_largest_width_that_its_layers_want(plan_of):
    model = network(TWO_BRANCHES, w1=(4, 4, 1, 1), w2=(4, 4, 3, 3), w3=(4, 4, 1, 1))
    plan = plan_of(model, first_last_bits=None, overrides={"short": {"act_bits": 7}})
    assert bits(plan)["x"] == 7


def test_what_is_skipped_stays_float(plan_of):
    plan = plan_of(tiny_cnn(), skip=["stem", "he*"])
    assert list(plan.layers) == ["left", "right"]
    assert "image" not in plan.activations


def test_integers_are_not_quantized(plan_of):
    model = network(
        """(float[N,4] x, int64[N,2] index) => (float[N,2] y) {
          [fc] a = Gemm(x, w)
          [both] i = Add(index, index)
          [pick] b = GatherElements<axis=1>(a, i)
          [out] y = Gemm(b, v)
        }""",
        w=(4, 4), v=(2, 2),
    )  # fmt: skip
    assert set(plan_of(model).activations) == {"x", "b"}


def test_a_shape_of_the_input_makes_no_layer_the_first(tmp_path):
    model = network(
        """(float[N,4] x) => (float[M,4] y) {
          [first] a = Gemm(x, w1)
          [middle] b = Gemm(a, w2)
          [size] s = Shape(x)
          [view] c = Reshape(b, s)
          [second] d = Gemm(c, w3)
          [last] y = Gemm(d, w4)
        }""",
        w1=(4, 4), w2=(4, 4), w3=(4, 4), w4=(4, 4),
    )  # fmt: skip
    plan = make_plan(load(saved(model, tmp_path)), rules=RULES["ort"], **WIDTHS)
    assert [layer.spec.bits for layer in plan.layers.values()] == [8, 4, 4, 8]


def test_the_plan_is_in_topological_order(tmp_path, shared_file):
    model = load(shared_file("resnet20_cifar10.onnx"))
    plan = make_plan(model, rules=RULES["ort"], **WIDTHS)
    assert list(plan.layers) == [node_name(node) for node in layers_of(model)]
    order = [name_of(v) for v in (*model.graph.inputs, *(v for node in model.graph for v in node.outputs))]
    assert list(plan.activations) == [name for name in order if name in plan.activations]
    assert sorted({layer.spec.bits for layer in plan.layers.values()}) == [4, 8]
    assert sum(layer.spec.bits == 8 for layer in plan.layers.values()) == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"platform": "trt", "weight_symmetric": False}, "trt takes only symmetric weights"),
        ({"platform": "trt", "overrides": {"left": {"weight_symmetric": False}}}, "trt takes only symmetric weights"),
        ({"overrides": {"lefd": {"weight_bits": 4}}}, "precision.overrides 'lefd'.*left"),
        ({"overrides": {"relu1": {"weight_bits": 4}}}, "precision.overrides 'relu1'.*stem, left, right, head"),
        ({"skip": ["conv*"]}, "precision.skip 'conv\\*'.*stem"),
    ],
)
def test_what_cannot_be_is_refused(plan_of, settings, message):
    with pytest.raises(UserError, match=message):
        plan_of(tiny_cnn(), **settings)
