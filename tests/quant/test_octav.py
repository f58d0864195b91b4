import numpy as np
import pytest
import torch

from dipo.quant.observers import Observer
from dipo.quant.octav import octav_range
from dipo.quant.spec import QuantSpec, Range, qparams_of

RNG = np.random.default_rng(0)
NORMAL = RNG.standard_normal(30_000).astype(np.float32)
TWO_SIDED = {
    "normal": NORMAL,
    "laplace": RNG.laplace(size=30_000).astype(np.float32),
    "shifted": NORMAL + 1,
    "heavy": NORMAL * np.abs(NORMAL),
    "lopsided": np.where(NORMAL < 0, NORMAL * 0.2, NORMAL),
}
ONE_SIDED = {
    "relu": np.maximum(NORMAL, 0),
    "sparse": np.where(RNG.random(30_000) < 0.9, 0, np.abs(NORMAL)),
    "relu6": np.clip(4 * NORMAL, 0, 6),
    "positive": np.abs(NORMAL),
    "exponential": RNG.exponential(size=30_000),
}


def statistics(x):
    observer = Observer("x")
    observer.update(torch.from_numpy(np.ascontiguousarray(x, np.float32)))
    return observer.result()


def error(x, range_, spec):
    q = qparams_of(range_, spec)
    codes = np.clip(np.rint(x / q.scale) + q.zero_point, q.qmin, q.qmax)
    return float(np.mean(((codes - q.zero_point) * q.scale - x.astype(np.float64)) ** 2))


def best_by_force(x, spec):
    """The least error over many clips."""
    low, high = min(float(x.min()), 0), max(float(x.max()), 0)
    factors = np.concatenate([2.0 ** -np.arange(0, 6, 1 / 8), [0.0]])
    if spec.symmetric or low == 0 or high == 0:
        limit = max(-low, high)
        ranges = [Range(max(low, -limit * f), min(high, limit * f)) for f in factors[:-1]]
    else:
        ranges = [Range(low * a, high * b) for a in factors[::2] for b in factors[::2] if a or b]
    return min(error(x, each, spec) for each in ranges)


@pytest.mark.parametrize("bits", [3, 4, 6, 8])
@pytest.mark.parametrize("x", [*TWO_SIDED.values(), *ONE_SIDED.values()], ids=[*TWO_SIDED, *ONE_SIDED])
def test_symmetric_clips_are_as_good_as_brute_force(x, bits):
    spec = QuantSpec(bits, signed=True, symmetric=True)
    found = octav_range(statistics(x), spec)
    # The model takes rounding noise as uniform: wrong by some per cent where grids are coarse.
    assert error(x, found, spec) <= best_by_force(x, spec) * (1.1 if bits < 4 else 1.03)


@pytest.mark.parametrize("bits", [3, 4, 6, 8])
@pytest.mark.parametrize("x", [*TWO_SIDED.values(), *ONE_SIDED.values()], ids=[*TWO_SIDED, *ONE_SIDED])
def test_asymmetric_clips_are_as_good_as_brute_force(x, bits):
    spec = QuantSpec(bits, signed=False, symmetric=False)
    found = octav_range(statistics(x[:6000]), spec)
    assert error(x[:6000], found, spec) <= best_by_force(x[:6000], spec) * 1.1


def test_the_published_iteration_on_the_data_itself():
    """The fixed point of equation 6 for |x| of a grid of 2^B steps between both clips."""
    x = np.abs(TWO_SIDED["laplace"]).astype(np.float64)
    spec = QuantSpec(4, signed=True, symmetric=True)
    clip = x.mean()
    for _ in range(50):
        inside, outside = (x <= clip) & (x > 0), x > clip
        clip = x[outside].sum() / (inside.sum() / (12 * spec.num_steps**2) + outside.sum())
    found = octav_range(statistics(TWO_SIDED["laplace"]), spec)
    assert found.max == pytest.approx(clip, rel=0.02)


def test_mirrored_data_has_the_mirrored_range():
    spec = QuantSpec(4, signed=False, symmetric=False)
    found, mirrored = (octav_range(statistics(x), spec) for x in (ONE_SIDED["exponential"], -ONE_SIDED["exponential"]))
    assert mirrored.max == 0
    assert -mirrored.min == pytest.approx(found.max, rel=0.01)


@pytest.mark.parametrize("bits", [2, 8, 16])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("value", [3.0, -3.0, 1e-30, 3e38, 1e-44])
def test_one_occupied_bin(value, bits, symmetric):
    value = float(np.float32(value))
    found = octav_range(statistics(np.full(7, value)), QuantSpec(bits, signed=symmetric, symmetric=symmetric))
    assert np.isfinite([found.min, found.max]).all()
    assert min(value, 0) <= found.min <= 0 <= found.max <= max(value, 0)
    assert max(-found.min, found.max) >= 0.98 * abs(value)


def test_two_heaps_far_apart():
    """Stationary points at either: the better is taken."""
    x = np.concatenate([NORMAL * 0.01, np.full(3000, 5.0)])
    spec = QuantSpec(4, signed=True, symmetric=True)
    assert octav_range(statistics(x), spec).max > 4.5
