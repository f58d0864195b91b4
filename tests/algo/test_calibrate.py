import functools
import itertools

import numpy as np
import onnx_ir as ir
import pytest
import torch
from networks import network, saved

from dipo.algo.activation_cache import cut
from dipo.algo.calibrate import Observed, activation_ranges, observe, quantize_model
from dipo.algo.diagnostics import diagnose
from dipo.algo.held_out import held_out_samples
from dipo.algo.tables import with_tables
from dipo.errors import UserError
from dipo.export.targets import TARGETS
from dipo.graph.load import load
from dipo.graph.plan import make_plan
from dipo.quant.range_methods import RANGE_METHODS
from dipo.quant.ranges import WEIGHT_METHODS
from dipo.recipe import CalibConfig, PrecisionConfig

METHODS = [name for name, method in RANGE_METHODS.items() if method.reads_statistics]


def test_any_sharding_gives_bit_identical_statistics_and_means(make_case):
    case = make_case(num=43, batch_size=4)
    batches = case.batches
    shards = [batches[:1], batches[1:4], batches[4:]]
    for order in itertools.permutations(shards):
        merged = functools.reduce(Observed.merge, [case.observe(shard) for shard in order])
        assert merged.statistics.keys() == case.plan.activations.keys()
        for name, stats in case.observed.statistics.items():
            assert stats.same_as(merged.statistics[name]), name
        for name, means in case.observed.calibration().channel_means.items():
            assert len(means.to_array()) == 3
            assert np.array_equal(means.to_array(), merged.calibration().channel_means[name].to_array())


def test_no_sample_is_dropped(make_case):
    case = make_case(num=43, batch_size=8)
    assert [len(batch) for batch in case.batches] == [8, 8, 8, 8, 8, 3]
    assert case.observed.statistics["input"].count == 43 * 3 * 8 * 8


def test_channel_means_are_those_of_the_layer_outputs(make_case):
    case = make_case()
    weight, bias = (case.model.graph.initializers[name].const_value.numpy() for name in ("w0", "b0"))
    import torch

    outputs = torch.nn.functional.conv2d(case.samples, torch.tensor(weight), torch.tensor(bias), padding=1).numpy()
    means, held = case.observed.calibration().channel_means["stem"], list(held_out_samples(len(outputs)))
    np.testing.assert_allclose(means.every, outputs.mean((0, 2, 3)), atol=1e-6)
    np.testing.assert_allclose(means.held_out, outputs[held].mean((0, 2, 3)), atol=1e-6)
    np.testing.assert_allclose(means.fitted, np.delete(outputs, held, 0).mean((0, 2, 3)), atol=1e-6)


def test_weights_are_rounded_to_the_nearest_code(make_case):
    case = make_case()
    layer = case.quantized.layers["left"]
    weight = case.model.graph.initializers["w1"].const_value.numpy()
    scale, zero = layer.qparams.broadcast_to(4)
    inside = (weight / scale + zero > layer.qparams.qmin) & (weight / scale + zero < layer.qparams.qmax)
    assert inside.mean() > 0.8
    assert np.all(np.abs(layer.weight - weight)[inside] <= (np.broadcast_to(scale, weight.shape) * 0.5001)[inside])
    assert len(np.unique(layer.codes)) <= 16


def test_an_activation_that_is_not_finite_is_named(make_case):
    case = make_case()
    case.samples[3] = float("nan")
    with pytest.raises(UserError, match="NaN"):
        case.observe(case.batches)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_gives_every_activation_a_range(make_case, method):
    case = make_case()
    found = activation_ranges(case.plan, case.observed.statistics, cfg=CalibConfig(method=method))
    assert found.keys() == case.plan.activations.keys()
    for name, range_ in found.items():
        seen = case.observed.statistics[name]
        assert min(seen.min, 0) <= range_.min <= 0 <= range_.max <= max(seen.max, 0)


