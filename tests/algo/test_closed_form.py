"""The solver against brute force, a literal transcription of GPTQ, and degenerate sums."""

import itertools

import numpy as np
import pytest
import torch

from dipo.algo.closed_form import Grids, Sums, damped, descend, least_squares, round_columns


def sums_of(q, t):
    """H, C and the power of t, from what is read [G, n, D] and what should come [G, n, O]."""
    q, t = (torch.as_tensor(each, dtype=torch.float64) for each in (q, t))
    ones = torch.cat([q, torch.ones_like(q[..., :1])], 2)
    return Sums(q.shape[1], ones.mT @ ones, ones.mT @ t, t.square().sum(1))


def problem(seed=0, *, groups=1, rows=40, width=5, outputs=3, noise=0.3):
    """Correlated inputs; targets from other inputs than those that are read."""
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(groups, rows, width)) @ rng.normal(size=(groups, width, width)) + 0.5
    weight = rng.normal(size=(groups, width + 1, outputs))
    target = mixed @ weight[:, :-1] + weight[:, -1:]
    read = mixed + noise * rng.normal(size=mixed.shape)
    return read, target, torch.tensor(weight)


def grids(weight, *, bits=2):
    """Grids that reach from about the least to the largest weight of each row."""
    own = weight[:, :-1]
    scale = (own.amax(1, keepdim=True) - own.amin(1, keepdim=True)) / (2**bits - 1)
    low = (own.amin(1, keepdim=True) / scale).round()
    return Grids(*(each.expand_as(own).clone() for each in (scale, low, low + 2**bits - 1)))


def error_of(metric, best, weight):
    gap = best - weight
    return (gap * (metric @ gap)).sum(1)


def metric_of(sums, *, damping=0.0):
    return damped(sums.gram, torch.full((len(sums.gram),), damping, dtype=torch.float64))


def gptq_as_written(weight, hessian, scale, low, high):
    """Algorithm 1 of arXiv:2210.17323 for a row: the inverse Hessian's Cholesky factor, a column at a time."""
    inverse = np.linalg.cholesky(np.linalg.inv(hessian)).T
    weight = weight.copy()
    for j in range(len(low)):
        q = np.clip(np.round(weight[j] / scale[j]), low[j], high[j]) * scale[j]
        err = (weight[j] - q) / inverse[j, j]
        weight[j:] -= err * inverse[j, j:]
        weight[j] = q
    return weight


def test_the_error_is_that_of_the_outputs():
    read, target, weight = problem(groups=2)
    sums = sums_of(read, target)
    off = weight + 0.1
    outputs = torch.tensor(read) @ off[:, :-1] + off[:, -1:]
    expected = (outputs - torch.tensor(target)).square().sum(1)
    torch.testing.assert_close(sums.error(off), expected)
    torch.testing.assert_close(sums.error(torch.stack([off, off])), torch.stack([expected, expected]))


@pytest.mark.parametrize("damping", [1e-6, 0.1])
def test_least_squares_against_numpy(damping):
    """Least squares with the distance from the float weights as further rows."""
    read, target, weight = problem(groups=2)
    sums = sums_of(read, target)
    metric = metric_of(sums, damping=damping)
    found = least_squares(weight, sums, metric)
    for group in range(2):
        extra = (metric - sums.gram)[group].diagonal().sqrt().diag().numpy()
        a = np.concatenate([np.c_[read[group], np.ones(len(read[group]))], extra])
        b = np.concatenate([target[group], extra @ weight[group].numpy()])
        np.testing.assert_allclose(found[group].numpy(), np.linalg.lstsq(a, b, rcond=None)[0], rtol=1e-6, atol=1e-8)


def test_several_dampings_at_once_are_those_one_by_one():
    read, target, weight = problem(groups=3)
    sums = sums_of(read, target)
    strength = torch.tensor([0.01, 1.0], dtype=torch.float64)
    metric = damped(sums.gram.repeat(2, 1, 1), strength.repeat_interleave(3))
    both = least_squares(weight, sums, metric).view(2, 3, *weight.shape[1:])
    for one, damping in zip(both, strength, strict=True):
        torch.testing.assert_close(one, least_squares(weight, sums, metric_of(sums, damping=float(damping))))


@pytest.mark.parametrize("width", [2, 5, 70, 150])
def test_columns_are_rounded_as_gptq_writes_it(width):
    """Also where it takes several blocks of columns; the bias is a last column that is not rounded."""
    read, target, weight = problem(groups=2, rows=3 * width + 9, width=width)
    sums = sums_of(read, target)
    metric, own = metric_of(sums, damping=0.01), grids(weight, bits=3)
    found = round_columns(weight, metric, own)
    for group, row in itertools.product(range(2), range(3)):
        numbers = (each[group, :, row].numpy() for each in (own.scale, own.low, own.high))
        expected = gptq_as_written(weight[group, :, row].numpy(), metric[group].numpy(), *numbers)
        np.testing.assert_allclose(found[group, :, row].numpy(), expected, rtol=1e-9, atol=1e-9)


def test_act_order_takes_the_strongest_input_first():
    read, target, weight = problem(groups=2)
    sums = sums_of(read, target)
    metric, own = metric_of(sums, damping=0.01), grids(weight)
    found = round_columns(weight, metric, own, act_order=True)
    for group, row in itertools.product(range(2), range(3)):
        order = np.argsort(-metric[group].diagonal()[:-1].numpy())
        whole = np.r_[order, len(order)]
        numbers = (each[group, :, row].numpy()[order] for each in (own.scale, own.low, own.high))
        turned = metric[group].numpy()[np.ix_(whole, whole)]
        expected = gptq_as_written(weight[group, :, row].numpy()[whole], turned, *numbers)
        np.testing.assert_allclose(found[group, :, row].numpy()[whole], expected, rtol=1e-9, atol=1e-9)


