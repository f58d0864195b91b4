"""A network on the grids of another target."""

import dataclasses
import math

import numpy as np
import pytest
from platform_networks import RANGES, platform_case, quantize_all, small_network

from dipo.errors import UserError
from dipo.export.requantize import differences, requantize
from dipo.export.targets import TARGETS
from dipo.graph.plan import QuantizedModel, make_plan
from dipo.recipe import CalibConfig, PrecisionConfig

PAIRS = [(own, other) for own in ("ort", "trt", "snpe", "imx") for other in TARGETS if own != other]


def plan_of(model, platform, **precision):
    return make_plan(model, TARGETS[platform].spec, PrecisionConfig(**precision))


def moved(own, other, *, other_precision=None, **precision):
    """The small network, quantized for one target, on the grids of another; what it was, and the other's plan."""
    model, quantized = platform_case(TARGETS[own].spec, **precision)
    plan = plan_of(model, other, **(other_precision or {}))
    found = requantize(model, quantized, plan=plan, ranges=RANGES, cfg=CalibConfig(), target=other)
    return quantized, found, plan


@pytest.mark.parametrize(("own", "other"), PAIRS)
def test_everything_is_on_the_other_grid(own, other):
    _, found, plan = moved(own, other)
    assert found.quantized.layers.keys() == plan.layers.keys()
    assert found.quantized.activations.keys() == plan.activations.keys() | plan.aliases.keys()
    specs = {name: layer.spec for name, layer in plan.layers.items()} | plan.activations
    grids = {name: layer.qparams for name, layer in found.quantized.layers.items()} | found.quantized.activations
    for name, spec in specs.items():
        grid = grids[name]
        assert (grid.qmin, grid.qmax) == (spec.qmin, spec.qmax)
        assert not spec.symmetric or (grid.zero_point == spec.middle).all()
        assert spec.per_channel or grid.axis is None
        assert not spec.power_of_two or (np.frexp(grid.scale)[0] == 0.5).all()
    for layer in found.quantized.layers.values():
        assert layer.qparams.qmin <= layer.codes.min() and layer.codes.max() <= layer.qparams.qmax


@pytest.mark.parametrize(
    ("own", "other", "precision", "other_precision"),
    [
        ("ort", "qnn", {}, {}),
        ("ort", "magicmind", {}, {}),
        ("snpe", "rv", {}, {}),
        ("imx", "ort", {}, {}),
        ("ort", "trt", {"weight_bits": 4, "weight_symmetric": False, "first_last_bits": None}, {}),
        ("ort", "qnn", {"weight_bits": 4, "weight_symmetric": False, "first_last_bits": None}, {}),
        ("stpu", "ort", {}, {}),
    ],
)
def test_weights_that_the_other_grid_has_stay_number_by_number(own, other, precision, other_precision):
    before, found, _ = moved(own, other, other_precision=other_precision, **precision)
    assert not found.weights
    for name, layer in found.quantized.layers.items():
        np.testing.assert_array_equal(layer.weight, before.layers[name].weight)
        np.testing.assert_array_equal(layer.bias, before.layers[name].bias)


def test_a_weight_with_one_scale_is_rounded_once_more_and_its_loss_is_told():
    before, found, plan = moved("ort", "snpe")
    assert found.weights.keys() == plan.layers.keys()
    for name, sqnr in found.weights.items():
        weight, after = before.layers[name].weight.astype(float), found.quantized.layers[name].weight
        assert sqnr == pytest.approx(10 * math.log10((weight**2).sum() / ((weight - after) ** 2).sum()))
        assert 30 < sqnr < 60
        step = float(found.quantized.layers[name].qparams.scale)
        assert np.abs(weight - after).max() < 3 * step