def test_weights_are_clipped_where_a_percentile_is_asked_for(make_case):
    case = make_case(weight_bits=8)
    cfg = CalibConfig(weights="percentile", weight_percentile=90.0)
    ranges = activation_ranges(case.plan, case.observed.statistics, cfg=cfg)
    layer = quantize_model(case.model, plan=case.plan, ranges=ranges, cfg=cfg).layers["left"]
    weight = case.model.graph.initializers["w1"].const_value.numpy()
    clipped = np.abs(weight).reshape(8, -1) > layer.qparams.scale[:, None] * 127.5
    assert (clipped.sum(axis=1) == 7).all(), "of 72 weights 90 % are kept"


def test_odd_networks_are_quantized_and_reported(make_case):
    case = make_case(weight_bits=8, act_bits=8)
    assert diagnose(case.model, case.plan, case.observed.statistics) == []
    zeros = np.zeros((8, 8, 3, 3), np.float32)
    some = case.model.graph.initializers["w2"].const_value.numpy().copy()
    some[[1, 5]] = 0
    for name, array in (("w1", zeros), ("w2", some), ("b1", np.full(8, 0.5, np.float32))):
        case.model.graph.initializers[name].const_value = ir.tensor(array, name=name)
    seen = case.observe(case.batches).statistics
    assert [(odd.name, odd.what) for odd in diagnose(case.model, case.plan, seen)] == [
        ("left", "its weight is all zero"),
        ("right", "2 of its 8 channels have no weight but zero"),
        ("r1", "it is 0.5 everywhere, on all samples"),
    ]
    assert [odd.name for odd in diagnose(case.model, case.plan, {})] == ["left", "right"]
    for method, weights in itertools.product(METHODS, WEIGHT_METHODS):
        cfg = CalibConfig(method=method, weights=weights)
        quantized = quantize_model(
            case.model, plan=case.plan, ranges=activation_ranges(case.plan, seen, cfg=cfg), cfg=cfg
        )
        assert not quantized.layers["left"].weight.any()
        assert not quantized.layers["right"].weight[[1, 5]].any()
        constant = quantized.activations["r1"]
        assert (round(0.5 / float(constant.scale)) + constant.zero_point) <= constant.qmax
        assert round(0.5 / float(constant.scale)) * constant.scale == pytest.approx(0.5, rel=0.02)
        for qparams in (*quantized.activations.values(), *(layer.qparams for layer in quantized.layers.values())):
            assert np.isfinite(qparams.scale).all() and (qparams.scale > 0).all()


def test_no_more_than_a_batch_has_to_be_held(make_case, monkeypatch):
    from dipo.algo import in_flight

    case = make_case(num=24, batch_size=8)
    monkeypatch.setattr(in_flight, "BYTES_IN_FLIGHT", 1)
    held = case.observe(case.batches)
    for name, stats in case.observed.statistics.items():
        assert stats.same_as(held.statistics[name]), name
    for name, mean in case.observed.calibration().channel_means.items():
        assert np.array_equal(mean.every, held.calibration().channel_means[name].every)


def test_what_is_read_from_a_table_has_the_range_of_the_table(tmp_path):
    model = load(saved(network(
        """(int64[N,2] words) => (float[N,2,3] y) {
          a = Gather(table, words)
          y = MatMul(a, w)
        }""",
        table=np.array([[1, 2, 3], [-4, 0, 1], [9, -7, 2]], np.float32), w=(3, 3),
    ), tmp_path))  # fmt: skip
    plan = make_plan(model, TARGETS["ort"].spec, PrecisionConfig())
    words = torch.zeros(4, 2, dtype=torch.int64)
    seen = observe(model, plan=plan, batches=cut(4, 4), inputs=lambda _: {"words": words}, device=torch.device("cpu"))
    before, after = seen.calibration(), with_tables(seen.calibration(), model)
    assert (before.statistics["a"].min, before.statistics["a"].max) == (1, 3)
    assert (after.statistics["a"].min, after.statistics["a"].max) == (-7, 9)
    assert after.statistics["a"].count == 4 * 2 * 3 + 9
