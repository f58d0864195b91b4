import functools
import itertools

import numpy as np
import pytest

from dipo.algo.calibrate import Observed
from dipo.errors import UserError


def test_any_sharding_gives_bit_identical_statistics_and_means(make_case):
    case = make_case(num=43, batch_size=4)
    batches = case.batches
    shards = [batches[:1], batches[1:4], batches[4:]]
    for order in itertools.permutations(shards):
        merged = functools.reduce(Observed.merge, [case.observe(shard) for shard in order])
        assert merged.statistics.keys() == case.plan.activations.keys()
        for name, stats in case.observed.statistics.items():
            assert stats.same_as(merged.statistics[name]), name
        for name, mean in case.observed.calibration().channel_means.items():
            assert np.array_equal(mean, merged.calibration().channel_means[name])


def test_no_sample_is_dropped(make_case):
    case = make_case(num=43, batch_size=8)
    assert [len(batch) for batch in case.batches] == [8, 8, 8, 8, 8, 3]
    assert case.observed.statistics["input"].count == 43 * 3 * 8 * 8


def test_channel_means_are_those_of_the_layer_outputs(make_case):
    case = make_case()
    weight, bias = (case.model.graph.initializers[name].const_value.numpy() for name in ("w0", "b0"))
    import torch

    expected = torch.nn.functional.conv2d(case.samples, torch.tensor(weight), torch.tensor(bias), padding=1).mean(
        (0, 2, 3)
    )
    np.testing.assert_allclose(case.observed.calibration().channel_means["stem"], expected, atol=1e-6)


def test_weights_are_rounded_to_the_nearest_code(make_case):
    case = make_case()
    layer = case.quantized.layers["left"]
    weight = case.model.graph.initializers["w1"].const_value.numpy()
    scale, zero = layer.qparams.along(4)
    inside = (weight / scale + zero > layer.qparams.qmin) & (weight / scale + zero < layer.qparams.qmax)
    assert inside.mean() > 0.8
    assert np.all(np.abs(layer.weight - weight)[inside] <= (np.broadcast_to(scale, weight.shape) * 0.5001)[inside])
    assert len(np.unique(layer.codes)) <= 16


def test_an_activation_that_is_not_finite_is_named(make_case):
    case = make_case()
    case.samples[3] = float("nan")
    with pytest.raises(UserError, match="NaN"):
        case.observe(case.batches)