def best_of_all(metric, best, own, row):
    """The least error over all codes of a row, with the bias that each wants."""
    scale, low, high = (each[0, :, row].numpy() for each in (own.scale, own.low, own.high))
    matrix, target, least = metric[0].numpy(), best[0, :, row].numpy(), np.inf
    for levels in itertools.product(*(np.arange(a, b + 1) for a, b in zip(low, high, strict=True))):
        gap = np.r_[target[:-1] - np.array(levels) * scale, 0.0]
        gap[-1] = -(matrix[-1, :-1] @ gap[:-1]) / matrix[-1, -1]
        least = min(least, gap @ matrix @ gap)
    return least


def test_against_brute_force():
    """Never better than the best of all codes, which many rows reach; never worse than where it began."""
    reached = []
    for seed in range(5):
        read, target, weight = problem(seed)
        sums = sums_of(read, target)
        metric, own = metric_of(sums, damping=0.01), grids(weight)
        best = least_squares(weight, sums, metric)
        started = round_columns(best, metric, own)
        found, at_rest = descend(best, started, metric, own, sweeps=20)
        nearest = torch.cat([own.nearest(best[:, :-1]), best[:, -1:]], 1)
        errors, before, rounded = (error_of(metric, best, each)[0] for each in (found, started, nearest))
        least = torch.tensor([best_of_all(metric, best, own, row) for row in range(3)], dtype=torch.float64)
        assert at_rest
        assert (errors >= least * (1 - 1e-9)).all()
        assert (errors <= before * (1 + 1e-9)).all()
        assert errors.sum() < rounded.sum()
        reached += torch.isclose(errors, least).tolist()
    assert np.mean(reached) > 0.4


@pytest.mark.parametrize("width", [5, 70])
@pytest.mark.parametrize("seed", range(3))
def test_descent_ends_where_no_single_change_helps(seed, width):
    read, target, weight = problem(seed, groups=2, width=width, rows=3 * width + 9)
    sums = sums_of(read, target)
    metric, own = metric_of(sums, damping=0.01), grids(weight)
    start = torch.cat([own.nearest(weight[:, :-1]), weight[:, -1:]], 1)
    found, at_rest = descend(weight, start, metric, own, sweeps=100)
    assert at_rest
    least = error_of(metric, weight, found)
    levels = (found[:, :-1] / own.scale).round()
    assert (levels >= own.low).all() and (levels <= own.high).all()
    for column in range(width):
        for move in (-1, 1):
            other = levels.clone()
            other[:, column] = (other[:, column] + move).clamp(own.low[:, column], own.high[:, column])
            changed = torch.cat([other * own.scale, found[:, -1:]], 1)
            assert (error_of(metric, weight, changed) >= least * (1 - 1e-9)).all()


def test_pruned_weights_stay_zero():
    read, target, weight = problem(groups=2)
    sums = sums_of(read, target)
    metric, own = metric_of(sums, damping=0.01), grids(weight, bits=4)
    kept = (torch.arange(5) % 2)[None, :, None].double().expand_as(own.low)
    own = Grids(own.scale, own.low * kept, own.high * kept)
    found, _ = descend(weight, round_columns(weight, metric, own), metric, own, sweeps=5)
    assert (found[:, :-1][kept == 0] == 0).all()
    assert (found[:, :-1][kept == 1] != 0).any()


DEGENERATE = {
    "dead": lambda q: q * (np.arange(q.shape[2]) != 1),
    "all dead": lambda q: q * 0,
    "dead group": lambda q: q * np.array([0, 1])[:, None, None],
    "constant": lambda q: np.where(np.arange(q.shape[2]) == 2, 3.0, q),
    "rank one": lambda q: q[:, :, :1] * np.arange(1.0, q.shape[2] + 1),
    "one row": lambda q: q[:, :1],
    "equal columns": lambda q: np.repeat(q[:, :, :1], q.shape[2], 2),
    "tiny": lambda q: q * 1e-18,
    "huge": lambda q: q * 1e12,
}


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("kind", DEGENERATE)
def test_degenerate_inputs(kind, has_bias):
    """All numbers stay finite and on their grids, and what nothing reads keeps its weight, or its bias."""
    read, _, weight = problem(groups=2)
    if not has_bias:
        weight[:, -1] = 0
    read = DEGENERATE[kind](read)
    target = read @ weight[:, :-1].numpy() + weight[:, -1:].numpy()
    sums = sums_of(read, target)
    sums = sums if has_bias else sums.without_bias()
    metric, own = metric_of(sums, damping=0.003), grids(weight, bits=4)
    best = least_squares(weight, sums, metric)
    found, _ = descend(best, round_columns(best, metric, own), metric, own, sweeps=8)
    assert torch.isfinite(found).all()
    # Of tiny inputs, and of a bias beside huge ones, the targets say nothing.
    known = {"tiny": slice(5, 6), "huge": slice(0, 5)}.get(kind, slice(0, 6))
    torch.testing.assert_close(best[:, known], weight[:, known], rtol=1e-6, atol=1e-6)
    levels = found[:, :-1] / own.scale
    assert (levels - levels.round()).abs().max() < 1e-9
    nearest = torch.cat([own.nearest(best[:, :-1]), best[:, -1:]], 1)
    assert error_of(metric, best, found).sum() <= error_of(metric, best, nearest).sum() * (1 + 1e-6)
    if kind == "dead":
        assert torch.equal(found[:, 1], own.nearest(weight[:, :-1])[:, 1])
    assert has_bias or not found[:, -1].any()
