import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dipo.quant.bias import quantize_bias
from dipo.quant.spec import QParams


def grid(scale, *, power_of_two=False):
    zeros = np.zeros(np.shape(scale), np.int32)
    axis = 0 if np.ndim(scale) else None
    return QParams(np.asarray(scale, np.float32), zeros, -128, 127, axis, power_of_two=power_of_two)


def test_halves_go_to_even():
    quantized = quantize_bias(
        np.array([0.5, 1.5, 2.5, -0.5, -1.5], np.float32), input_scale=np.float32(2), weight=grid(np.float32(0.5))
    )
    np.testing.assert_array_equal(quantized.codes, [0, 2, 2, 0, -2])
    assert quantized.qparams.axis is None


def test_scale_is_the_accumulators_for_each_channel():
    quantized = quantize_bias(
        np.ones(3, np.float32), input_scale=np.float32(0.1), weight=grid(np.array([0.01, 0.02, 0.04], np.float32))
    )
    np.testing.assert_array_equal(quantized.codes, [1000, 500, 250])
    np.testing.assert_allclose(quantized.qparams.scale, [0.001, 0.002, 0.004], rtol=1e-6)
    assert quantized.qparams.scale.dtype == np.float32
    assert quantized.qparams.axis == 0


def test_groups_of_a_transposed_convolution_share_the_scales_of_one_group():
    quantized = quantize_bias(
        np.ones(4, np.float32), input_scale=np.float32(1), weight=grid(np.array([0.5, 0.25], np.float32))
    )
    np.testing.assert_array_equal(quantized.codes, [2, 4, 2, 4])


@pytest.mark.parametrize("tiny", [1e-12, 1e-45])
def test_scale_of_a_dead_channel_is_raised_until_its_bias_fits(tiny):
    weight_scale = np.array([0.1, tiny], np.float32)
    quantized = quantize_bias(np.array([3, -3], np.float32), input_scale=np.float32(1e-2), weight=grid(weight_scale))
    np.testing.assert_allclose(quantized.codes, [3000, -(2**30)], rtol=1e-6)
    np.testing.assert_allclose(quantized.values, [3, -3], rtol=1e-6)
    assert quantized.weight_scale[0] == weight_scale[0]
    np.testing.assert_array_equal(quantized.qparams.scale, np.float32(1e-2) * quantized.weight_scale)


def test_scale_of_a_whole_weight_is_raised_for_the_largest_bias():
    quantized = quantize_bias(np.array([1, -4], np.float32), input_scale=np.float32(1), weight=grid(np.float32(1e-20)))
    np.testing.assert_array_equal(quantized.codes, [2**28, -(2**30)])
    assert quantized.weight_scale == np.float32(2**-28)


def test_dead_channel_without_bias_has_no_code():
    quantized = quantize_bias(np.zeros(1, np.float32), input_scale=np.float32(1e-9), weight=grid(np.float32([1e-45])))
    np.testing.assert_array_equal(quantized.codes, [0])
    np.testing.assert_array_equal(quantized.weight_scale, np.float32([1e-45]))


def test_raised_scale_is_the_same_in_every_group():
    quantized = quantize_bias(
        np.array([1, 1, 2, 1], np.float32), input_scale=np.float32(1), weight=grid(np.array([1e-20, 0.5], np.float32))
    )
    np.testing.assert_array_equal(quantized.codes, [2**29, 2, 2**30, 2])
    assert quantized.weight_scale.shape == (2,)


def test_a_raised_scale_stays_a_power_of_two_where_scales_are():
    weight = grid([2.0**-40, 0.25], power_of_two=True)
    quantized = quantize_bias(np.array([3, 1], np.float32), input_scale=np.float32(0.5), weight=weight)
    mantissas, _ = np.frexp(quantized.weight_scale)
    np.testing.assert_array_equal(mantissas, 0.5)
    np.testing.assert_array_equal(quantized.values, [3, 1])


@given(
    bias=hnp.arrays(np.float32, 4, elements=st.floats(-1000, 1000, width=32)),
    input_scale=st.floats(2**-10, 2, width=32),
    weight_scale=hnp.arrays(np.float32, 4, elements=st.floats(2**-8, 1, width=32)),
)
def test_values_are_within_half_a_step(bias, input_scale, weight_scale):
    quantized = quantize_bias(bias, input_scale=np.float32(input_scale), weight=grid(weight_scale))
    step = np.float64(input_scale) * weight_scale
    assert (np.abs(quantized.values.astype(np.float64) - bias) <= step / 2 + 1e-6 * np.abs(bias)).all()