def test_zeros_stay_zeros():
    model, quantized = platform_case(TARGETS["ort"].spec)
    layer = quantized.layers["conv1"]
    sparse = dataclasses.replace(
        layer, codes=np.where(np.arange(layer.codes.size).reshape(layer.codes.shape) % 2, layer.codes, 0)
    )
    quantized = QuantizedModel({**quantized.layers, "conv1": sparse}, quantized.activations)
    for other in ("snpe", "ti", "imx"):
        found = requantize(model, quantized, plan=plan_of(model, other), ranges=RANGES, cfg=CalibConfig(), target=other)
        assert not found.quantized.layers["conv1"].weight[sparse.weight == 0].any()


def test_activations_keep_their_ranges():
    before, found, plan = moved("ort", "trt")
    for name in plan.activations:
        old, new = before.activations[name], found.quantized.activations[name]
        reach = max(abs(float((code - old.zero_point) * old.scale)) for code in (old.qmin, old.qmax))
        assert float(new.scale) * 127 == pytest.approx(reach)
        assert found.activations[name] == "range"


def test_a_grid_that_only_counts_otherwise_is_kept():
    before, found, plan = moved("ort", "atlas")
    assert set(found.activations.values()) == {"kept"}
    for name in plan.activations:
        assert found.quantized.activations[name].scale == before.activations[name].scale
        assert found.quantized.activations[name].zero_point == before.activations[name].zero_point - 128


def test_a_symmetric_range_of_what_is_never_negative_begins_at_zero():
    before, found, _ = moved("trt", "snpe")
    grid = found.quantized.activations["r1"]
    assert grid.zero_point == 0
    assert float(grid.scale) * 255 == pytest.approx(float(before.activations["r1"].scale) * 127)


def test_what_was_float_takes_its_range_from_the_statistics_and_all_that_lack_one_are_named():
    _, found, plan = moved("trt", "snpe")
    assert found.activations["y"] == "statistics"
    model, quantized = platform_case(TARGETS["trt"].spec)
    with pytest.raises(UserError, match=r"^platform=snpe: no range for tensors c2, p1, p2, y, and the target"):
        requantize(model, quantized, plan=plan, ranges={"z": RANGES["z"]}, cfg=CalibConfig(), target="snpe")


def test_layers_that_were_float_are_rounded_to_nearest():
    model = small_network()
    own, other = plan_of(model, "ort", skip=["fc"]), plan_of(model, "qnn")
    quantized = quantize_all(model, own, RANGES)
    found = requantize(model, quantized, plan=other, ranges=RANGES, cfg=CalibConfig(weights="minmax"), target="qnn")
    expected = quantize_all(model, other, RANGES).layers["fc"]
    np.testing.assert_array_equal(found.quantized.layers["fc"].codes, expected.codes)
    assert found.weights.keys() == {"fc"}


def test_differences_are_told_in_words():
    model = small_network()
    told = differences(plan_of(model, "ort"), plan_of(model, "imx"))
    assert "3 of 3 weights: scales that are powers of two, not any scales" in told
    assert any(text.endswith("activations: symmetric, not asymmetric") for text in told)
    assert told[-1].startswith("values quantized besides: ")
    assert differences(plan_of(model, "ort"), plan_of(model, "ort")) == []
    four = plan_of(model, "ort", weight_bits=4, first_last_bits=None)
    assert "3 of 3 weights: 8 bits, not 4" in differences(four, plan_of(model, "qnn"))


def test_codes_far_from_zero_do_not_take_a_zero_point_beyond_the_other_grid():
    model, quantized = platform_case(TARGETS["ort"].spec, weight_symmetric=False)
    layers = {}
    for name, layer in quantized.layers.items():
        qparams = dataclasses.replace(layer.qparams, zero_point=np.full_like(layer.qparams.zero_point, 255))
        layers[name] = dataclasses.replace(layer, codes=np.zeros_like(layer.codes), qparams=qparams)
    quantized = QuantizedModel(layers, quantized.activations)
    plan = plan_of(model, "ort", weight_bits=4, first_last_bits=None)
    found = requantize(model, quantized, plan=plan, ranges=RANGES, cfg=CalibConfig(), target="other")
    for layer in found.quantized.layers.values():
        assert layer.qparams.zero_point.max() <= layer.qparams.qmax == 15
