from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dipo.errors import UserError
from dipo.quant.observers import Observer, Statistics
from dipo.quant.range_methods import RANGE_METHODS
from dipo.quant.ranges import WEIGHT_METHODS, activation_range, weight_qparams
from dipo.quant.spec import QuantSpec, Range, qparams_between, qparams_of

U8 = QuantSpec(8, signed=False, symmetric=False)
U4 = QuantSpec(4, signed=False, symmetric=False)
U2 = QuantSpec(2, signed=False, symmetric=False)
U16 = QuantSpec(16, signed=False, symmetric=False)
S8A = QuantSpec(8, signed=True, symmetric=False)
S8 = QuantSpec(8, signed=True, symmetric=True)
S4 = QuantSpec(4, signed=True, symmetric=True)
U8S = QuantSpec(8, signed=False, symmetric=True)
S8N = replace(S8, narrow=True)
U8N = replace(U8, narrow=True)
U8SN = replace(U8S, narrow=True)
S8P = replace(S8, power_of_two=True)
U8P = replace(U8, power_of_two=True)
SPECS = [U2, U4, U8, U16, S8A, S4, S8, U8S, S8N, U8N]

NORMAL = np.random.default_rng(0).standard_normal(20_000).astype(np.float32)
DATA = {
    "normal": NORMAL,
    "shifted": NORMAL + np.float32(1.5),
    "relu": np.maximum(NORMAL, 0),
    "relu6": np.clip(4 * NORMAL, 0, 6),
    "negative": np.minimum(NORMAL, 0),
    "silu": NORMAL * 2 / (1 + np.exp(-2 * NORMAL)),
    "laplace": NORMAL * np.abs(NORMAL),
    "outlier": np.append(NORMAL, np.float32(80)),
    "far from zero": NORMAL * np.float32(0.1) + 5,
}

METHODS = [name for name, method in RANGE_METHODS.items() if method.reads_statistics]


def statistics(x):
    observer = Observer("x")
    observer.update(torch.from_numpy(np.ascontiguousarray(x, np.float32)))
    return observer.result()


def quantize(x, q):
    """QuantizeLinear, then DequantizeLinear."""
    scale, zero_point = q.broadcast_to(x.ndim)
    codes = np.clip(np.rint(x / scale) + zero_point, q.qmin, q.qmax)
    return ((codes - zero_point) * scale).astype(np.float32)


def mean_error(x, q):
    return float(np.mean((quantize(x, q) - x.astype(np.float64)) ** 2))


def mean_square(x, range_, spec):
    return mean_error(x, qparams_of(range_, spec))


@pytest.mark.parametrize("x", DATA.values(), ids=DATA)
def test_minmax_is_what_was_seen_with_zero(x):
    found = activation_range(statistics(x), U8, method="minmax")
    assert found == Range(min(float(x.min()), 0.0), max(float(x.max()), 0.0))


@pytest.mark.parametrize("percentile", [100, 99.99, 99, 90, 50])
@pytest.mark.parametrize("x", DATA.values(), ids=DATA)
def test_percentile_is_numpys_within_a_bin(x, percentile):
    stats = statistics(x)
    found = activation_range(stats, U8, method="percentile", percentile=percentile)
    tail = (100 - percentile) / (2 if x.min() < 0 < x.max() else 1)
    low = np.percentile(x, tail, method="inverted_cdf") if x.min() < 0 else 0
    high = np.percentile(x, 100 - tail, method="inverted_cdf") if x.max() > 0 else 0
    assert min(low, 0) - stats.width <= found.min <= min(low, 0) + stats.width
    assert max(high, 0) - stats.width <= found.max <= max(high, 0) + stats.width
    assert np.mean((x >= found.min) & (x <= found.max)) >= percentile / 100 - 1e-9


def test_percentile_leaves_out_exactly_what_it_may():
    x = np.arange(1, 1001, dtype=np.float32)
    stats = statistics(x)
    assert activation_range(stats, U8, method="percentile", percentile=99.9).max == 999.5
    assert activation_range(stats, U8, method="percentile", percentile=99.95).max == 1000


def brute_force(x, spec):
    """The least error of a dense list of ranges, on the data itself."""
    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    factors = 2.0 ** -np.arange(0, 6, 1 / 6)
    if spec.symmetric:
        limit = max(-low, high)
        return min(mean_square(x, Range(max(low, -limit * f), min(high, limit * f)), spec) for f in factors)
    lows = factors if low < 0 else [1.0]
    highs = factors if high > 0 else [1.0]
    return min(mean_square(x, Range(low * a, high * b), spec) for a in lows for b in highs)


