from dataclasses import replace

import numpy as np
import pytest
from networks import network, saved, tiny_cnn

from dipo.errors import UserError
from dipo.export.targets import TARGETS
from dipo.graph.accessors import name_of
from dipo.graph.layers import layers_of
from dipo.graph.load import load
from dipo.graph.plan import Plan, QuantizedLayer, make_plan
from dipo.quant.ranges import weight_qparams
from dipo.quant.spec import QParams, Range
from dipo.recipe import PrecisionConfig

WIDTHS = {"weight_bits": 4, "act_bits": 4}


@pytest.fixture
def plan_of(tmp_path):
    def plan(model, *, platform: str = "ort", **settings) -> Plan:
        loaded = load(saved(model, tmp_path))
        return make_plan(loaded, TARGETS[platform].spec, PrecisionConfig(**{**WIDTHS, **settings}))

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
    assert plan.aliases == {"e": "b"}
    assert "e" not in plan.activations
    assert plan.activations["b"].bits == 4


def test_padding_with_a_number_that_the_grid_may_lack_needs_a_scale_of_its_own(plan_of):
    plan = plan_of(network(PASSED_THROUGH, fill=np.float32(3), **SLICED))
    assert plan.aliases == {}
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
    loaded_name = plan.aliases.get("c", "c")
    assert plan.activations[loaded_name].bits == 4


def test_layers_know_the_quantized_value_that_they_read(tmp_path):
    text = PASSED_THROUGH.replace("Conv(f, w3)", "Conv(e, w3)").replace(" y)", " y, float[N,4,4,4] f)")
    model = load(saved(network(text, fill=np.float32(0), **SLICED), tmp_path))
    plan = make_plan(model, TARGETS["ort"].spec, PrecisionConfig(weight_bits=8, act_bits=8))
    inputs = {layer.name: plan.input_of(layer.node) for layer in layers_of(model)}
    assert inputs == {"first": "x", "middle": "b", "last": "b"}
    skipped = make_plan(model, TARGETS["ort"].spec, PrecisionConfig(weight_bits=8, act_bits=8, skip=["first"]))
    assert skipped.input_of(next(layers_of(model)).node) is None


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


def test_a_shape_of_the_input_makes_no_layer_the_first(plan_of):
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
    plan = plan_of(model)
    assert [layer.spec.bits for layer in plan.layers.values()] == [8, 4, 4, 8]


def test_the_plan_is_in_topological_order(tmp_path, shared_file):
    model = load(shared_file("resnet20_cifar10.onnx"))
    plan = make_plan(model, TARGETS["ort"].spec, PrecisionConfig(**WIDTHS))
    assert list(plan.layers) == [layer.name for layer in layers_of(model)]
    order = [name_of(v) for v in (*model.graph.inputs, *(v for node in model.graph for v in node.outputs))]
    assert list(plan.activations) == [name for name in order if name in plan.activations]
    assert sorted({layer.spec.bits for layer in plan.layers.values()}) == [4, 8]
    assert sum(layer.spec.bits == 8 for layer in plan.layers.values()) == 2


def test_schemes_reach_every_grid(plan_of):
    plan = plan_of(tiny_cnn(), weight_narrow=True, act_signed=True, act_symmetric=True, power_of_two=True)
    for layer in plan.layers.values():
        assert layer.spec.narrow and layer.spec.power_of_two
    for spec in plan.activations.values():
        assert spec.signed and spec.symmetric and spec.power_of_two and not spec.narrow


def test_schemes_are_the_platforms_where_nothing_is_asked(plan_of):
    for platform, signed in (("ort", False), ("trt", True)):
        plan = plan_of(tiny_cnn(), platform=platform)
        specs = [*plan.activations.values(), *(layer.spec for layer in plan.layers.values())]
        assert not any(spec.narrow or spec.power_of_two for spec in specs)
        assert all(spec.signed == spec.symmetric == signed for spec in plan.activations.values())


def test_trt_takes_narrow_weights_and_what_it_has_anyway(plan_of):
    plan = plan_of(tiny_cnn(), platform="trt", weight_narrow=True, act_signed=True, act_symmetric=True)
    assert {(layer.spec.qmin, layer.spec.qmax) for layer in plan.layers.values()} == {(-127, 127), (-7, 7)}


