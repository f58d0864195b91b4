import math

import numpy as np
import pytest

from dipo.quant.entropy import divergences, entropy_range
from dipo.quant.observers import NUM_BINS, Statistics
from dipo.quant.spec import QuantSpec

HALF = NUM_BINS // 2
S8 = QuantSpec(8, signed=True, symmetric=True)
S4 = QuantSpec(4, signed=True, symmetric=True)
S8N = QuantSpec(8, signed=True, symmetric=True, narrow=True)
U4 = QuantSpec(4, signed=False, symmetric=False)
U8 = QuantSpec(8, signed=False, symmetric=False)


def levels_of(num_bins, levels):
    return [bin_ * levels // num_bins for bin_ in range(num_bins)]


def published(bins, start, stop, levels):
    """The divergence of one candidate, one step after the other."""
    p = [float(count) for count in bins[start:stop]]
    q = list(p)
    p[-1] += sum(bins[stop:])
    p[0] += sum(bins[:start])
    level = levels_of(len(q), levels)
    expanded = [0.0] * len(q)
    for each in range(levels):
        members = [j for j in range(len(q)) if level[j] == each]
        occupied = [j for j in members if q[j] != 0]
        for j in occupied:
            expanded[j] = sum(q[k] for k in members) / len(occupied)
    if 2 * sum(q) < sum(p):
        return math.inf
    sum_p, sum_q = sum(p), sum(expanded)
    divergence = 0.0
    for j in range(len(p)):
        if p[j] > 0:
            if expanded[j] == 0:
                return math.inf
            divergence += p[j] / sum_p * math.log((p[j] / sum_p) / (expanded[j] / sum_q))
    return divergence


def histogram(kind, seed, size=90):
    """Counts, with gaps in the tail."""
    rng = np.random.default_rng(seed)
    scale = {"laplace": size / 8, "narrow": size / 30, "uniform": 0}[kind]
    x = rng.exponential(scale, 3000) if scale else rng.uniform(0, size, 3000)
    return np.bincount(np.clip(x, 0, size - 1).astype(int), minlength=size).astype(np.float64)


def statistics(below, above, width_exponent=-3):
    """Counts outwards from zero on either side."""
    bins = np.zeros(NUM_BINS, np.int64)
    bins[HALF : HALF + len(above)] = above
    bins[HALF - len(below) : HALF] = below[::-1]
    width = 2.0**width_exponent
    far = [np.flatnonzero(side)[-1] + 1 if np.any(side) else 0 for side in (below, above)]
    low, high = (-float(far[0]) * width, float(far[1]) * width - width / 4)
    return Statistics(int(bins.sum()), low, max(high, 0.0), width_exponent, bins)


KINDS = [("laplace", 0), ("laplace", 1), ("narrow", 2), ("uniform", 3)]


@pytest.mark.parametrize(("kind", "seed"), KINDS)
@pytest.mark.parametrize("levels", [5, 8, 16])
def test_divergences_are_those_of_the_published_steps(kind, seed, levels):
    bins = histogram(kind, seed)
    windows = [(a, b) for a in range(0, 30, 7) for b in range(a + levels, len(bins) + 1)]
    starts, stops = np.array(windows).T
    found = divergences(bins, starts, stops, levels)
    expected = [published(bins, a, b, levels) for a, b in windows]
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)
    assert np.isfinite(found).sum() > 20


def slow_one_sided(bins, levels, width):
    bins = [bins[1], *bins[1:]]
    used = max(j for j, count in enumerate(bins) if count) + 1
    candidates = {m: published(bins, 0, m, levels) for m in range(levels, used + 1)}
    return (min(candidates, key=candidates.get) + 0.5) * width


@pytest.mark.parametrize(("kind", "seed"), KINDS)
@pytest.mark.parametrize(("spec", "levels"), [(S4, 8), (U4, 16)])
def test_one_sided_data(kind, seed, spec, levels):
    bins = histogram(kind, seed)
    bins[0] += 4000  # what a ReLU leaves
    stats = statistics([], bins)
    assert spec.num_steps + 1 == levels
    expected = min(slow_one_sided(bins, levels, stats.width), stats.max)
    found = entropy_range(stats, spec)
    assert (found.min, found.max) == (0, expected)
    mirrored = entropy_range(statistics(bins, []), spec)
    assert (mirrored.min, mirrored.max) == (
        -min(slow_one_sided(bins, levels, stats.width), stats.max + stats.width / 4),
        0,
    )


@pytest.mark.parametrize(("kind", "seed"), KINDS)
def test_two_sided_data_on_a_symmetric_grid_is_folded(kind, seed):
    below, above = histogram(kind, seed, size=60), histogram(kind, seed + 10)
    stats = statistics(below, above)
    folded = above.copy()
    folded[: len(below)] += below
    clip = slow_one_sided(folded, 8, stats.width)
    found = entropy_range(stats, S4)
    assert (found.min, found.max) == (max(-clip, stats.min), min(clip, stats.max))


@pytest.mark.parametrize(("kind", "seed"), KINDS)
def test_two_sided_data_on_an_asymmetric_grid_has_all_levels_between_both_ends(kind, seed):
    below, above = histogram(kind, seed, size=25), histogram(kind, seed + 10)
    stats = statistics(below, above)
    bins = [*below[::-1], *above]
    zero = len(below)
    bins[zero] = bins[zero + 1]
    first, last = (next(j for j in order if bins[j]) for order in (range(len(bins)), range(len(bins) - 1, -1, -1)))
    candidates = {}
    for reach in range(1, max(zero - first, last + 1 - zero) + 1):
        start, stop = max(first, zero - reach), min(last + 1, zero + reach)
        if stop - start >= 16:
            candidates[reach] = published(bins, start, stop, 16)
    clip = (min(candidates, key=candidates.get) + 0.5) * stats.width
    found = entropy_range(stats, U4)
    assert (found.min, found.max) == (max(-clip, stats.min), min(clip, stats.max))


def test_a_grid_finer_than_the_histogram_clips_nothing():
    stats = statistics([], histogram("laplace", 0))
    for spec in (S8, U8, QuantSpec(16, signed=False, symmetric=False)):
        assert entropy_range(stats, spec).max == stats.max


def test_an_outlier_is_clipped():
    bins = np.concatenate([histogram("uniform", 5, size=300), np.zeros(1500)])
    bins[-1] = 1
    assert entropy_range(statistics([], bins), S8N).max < 400 * 2.0**-3


def test_data_far_from_zero_is_not_clipped_into_one_bin():
    bins = np.concatenate([np.zeros(1000), histogram("uniform", 6, size=400)])
    assert entropy_range(statistics([], bins), U8).max > 1150 * 2.0**-3


@pytest.mark.parametrize("position", [0, 1, 100, HALF - 1])
@pytest.mark.parametrize("spec", [S4, U4, S8, U8], ids=str)
def test_one_occupied_bin(position, spec):
    bins = np.zeros(HALF)
    bins[position] = 10
    for stats in (statistics([], bins), statistics(bins, [])):
        found = entropy_range(stats, spec)
        assert (found.min, found.max) == (min(stats.min, 0), max(stats.max, 0))