@pytest.mark.parametrize("spec", [U2, U4, U8, S4, U8S], ids=str)
@pytest.mark.parametrize("x", DATA.values(), ids=DATA)
def test_mse_is_as_good_as_brute_force_on_the_data(x, spec):
    x = x[-2000:]
    stats = statistics(x)
    found = activation_range(stats, spec, method="mse")
    # A bin's density is not flat: with 2000 values that is worth a few per cent where grids are fine.
    assert mean_square(x, found, spec) <= brute_force(x, spec) * 1.03


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("x", DATA.values(), ids=DATA)
def test_mse_stays_within_the_range_seen_and_is_no_worse(x, spec):
    stats = statistics(x)
    found, seen = (activation_range(stats, spec, method=method) for method in ("mse", "minmax"))
    assert seen.min <= found.min <= 0 <= found.max <= seen.max
    assert mean_square(x, found, spec) <= mean_square(x, seen, spec) * 1.005


def test_mse_keeps_the_mass_at_a_saturated_end():
    found = activation_range(statistics(DATA["relu6"]), U8, method="mse")
    assert found.max == pytest.approx(6, rel=0.01)


@pytest.mark.parametrize("value", [3.0, -3.0, 1e-30, 3e38, 1e-44, 4.0])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_a_constant_is_kept(value, method, spec):
    """All of it lies in one bin of the histogram."""
    x = np.full(10, value, np.float32)
    q = qparams_of(activation_range(statistics(x), spec, method=method), spec)
    assert np.isfinite(q.scale) and q.scale > 0
    if abs(value) > 1e-37:
        np.testing.assert_allclose(quantize(x, q), x, rtol=0.02)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("x", DATA.values(), ids=DATA)
def test_every_range_lies_within_the_one_seen(x, spec, method):
    found = activation_range(statistics(x), spec, method=method)
    assert min(x.min(), 0) <= found.min <= 0 <= found.max <= max(x.max(), 0)
    assert found.min < found.max


W8 = QuantSpec(8, signed=True, symmetric=True, per_channel=True)
POWERS = [replace(spec, power_of_two=True) for spec in SPECS]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("spec", POWERS, ids=str)
@pytest.mark.parametrize("x", [DATA[name] for name in ("relu", "laplace", "far from zero")])
def test_powers_of_two(x, spec, method):
    stats = statistics(x)
    range_ = activation_range(stats, spec, method=method)
    q = qparams_of(range_, spec)
    assert q.power_of_two and np.frexp(q.scale)[0] == 0.5
    if method in ("minmax", "percentile"):
        free = qparams_of(range_, replace(spec, power_of_two=False))
        assert free.scale <= q.scale < 2 * free.scale, "rounded up, so that nothing more is clipped"


@pytest.mark.parametrize("spec", POWERS, ids=str)
@pytest.mark.parametrize("method", ["mse", "octav"])
@pytest.mark.parametrize("x", DATA.values(), ids=DATA)
def test_the_power_of_two_with_the_least_error_is_taken(x, spec, method):
    """Of three scales, with the zero points that any lower end gives them."""
    x = x[-4000:]
    found = qparams_of(activation_range(statistics(x), spec, method=method), spec)
    error = mean_error(x, found)
    for factor in (0.5, 1, 2):
        zero_points = [found.zero_point] if spec.symmetric else np.linspace(spec.qmin, spec.qmax, 52).round()
        others = [replace(found, scale=found.scale * np.float32(factor), zero_point=np.int32(z)) for z in zero_points]
        # OCTAV's model knows no zero point: the ends that it found are what the scales are tried on.
        assert error <= min(mean_error(x, other) for other in others) * (1.03 if method == "mse" else 1.3)


@pytest.mark.parametrize("method", METHODS)
def test_all_zero_data_has_an_empty_range(method):
    assert activation_range(statistics(np.zeros(5)), U8, method=method) == Range(0.0, 0.0)


@pytest.mark.parametrize("method", METHODS)
def test_no_data_is_refused(method):
    with pytest.raises(UserError, match="relu_3: no value was observed"):
        activation_range(Statistics.empty(), U8, method=method, name="relu_3")


