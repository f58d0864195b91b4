"""A unit keeps what is better on samples that its step was not fitted to."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from solving import make_bench, make_solver, make_step, solve_all

from dipo.algo.bench import InPlace
from dipo.algo.channel_means import ChannelMeans
from dipo.algo.held_out import held_out_samples
from dipo.algo.independent import CaptureValues, SolveAlone
from dipo.algo.phase import Phase
from dipo.algo.steps.bias_correction import BiasCorrection, BiasCorrectionOptions
from dipo.config import AlgoConfig

SPOILS = {"lr_bias": 1e3, "correct_bias": False}
"""Options of a training that cannot help."""


def same_layers(found, expected):
    return all(
        np.array_equal(layer.codes, expected[name].codes)
        and np.array_equal(layer.bias, expected[name].bias)
        and np.array_equal(layer.qparams.scale, expected[name].qparams.scale)
        for name, layer in found.items()
    )


@pytest.mark.parametrize("rounding", ["sigmoid", "straight_through"])
def test_nothing_is_fitted_to_held_out_samples(make_case, rounding, monkeypatch):
    """Whatever these are, the training ends with the same bits."""
    case, held = make_case(weight_bits=3, num=24), held_out_samples(24)
    monkeypatch.setattr("dipo.algo.unit_training.best_of", lambda _, solved: solved)
    samples = case.samples.clone()
    samples[list(held)] = 3 - samples[list(held)]
    cfg = AlgoConfig(iters=8, batch_size=16, rounding=rounding, correct_bias=False)
    one, other = (
        solve_all(dataclasses.replace(case, samples=its), cfg, pieces=3, held_out=held)
        for its in (case.samples, samples)
    )
    assert same_layers(one.pair.layers, other.pair.layers)
    assert not same_layers(one.pair.layers, case.quantized.layers)
    without = solve_all(case, cfg, pieces=3)
    assert not same_layers(one.pair.layers, without.pair.layers)


@pytest.mark.parametrize("spoils", [True, False])
@pytest.mark.parametrize("granularity", ["layer", "block", "network"])
def test_a_unit_that_gets_worse_is_put_back(make_case, granularity, spoils):
    case, held = make_case(weight_bits=3, correlated=True), held_out_samples(40)
    cfg = AlgoConfig(iters=80, batch_size=16, **(SPOILS if spoils else {}))
    solved = solve_all(case, cfg, granularity=granularity, held_out=held, freeze_rounding=granularity == "network")
    judged = [result.judged for result in solved.results if result.layers]
    assert judged
    assert any(each.kept for each in judged) is not spoils
    for result in solved.results:
        if result.layers:
            assert same_layers(result.layers, case.quantized.layers) is not result.judged.kept
            assert not result.judged.kept or result.judged.gain_db > 0
    assert same_layers(solved.pair.layers, case.quantized.layers) == spoils
    if spoils:
        assert all(each.gain_db < 0 and not each.kept for each in judged)
        assert all(
            qparams.scale == case.quantized.activations[name].scale for name, qparams in solved.pair.activations.items()
        )
        assert not any(result.bias_corrected for result in solved.results)


def test_without_the_guard_what_comes_is_kept(make_case):
    case = make_case(weight_bits=3)
    solved = solve_all(case, AlgoConfig(iters=4, batch_size=16, **SPOILS))
    assert all(result.judged is None for result in solved.results)
    assert not same_layers(solved.pair.layers, case.quantized.layers)


def test_a_unit_half_way_is_not_judged_and_the_best_of_three_is_kept(make_case):
    case, held = make_case(weight_bits=3, correlated=True), held_out_samples(40)
    cfg = AlgoConfig(iters=120, batch_size=16)
    half = solve_all(case, cfg, phase=Phase(0, 100), held_out=held)
    assert all(result.judged is None for result in half.results)
    warm = [each if each.layers else None for each in half.results]
    spoiling = dataclasses.replace(cfg, **SPOILS)
    ended = solve_all(case, spoiling, phase=Phase(100, 120), warm=warm, held_out=held)
    for found, begun in zip(ended.results, half.results, strict=True):
        # The polish was bad; what it began with was not, or else the unit is as it came into the step.
        assert same_layers(found.layers, begun.layers if found.judged.kept else case.quantized.layers)
    assert any(found.judged.kept for found in ended.results)
    # What was spoilt before the polish too is as it came into the step.
    bad = solve_all(case, spoiling, phase=Phase(0, 100), held_out=held)
    ended = solve_all(case, spoiling, phase=Phase(100, 120), warm=bad.results, held_out=held)
    assert same_layers(ended.pair.layers, case.quantized.layers)


def with_other_biases(case, shift):
    layers = {
        name: dataclasses.replace(layer, bias=layer.bias + np.float32(shift))
        for name, layer in case.quantized.layers.items()
    }
    return dataclasses.replace(case, quantized=dataclasses.replace(case.quantized, layers=layers))


@pytest.mark.parametrize("spoils", [True, False])
def test_a_unit_alone_is_judged_by_the_network_in_front_of_all_rounds(make_case, spoils):
    case, held = make_case(weight_bits=3, correlated=True), held_out_samples(40)
    step = make_step(AlgoConfig(iters=80, batch_size=16, **(SPOILS if spoils else {})))
    _, units = make_solver(case, step)
    bench, before = make_bench(case), InPlace(case.quantized)
    prefix = InPlace(with_other_biases(case, 0.01).quantized)
    _, *stored = CaptureValues(case.batches, units[1].inputs, before).run(bench)
    alone = SolveAlone(step, units[1], case.batches, prefix, None, before, held).run(bench, *stored)
    assert alone.judged.kept is not spoils
    assert same_layers(alone.layers, case.quantized.layers) == spoils


def correction(case, fp_means):
    return BiasCorrection(BiasCorrectionOptions(bias_source="data"), fp_means=fp_means)


def test_a_correction_takes_its_means_from_fitted_samples(make_case):
    case, held = make_case(weight_bits=3, act_bits=8, correlated=True), held_out_samples(40)
    means = case.observed.calibration().channel_means
    solver, units = make_solver(with_other_biases(case, 0.3), correction(case, means), held_out=held)
    result = solver.solve(units[0])
    assert result.judged.kept
    assert result.bias_corrected
    layer = result.layers["stem"]
    fitted = torch.tensor([row for row in range(40) if row not in held])
    outputs = torch.nn.functional.conv2d(
        solver_inputs(case)[fitted], torch.tensor(layer.weight), torch.tensor(layer.bias), padding=1
    )
    np.testing.assert_allclose(outputs.mean((0, 2, 3)).numpy(), means["stem"].fitted, atol=1e-5)


def solver_inputs(case):
    """The samples as the first layer of the quantized network reads them."""
    solver, _ = make_solver(case, make_step(AlgoConfig(iters=1)))
    return solver.pair.q["input"].rows(0, len(case.samples))


@pytest.mark.parametrize("grows", [0.5, 3.0])
def test_a_correction_is_judged_by_the_squared_error_that_it_changes(make_case, grows):
    """By the written equation, against the outputs themselves."""
    case, held = make_case(weight_bits=3, act_bits=8), held_out_samples(40)
    inputs, layer = solver_inputs(case), case.quantized.layers["stem"]
    seen = torch.nn.functional.conv2d(inputs, torch.tensor(layer.weight), torch.tensor(layer.bias), padding=1)
    spared, others = list(held), [row for row in range(40) if row not in held]
    # Float outputs that differ by 1 in the mean of the held-out samples, and by `grows` in that of the others.
    noise = 0.1 * torch.randn(seen.shape, generator=torch.Generator().manual_seed(0))
    fp = seen + noise - noise.mean((2, 3), keepdim=True)
    fp[spared] += 1
    fp[others] += grows
    means = [fp[its].double().mean((0, 2, 3)).numpy() for its in (list(range(40)), others, spared)]
    solver, units = make_solver(case, correction(case, {"stem": ChannelMeans(*means)}), held_out=held)
    result = solver.solve(units[0])
    shifted = seen + grows
    before, after = (float((fp - its)[spared].double().square().sum()) for its in (seen, shifted))
    assert result.judged.kept == (after < before) == (grows < 2) == result.bias_corrected
    bias = layer.bias + (grows if grows < 2 else 0)
    np.testing.assert_allclose(result.layers["stem"].bias, bias, atol=1e-5)
    again, _ = make_solver(case, correction(case, {}), held_out=held)
    again.replay(units[0], result)
    for name, capture in solver.pair.q.items():
        assert torch.equal(again.pair.q[name].data, capture.data)
