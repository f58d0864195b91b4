"""Channel means of fitted and of held-out samples, wherever these lie."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dipo.algo.activation_cache import Batch
from dipo.algo.channel_means import ChannelMeans, split_sums
from dipo.graph.sample_axis import FIRST, SampleAxis

HELD = (3, 5, 12)


@pytest.mark.parametrize(
    ("axis", "shape"),
    [
        (FIRST, (8, 5)),
        (FIRST, (8, 5, 3, 2)),
        (SampleAxis(0, 1, 4), (32, 5)),
        (SampleAxis(0, 4, 1), (32, 5)),
        (SampleAxis(2), (4, 5, 8)),
    ],
)
def test_means_go_by_sample_wherever_samples_lie(axis, shape):
    value = torch.from_numpy(np.random.default_rng(0).normal(size=shape).astype(np.float32))
    means = ChannelMeans.of(split_sums(value, Batch(0, 2, 10), HELD, axis=axis).numpy())
    channels = 1 + (axis.axis == 0 and axis.rows > 1)
    by_sample = axis.by_sample(value.numpy())
    # Of [samples, ..., C, ...] the channels come first; rows of one sample stand in front of them.
    flat = np.moveaxis(by_sample, 2 if axis.axis == 2 else channels, 1).reshape(8, 5, -1)
    spared, others = [1, 3], [0, 2, 4, 5, 6, 7]
    np.testing.assert_allclose(means.every, flat.mean((0, 2)), atol=1e-6)
    np.testing.assert_allclose(means.held_out, flat[spared].mean((0, 2)), atol=1e-6)
    np.testing.assert_allclose(means.fitted, flat[others].mean((0, 2)), atol=1e-6)
    again = ChannelMeans.from_array(means.to_array())
    assert all(np.array_equal(a, b) for a, b in zip(again.to_array(), means.to_array(), strict=True))


@pytest.mark.parametrize("axis", [None, FIRST])
def test_where_none_is_held_out_all_are_fitted(axis):
    value = torch.arange(12.0).view(4, 3)
    held = HELD if axis is None else ()
    means = ChannelMeans.of(split_sums(value, Batch(0, 2, 6), held, axis=axis).numpy())
    assert means.held_out is None
    assert np.array_equal(means.fitted, means.every)
    assert ChannelMeans.from_array(means.to_array()).held_out is None