def test_what_does_not_exist_is_refused_with_the_choices():
    stats = statistics(NORMAL)
    with pytest.raises(UserError, match="'mes': choose from minmax, percentile, mse, kl, octav"):
        activation_range(stats, U8, method="mes")
    for percentile in (0, -1, 100.5):
        with pytest.raises(UserError, match="percentile"):
            activation_range(stats, U8, method="percentile", percentile=percentile)
    with pytest.raises(UserError, match="'kl': choose from minmax, mse, percentile"):
        weight_qparams(np.ones((2, 2), np.float32), S8, axis=0, method="kl")
    with pytest.raises(UserError, match="weight percentile 101"):
        weight_qparams(np.ones((2, 2), np.float32), S8, axis=0, method="percentile", percentile=101)


@pytest.mark.parametrize(
    ("low", "high", "spec", "scale", "zero_point"),
    [
        (0, 255, U8, 1, 0),
        (-1, 254, U8, 1, 1),
        (-255, 0, U8, 1, 255),
        (-128, 127, S8A, 1, 0),
        (0, 255, S8A, 1, -128),
        (-0.5, 1, U2, 0.5, 1),
        (5, 255, U8, 1, 0),
        (-127, 3, S8, 1, 0),
        (-3, 254, S8, 2, 0),
        (0, 127, U8S, 1, 128),
        (0, 65535, U16, 1, 0),
        (0, 0, U8, 1, 0),
        (0, 0, S8A, 1, -128),
        (0, 0, U8S, 1, 128),
        (-127, 3, S8N, 1, 0),
        (0, 254, U8N, 1, 1),
        (-254, 0, U8N, 1, 255),
        (0, 127, U8SN, 1, 128),
        (-127, 0, S8P, 1, 0),
        (-127.5, 0, S8P, 2, 0),
        (0, 3, S8P, 2**-5, 0),
        (0, 0, S8P, 1, 0),
        (-1, 254, U8P, 1, 1),
        (-1, 255, U8P, 2, 0),
        (0, 3e38, replace(S4, bits=2, power_of_two=True), 2.0**127, 0),
    ],
)
def test_qparams_by_hand(low, high, spec, scale, zero_point):
    q = qparams_of(Range(low, high), spec)
    assert (q.scale, q.zero_point) == (scale, zero_point)
    assert (q.qmin, q.qmax, q.axis) == (spec.qmin, spec.qmax, None)
    assert (q.scale.dtype, q.zero_point.dtype) == (np.float32, np.int32)
    assert q.scale.shape == q.zero_point.shape == ()


def test_qparams_of_several_ranges_are_those_of_each():
    low, high = np.array([-1.0, 0, -3]), np.array([2.0, 0, 0])
    q = qparams_between(low, high, U8, axis=1)
    assert q.axis == 1
    for i in range(3):
        one = qparams_of(Range(low[i], high[i]), U8)
        assert (q.scale[i], q.zero_point[i]) == (one.scale, one.zero_point)


@settings(max_examples=300, deadline=None)
@given(
    ends=st.tuples(*[st.floats(-(2.0**126), 2.0**126, width=32)] * 2).map(sorted),
    spec=st.sampled_from(SPECS),
)
def test_zero_and_the_range_are_representable(ends, spec):
    q = qparams_of(Range(*ends), spec)
    scale, zero_point = float(q.scale), int(q.zero_point)
    assert np.finfo(np.float32).tiny <= scale < np.inf
    assert spec.qmin <= zero_point <= spec.qmax
    assert quantize(np.zeros(1, np.float32), q) == 0
    # The zero point is rounded, so an end may lie half a step outside.
    assert (spec.qmin - zero_point - 0.51) * scale <= min(ends[0], 0)
    assert (spec.qmax - zero_point + 0.51) * scale >= max(ends[1], 0)


WEIGHT_SPECS = [
    QuantSpec(bits, signed, symmetric, per_channel)
    for bits in (2, 3, 4, 8)
    for signed, symmetric in ((True, True), (False, False))
    for per_channel in (True, False)
]
WEIGHT_SPECS += [replace(spec, narrow=True) for spec in WEIGHT_SPECS if spec.bits in (2, 8) and spec.per_channel]
WEIGHT_SPECS += [replace(spec, power_of_two=True) for spec in WEIGHT_SPECS if spec.bits in (2, 8) and not spec.narrow]


def norms(w, q, axis, norm=2.4):
    error = np.abs(quantize(w, q).astype(np.float64) - w) ** norm
    return error.sum() if q.axis is None else error.sum(axis=tuple(i for i in range(w.ndim) if i != axis))


