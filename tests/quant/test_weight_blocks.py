"""Scales for blocks of a weight, against loops over the blocks."""

from dataclasses import replace

import numpy as np
import pytest

from dipo.quant.ranges import WEIGHT_METHODS, weight_qparams
from dipo.quant.spec import Blocks, QuantSpec, qparams_between

S4 = QuantSpec(4, signed=True, symmetric=True, per_channel=True)
U4 = QuantSpec(4, signed=False, symmetric=False, per_channel=True)
WEIGHTS = {"conv": ((6, 20, 3, 2), 0), "transB": ((5, 33), 0), "gemm": ((33, 5), 1), "matmul": ((2, 12, 7), 2)}
INPUTS = {"conv": 1, "transB": 1, "gemm": 0, "matmul": 1}


def random(name):
    shape, axis = WEIGHTS[name]
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32), axis, INPUTS[name]


def in_blocks(array, axis, size):
    """The runs of every line along the axis."""
    lines = np.moveaxis(array, axis, -1).reshape(-1, array.shape[axis])
    return [line[start : start + size] for line in lines for start in range(0, len(line), size)]


def error(weight, qparams):
    scale, zero = qparams.broadcast_to(weight.ndim)
    codes = np.clip(np.rint(weight / scale) + zero, qparams.qmin, qparams.qmax)
    return float(np.sum(((codes - zero) * scale - weight.astype(np.float64)) ** 2))


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("spec", [S4, U4], ids=["symmetric", "asymmetric"])
def test_minmax_scales_are_those_of_the_formula(name, spec):
    weight, axis, along = random(name)
    found = weight_qparams(weight, replace(spec, block=8), axis=axis, method="minmax")
    count = -(-weight.shape[along] // 8)
    assert found.scale.shape == found.zero_point.shape == (*weight.shape[:along], count, *weight.shape[along + 1 :])
    assert found.blocks == Blocks(8, along, weight.shape[along]) and found.axis == axis
    scale, zero = found.broadcast_to(weight.ndim)
    assert scale.shape == zero.shape == weight.shape
    for block, scales, zeros in zip(
        in_blocks(weight, along, 8), in_blocks(scale, along, 8), in_blocks(zero, along, 8), strict=True
    ):
        low, high = min(block.min(), 0), max(block.max(), 0)
        expected = np.float32(max(-low, high) / 7 if spec.symmetric else (np.float64(high) - low) / 15)
        np.testing.assert_allclose(scales, expected, rtol=1e-6)
        np.testing.assert_array_equal(zeros, 0 if spec.symmetric else np.clip(np.rint(-low / expected), 0, 15))


@pytest.mark.parametrize("method", WEIGHT_METHODS)
@pytest.mark.parametrize("name", WEIGHTS)
def test_a_block_has_the_grid_of_a_weight_of_its_own(name, method):
    weight, axis, along = random(name)
    found = weight_qparams(weight, replace(U4, block=8), axis=axis, method=method, percentile=80)
    alone = [
        weight_qparams(block, replace(U4, per_channel=False), axis=0, method=method, percentile=80)
        for block in in_blocks(weight, along, 8)
    ]
    for mine, name_of_part in ((found.scale, "scale"), (found.zero_point, "zero_point")):
        own = np.moveaxis(mine, along, -1).reshape(-1)
        np.testing.assert_array_equal(own, [getattr(grid, name_of_part) for grid in alone])


@pytest.mark.parametrize("spec", [S4, U4], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize("name", WEIGHTS)
def test_blocks_lose_less_than_channels(name, spec):
    weight, axis, _ = random(name)
    for method in ("minmax", "mse"):
        of_channels = weight_qparams(weight, spec, axis=axis, method=method)
        of_blocks = weight_qparams(weight, replace(spec, block=4), axis=axis, method=method)
        assert error(weight, of_blocks) < error(weight, of_channels)


def test_scales_that_are_powers_of_two_stay_so():
    weight, axis, _ = random("gemm")
    found = weight_qparams(weight, replace(S4, block=16, power_of_two=True), axis=axis, method="mse")
    assert found.power_of_two and np.all(np.frexp(found.scale)[0] == 0.5)


def test_factors_go_to_the_channels():
    weight, axis, _ = random("gemm")
    found = weight_qparams(weight, replace(S4, block=16), axis=axis, method="minmax")
    factors = np.arange(1, 6)
    np.testing.assert_array_equal(found.scaled(factors), found.scale * factors[None, :])
    assert found.num_channels == 5
    whole = qparams_between(weight.min(0), weight.max(0), S4, axis=1)
    np.testing.assert_array_equal(whole.scaled(factors), whole.scale * factors)
    assert whole.num_channels == 5