def test_a_platform_may_want_narrow_weights_and_powers_of_two(tmp_path):
    rules = replace(TARGETS["ort"].spec, weight_narrow=True, power_of_two=True)
    model = load(saved(tiny_cnn(), tmp_path))
    plan = make_plan(model, rules, PrecisionConfig(**WIDTHS))
    assert all(layer.spec.narrow and layer.spec.power_of_two for layer in plan.layers.values())
    assert all(spec.power_of_two for spec in plan.activations.values())
    with pytest.raises(UserError, match="weight_narrow: platform ort takes only narrow weights"):
        make_plan(model, rules, PrecisionConfig(weight_narrow=False, **WIDTHS))
    with pytest.raises(UserError, match="power_of_two: platform ort takes only scales that are powers of two"):
        make_plan(model, rules, PrecisionConfig(power_of_two=False, **WIDTHS))


def test_overrides_narrow_a_layer(plan_of):
    plan = plan_of(tiny_cnn(), overrides={"left": {"weight_narrow": True}})
    assert [name for name, layer in plan.layers.items() if layer.spec.narrow] == ["left"]


@pytest.mark.parametrize("platform", ["ort", "trt"])
@pytest.mark.parametrize("placement", ["input", "output"])
def test_nothing_is_quantized_between_a_layer_and_its_activation_function(plan_of, platform, placement):
    plan = plan_of(tiny_cnn(), platform=platform, placement=placement)
    quantized = {*plan.activations, *plan.aliases}
    assert {"image", "b", "d", "h"} <= quantized
    assert not quantized & {"a", "c", "f"}, "a Relu alone reads them"
    assert "scores" not in quantized, "a network's output stays float"
    assert ("e" in quantized) == (platform == "ort"), "part of the sum's kernel in TensorRT"


BEHIND = """(float[N,4,8,8] x) => (float[N,4] y) {
  [first] a = Conv(x, w1)
  [clip] b = Clip(a, low, high)
  [pool] c = MaxPool<kernel_shape=[2,2],strides=[2,2]>(b)
  [second] d = Conv(c, w2)
  [swish] e = HardSwish(d)
  [normal] f = Softmax(e)
  [third] g = Conv(f, w3)
  [mean] h = GlobalAveragePool(g)
  [flat] i = Flatten(h)
  [last] j = Gemm(i, w4)
  [soft] y = Softmax(j)
}"""
BEHIND_WEIGHTS = {
    "w1": (4, 4, 1, 1), "w2": (4, 4, 1, 1), "w3": (4, 4, 1, 1), "w4": (4, 4), "low": np.float32(0),
    "high": np.float32(6),
}  # fmt: skip


def test_activations_are_quantized_where_they_are_read(plan_of):
    plan = plan_of(network(BEHIND, **BEHIND_WEIGHTS))
    assert set(plan.activations) == {"x", "c", "f", "g", "i"}
    assert plan.aliases == {}


def test_functions_between_two_numbers_have_a_fixed_range_where_the_target_has_it(plan_of):
    model = network(BEHIND, **BEHIND_WEIGHTS)
    free, fixed = (plan_of(model, platform=name, weight_bits=8, act_bits=8).activations for name in ("ort", "qnn"))
    assert not any(spec.fixed for spec in free.values())
    assert {name: spec.fixed for name, spec in fixed.items() if spec.fixed} == dict.fromkeys("fy", Range(0, 255 / 256))


def test_activations_are_quantized_behind_what_makes_them(plan_of):
    plan = plan_of(network(BEHIND, **BEHIND_WEIGHTS), placement="output")
    assert set(plan.activations) == {"x", "b", "e", "f", "g", "h", "j"}
    assert plan.aliases == {"c": "b", "i": "h"}
    assert plan.activations["b"].bits == 4, "as wide as the layer behind the pooling wants it"
    assert plan.activations["e"].bits == 8