def a_weight(shape, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(shape) * rng.uniform(0.01, 2, shape[:1] + (1,) * (len(shape) - 1))).astype(np.float32)


@pytest.mark.parametrize("spec", WEIGHT_SPECS, ids=str)
@pytest.mark.parametrize(
    ("shape", "axis"), [((8, 3, 3, 3), 0), ((5, 12), 1), ((4, 1, 3, 3), -4), ((6,), 0), ((1, 1), 0)]
)
def test_weight_mse_is_never_worse_than_minmax(shape, axis, spec):
    w = a_weight(shape)
    minmax, mse = (weight_qparams(w, spec, axis=axis, method=method) for method in ("minmax", "mse"))
    assert mse.axis == minmax.axis == (axis % w.ndim if spec.per_channel else None)
    assert mse.scale.shape == mse.zero_point.shape == ((shape[axis],) if spec.per_channel else ())
    assert (mse.scale.dtype, mse.zero_point.dtype) == (np.float32, np.int32)
    assert (norms(w, mse, axis % w.ndim) <= norms(w, minmax, axis % w.ndim) * (1 + 1e-5) + 1e-30).all()


@pytest.mark.parametrize("spec", [s for s in WEIGHT_SPECS if s.per_channel and not s.power_of_two], ids=str)
def test_weight_mse_is_as_good_as_a_dense_search(spec):
    w = a_weight((6, 40), seed=1)
    found = norms(w, weight_qparams(w, spec, axis=0, method="mse"), 0)
    start = weight_qparams(w, spec, axis=0, method="minmax")
    best = np.full(len(w), np.inf)
    codes = [start.zero_point[0]] if spec.symmetric else range(spec.qmax + 1)
    for zero_point in codes:
        for factor in np.arange(0.1, 1.2, 0.005 if spec.bits < 8 else 0.02):
            q = type(start)(
                (start.scale * factor).astype(np.float32),
                np.full_like(start.zero_point, zero_point),
                spec.qmin,
                spec.qmax,
                0,
            )
            best = np.minimum(best, norms(w, q, 0))
    assert np.mean(found / best) < 1.05


def test_weight_minmax_by_hand():
    w = np.array([[-1.27, 0.5], [0.1, 0.254], [0, 0]], np.float32)
    q = weight_qparams(w, QuantSpec(8, signed=True, symmetric=True, per_channel=True), axis=0, method="minmax")
    np.testing.assert_allclose(q.scale, [0.01, 0.002, 1], rtol=1e-6)
    assert not q.zero_point.any()


def test_weight_of_three_levels_is_kept_exactly_at_two_bits():
    w = np.float32(0.3) * np.array([[-1, 0, 1, 1, -1, 0, 1]], np.float32)
    q = weight_qparams(w, QuantSpec(2, signed=True, symmetric=True, per_channel=True), axis=0, method="mse")
    np.testing.assert_allclose(quantize(w, q), w, rtol=1e-6)


@pytest.mark.parametrize("bits", [2, 3])
def test_weight_mse_gives_up_one_outlier_for_the_rest(bits):
    w = np.append(np.linspace(0, 0.3, 40_000), -1)[None].astype(np.float32)
    spec = QuantSpec(bits, signed=False, symmetric=False, per_channel=True)
    q, minmax = (weight_qparams(w, spec, axis=0, method=method) for method in ("mse", "minmax"))
    assert q.zero_point[0] <= 1 < minmax.zero_point[0]
    assert norms(w, q, 0) < norms(w, minmax, 0)


@pytest.mark.parametrize("magnitude", [0.0, 1e-45, 1e-38, 1e-20, 1e20, 3.4e38])
@pytest.mark.parametrize("method", WEIGHT_METHODS)
@pytest.mark.parametrize("spec", WEIGHT_SPECS, ids=str)
def test_extreme_weights_give_finite_grids(spec, method, magnitude):
    w = np.array([[1, -0.5, 0.3], [0, 0, 0]], np.float32) * np.float32(magnitude)
    q = weight_qparams(w, spec, axis=0, method=method)
    assert np.isfinite(q.scale).all() and (q.scale >= np.finfo(np.float32).tiny).all()
    assert ((spec.qmin <= q.zero_point) & (q.zero_point <= spec.qmax)).all()
    if spec.per_channel:
        assert q.scale[1] == 1
    if 1e-20 <= magnitude < (1e38 if spec.power_of_two else np.inf) and spec.bits == 8:
        np.testing.assert_allclose(quantize(w, q), w, atol=magnitude / (50 if spec.power_of_two else 100))


def test_magnitude_does_not_change_the_choice():
    w = a_weight((4, 30))
    spec = QuantSpec(3, signed=False, symmetric=False, per_channel=True)
    q, tiny = (weight_qparams(w * np.float32(f), spec, axis=0, method="mse") for f in (1, 2.0**-90))
    np.testing.assert_array_equal(q.scale, tiny.scale * np.float32(2.0**90))
    np.testing.assert_array_equal(q.zero_point, tiny.zero_point)


def test_broken_weights_are_refused_by_name():
    with pytest.raises(UserError, match=r"conv1\.weight has NaN"):
        weight_qparams(np.array([[np.nan, 1]], np.float32), S8, axis=0, method="minmax", name="conv1.weight")


@pytest.mark.parametrize("spec", [s for s in WEIGHT_SPECS if s.per_channel], ids=str)
def test_weight_percentile_clips_what_it_may(spec):
    w = a_weight((5, 1000), seed=2)
    q = weight_qparams(w, spec, axis=0, method="percentile", percentile=99)
    for row, scale, zero_point in zip(w.astype(np.float64), q.scale, q.zero_point, strict=True):
        if spec.symmetric:
            expected = qparams_of(Range(0, np.sort(np.abs(row))[989]), spec)
        else:
            expected = qparams_of(Range(np.sort(row)[5], np.sort(row)[994]), spec)
        assert (scale, zero_point) == (expected.scale, expected.zero_point)


def test_weight_percentile_clips_nothing_of_short_rows():
    w = a_weight((8, 1, 3, 3))
    found, minmax = (weight_qparams(w, W8, axis=0, method=method) for method in ("percentile", "minmax"))
    np.testing.assert_array_equal(found.scale, minmax.scale)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_weight_mse_takes_the_best_power_of_two(bits, symmetric):
    w = a_weight((6, 200), seed=3)
    spec = QuantSpec(bits, symmetric, symmetric, per_channel=True, power_of_two=True)
    q = weight_qparams(w, spec, axis=0, method="mse")
    assert q.power_of_two and (np.frexp(q.scale)[0] == 0.5).all()
    for factor in (0.5, 1, 2):
        other = replace(q, scale=q.scale * np.float32(factor))
        assert (norms(w, q, 0) <= norms(w, other, 0) * (1 + 1e-5)).all()


@pytest.mark.parametrize("spec", [S8N, U8N, replace(S8, bits=2, narrow=True), replace(U4, narrow=True)], ids=str)
@pytest.mark.parametrize("method", WEIGHT_METHODS)
def test_narrow_codes_leave_out_the_smallest(spec, method):
    w = a_weight((4, 300), seed=4)
    w = np.concatenate([w, -w])
    q = weight_qparams(w, replace(spec, per_channel=True), axis=0, method=method)
    scale, zero_point = q.broadcast_to(2)
    codes = np.clip(np.rint(w / scale) + zero_point, q.qmin, q.qmax)
    whole = replace(spec, narrow=False)
    assert codes.min() == whole.qmin + 1 and codes.max() == whole.qmax
    if spec.symmetric:
        assert -q.qmin == q.qmax


@pytest.mark.parametrize("method", WEIGHT_METHODS)
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (1, 6), (3, 1)])
@pytest.mark.parametrize("spec", WEIGHT_SPECS, ids=str)
def test_layers_with_one_channel(shape, method, spec):
    w = np.full(shape, 0.3, np.float32)
    q = weight_qparams(w, spec, axis=0, method=method)
    assert q.scale.shape == ((shape[0],) if spec.per_channel else ())
    np.testing.assert_allclose(quantize(w, q), w, rtol=0.7 if spec.power_of_two else 0.01)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize(("signed", "symmetric"), [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize("low", [0, -1])
def test_a_fixed_grid_fills_the_functions_range_with_a_power_of_two(bits, signed, symmetric, low):
    spec = QuantSpec(bits, signed=signed, symmetric=symmetric).between(low)
    assert spec.fixed is not None and spec.power_of_two
    grid = qparams_of(spec.fixed, spec)
    assert float(grid.scale) == 2.0 ** -(bits if low == 0 and not symmetric else bits - 1)
    assert (grid.qmax - grid.zero_point) * float(grid.scale) == 1 - float(grid.scale)
    if not symmetric:
        assert (grid.qmin - grid.zero_point) * float(grid.scale) == low