@pytest.mark.parametrize(
    ("platform", "cut"), [("qnn", True), ("rk", True), ("ti", True), ("ort", False), ("trt", False)]
)
def test_a_layer_that_is_read_in_pieces_has_a_grid_of_its_own_where_all_is_quantized(plan_of, platform, cut):
    model = network(
        """(float[N,4,8,8] x) => (float[N,6,64] y) {
          [head] a = Conv(x, w1)
          [flat] b = Reshape(a, rows)
          [part] c, d = Split<axis=1>(b, sizes)
          [gate] e = Sigmoid(c)
          [join] y = Concat<axis=1>(e, d)
        }""",
        w1=(6, 4, 1, 1), rows=np.array([-1, 6, 64]), sizes=np.array([2, 4]),
    )  # fmt: skip
    plan = plan_of(model, platform=platform, weight_bits=8, act_bits=8)
    assert ("a" in plan.activations) is cut


def test_an_activation_function_that_the_target_quantizes_is_an_operator_of_its_own(plan_of):
    text = """(float[N,4,8,8] x) => (float[N,4,8,8] y) {
      [first] a = Conv(x, w1)
      [gate] b = Sigmoid(a)
      [last] y = Conv(b, w2)
    }"""
    model = network(text, w1=(4, 4, 1, 1), w2=(4, 4, 1, 1))
    assert set(plan_of(model, placement="output").activations) == {"x", "a", "b"}
    assert set(plan_of(model, placement="output", platform="trt").activations) == {"x", "b"}


def test_what_is_skipped_is_not_quantized_behind(plan_of):
    model = network(BEHIND, **BEHIND_WEIGHTS)
    plan = plan_of(model, placement="output", skip=["last", "first"])
    assert {"x", "j", "b"} & set(plan.activations) == set()
    assert "c" in plan.activations


AXES = {
    "gemm": ("(float[N,6] x) => (float[N,4] y) { [layer] y = Gemm(x, w) }", (6, 4), 1),
    "gemm transB": ("(float[N,6] x) => (float[N,4] y) { [layer] y = Gemm<transB=1>(x, w) }", (4, 6), 0),
    "matmul": ("(float[N,6] x) => (float[N,4] y) { [layer] y = MatMul(x, w) }", (6, 4), 1),
    "conv": ("(float[N,6,5,5] x) => (float[N,4,3,3] y) { [layer] y = Conv(x, w) }", (4, 6, 3, 3), 0),
    "grouped": ("(float[N,6,5,5] x) => (float[N,4,3,3] y) { [layer] y = Conv<group=2>(x, w) }", (4, 3, 3, 3), 0),
    "depthwise": ("(float[N,6,5,5] x) => (float[N,6,3,3] y) { [layer] y = Conv<group=6>(x, w) }", (6, 1, 3, 3), 0),
    "1d": ("(float[N,6,5] x) => (float[N,4,3] y) { [layer] y = Conv(x, w) }", (4, 6, 3), 0),
    "transposed": ("(float[N,6,5,5] x) => (float[N,4,7,7] y) { [layer] y = ConvTranspose(x, w) }", (6, 4, 3, 3), 1),
    "transposed, grouped": (
        "(float[N,6,5,5] x) => (float[N,4,7,7] y) { [layer] y = ConvTranspose<group=2>(x, w) }", (6, 2, 3, 3), 1,
    ),
}  # fmt: skip


@pytest.mark.parametrize("method", ["minmax", "percentile", "mse"])
@pytest.mark.parametrize(("text", "shape", "axis"), AXES.values(), ids=AXES)
def test_a_weights_scales_are_those_of_its_output_channels(tmp_path, text, shape, axis, method):
    model = load(saved(network(text, w=shape), tmp_path))
    layer = make_plan(model, TARGETS["ort"].spec, PrecisionConfig(weight_bits=8, act_bits=8)).layers["layer"]
    weight = next(layers_of(model)).array
    assert (layer.axis, weight.shape) == (axis, shape)
    found = weight_qparams(weight, layer.spec, axis=layer.axis, method=method)
    assert found.scale.shape == (shape[axis],)
    one = replace(layer.spec, per_channel=False)
    rows = [weight_qparams(np.take(weight, [i], axis), one, axis=axis, method=method) for i in range(shape[axis])]
    np.testing.assert_array_equal(found.scale, [row.scale for row in rows])
    per_tensor = weight_qparams(weight, one, axis=layer.axis, method="minmax")
    assert per_tensor.scale == np.float32(np.abs(weight).max() / 127)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"platform": "trt", "weight_symmetric": False}, "trt takes only symmetric weights"),
        ({"platform": "trt", "overrides": {"left": {"weight_symmetric": False}}}, "trt takes only symmetric weights"),
        ({"platform": "trt", "act_signed": False}, "precision.act_signed: platform trt takes only signed activations"),
        ({"platform": "trt", "act_symmetric": False}, "act_symmetric: platform trt takes only symmetric activations"),
        ({"overrides": {"lefd": {"weight_bits": 4}}}, "precision.overrides 'lefd'.*left"),
        ({"overrides": {"relu1": {"weight_bits": 4}}}, "precision.overrides 'relu1'.*stem, left, right, head"),
        ({"skip": ["conv*"]}, "precision.skip 'conv\\*'.*stem"),
    ],
)
def test_what_cannot_be_is_refused(plan_of, settings, message):
    with pytest.raises(UserError, match=message):
        plan_of(tiny_cnn(), **settings)


def test_a_layer_is_rounded_to_a_larger_scale_and_kept_on_its_own():
    qparams = QParams(np.float32([0.5, 0.25]), np.int32([0, 1]), -8, 7, 0)
    layer = QuantizedLayer(np.int32([[3, -8], [5, 1]]), qparams, None)
    assert layer.with_scale(qparams.scale) is layer
    larger = layer.with_scale(np.float32([1.0, 0.25]))
    np.testing.assert_array_equal(larger.weight, [[2.0, -4.0], [1.0, 0.0]])
    np.testing.assert_array_equal(larger.codes, [[2, -4], [5, 1]])


def test_layers_around_a_residual_sum_are_neither_first_nor_last(plan_of):
    """A transformer's residual sums lead past every layer; its layers are nevertheless in the middle."""
    model = network(
        """(float[N,4] x) => (float[N,4] y) {
          [up] a = Gemm(x, w1)
          [relu1] r = Relu(a)
          [down] b = Gemm(r, w2)
          [sum1] s = Add(x, b)
          [up2] c = Gemm(s, w3)
          [relu2] t = Relu(c)
          [down2] d = Gemm(t, w4)
          [sum2] y = Add(s, d)
        }""",
        w1=(4, 4), w2=(4, 4), w3=(4, 4), w4=(4, 4),
    )  # fmt: skip
    plan = plan_of(model)
    assert {name: layer.spec.bits for name, layer in plan.layers.items()} == {"up": 8, "down": 4, "up2": 4, "down2": 8}


GELU = """(float[N,4] x) => (float[N,4] y, float[N,4] z) {
  [first] a = MatMul(x, w1)
  b = Add(a, bias)
  c = Div(b, root)
  d = Erf(c)
  e = Add(d, one)
  f = Mul(b, e)
  g = Mul(f, half)
  [second] h = MatMul(g, w2)
  y = Add(h, x)
  z = Mul(y, h)
}"""
GELU_WEIGHTS = {
    "w1": (4, 4),
    "w2": (4, 4),
    "bias": (4,),
    "root": np.float32(1.4),
    "one": np.float32(1),
    "half": np.float32(0.5),
}


def test_a_function_with_a_piece_that_has_no_integer_kernel_is_not_rounded_within(plan_of):
    """What only leads to outputs or to float kernels stays float too: an integer kernel ends on codes."""
    assert set(plan_of(network(GELU, **GELU_WEIGHTS)).activations) == {"x", "g"}
    assert set(plan_of(network(GELU, **GELU_WEIGHTS), platform="qnn").activations) > {"x", "b", "d", "e", "f", "g"}


def test_a_sum_whose_result_is_read_by_a_layer_has_codes_on_both_sides(plan_of):
    model = network(
        """(float[N,4] x) => (float[N,4] y) {
          a = MatMul(x, w1)
          b = Add(a, x)
          c = Reshape(b, shape)
          y = MatMul(c, w2)
        }""",
        w1=(4, 4),
        w2=(4, 4),
        shape=np.array([-1, 4]),
    )
    assert {"x", "a", "c"} <= set(plan_of(model).activations) | set(plan_of(model).aliases)
