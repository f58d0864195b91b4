import numpy as np
import pytest
import torch
from solving import CPU, make_bench, make_solver, make_step, solve_all

from dipo.algo.bench import InPlace
from dipo.algo.independent import CaptureValues, SolveAlone
from dipo.algo.phase import Phase
from dipo.algo.simulate import simulate
from dipo.algo.steps.bias_correction import BiasCorrection, BiasCorrectionOptions
from dipo.config import AlgoConfig
from dipo.export.targets import TARGETS
from dipo.graph.plan import QuantizedModel
from dipo.graph.sample_axis import SampleAxes


def error_of(case, quantized):
    result = simulate(
        case.model, plan=case.plan, quantized=quantized, rules=TARGETS["ort"].spec,
        batches=case.batches, inputs=case.inputs, profile_samples=1000, device=CPU, progress=lambda _: None,
    )  # fmt: skip
    fp, q = result.fp_outputs["logits"], result.q_outputs["logits"]
    return float(((fp - q) ** 2).mean()), result


@pytest.mark.parametrize(("granularity", "prob"), [("layer", 0.0), ("block", 0.0), ("block", 0.5)])
def test_reconstruction_beats_rounding_to_nearest(make_case, granularity, prob):
    case = make_case(weight_bits=3, act_bits=4)
    nearest, _ = error_of(case, case.quantized)
    solved = solve_all(case, AlgoConfig(iters=120, fp_input_prob=prob, batch_size=16), granularity=granularity)
    results = solved.results
    error, _ = error_of(case, QuantizedModel(solved.pair.layers, solved.pair.activations))
    assert error < 0.7 * nearest
    changed = {name for result in results for name in result.layers}
    assert changed == set(case.plan.layers)
    for name in changed:
        assert np.any(solved.pair.layers[name].codes != case.quantized.layers[name].codes)
        assert solved.pair.layers[name].codes.min() >= solved.pair.layers[name].qparams.qmin
        assert solved.pair.layers[name].codes.max() <= solved.pair.layers[name].qparams.qmax


def test_a_rounded_weight_is_a_neighbour_of_the_float_one(make_case):
    case = make_case()
    solved = solve_all(case, AlgoConfig(iters=30, fp_input_prob=0.5))
    layer = solved.pair.layers["left"]
    scale, zero = layer.qparams.broadcast_to(4)
    floor = np.floor(case.model.graph.initializers["w1"].const_value.numpy() / scale) + zero
    low, high = (np.clip(floor + step, layer.qparams.qmin, layer.qparams.qmax) for step in (0, 1))
    assert np.all((layer.codes == low) | (layer.codes == high))


def test_the_seed_decides_all_that_is_random(make_case):
    case = make_case()
    cfg = AlgoConfig(iters=10, fp_input_prob=0.5)
    runs = []
    for seed in (3, 3, 4):
        runs.append(solve_all(case, cfg, seed=seed).pair.activations["r1"].scale)
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


def test_the_captures_follow_the_simulation(make_case):
    """What is handed from unit to unit is what the whole quantized network computes."""
    case = make_case()
    solved = solve_all(case, AlgoConfig(iters=5))
    _, result = error_of(case, QuantizedModel(solved.pair.layers, solved.pair.activations))
    assert result.layers.keys() == {"stem", "left", "right", "head"}
    assert not solved.pair.q, "captures that nobody reads any more are let go"
    assert not solved.pair.fp


def correction(case):
    means = case.observed.calibration().channel_means
    return BiasCorrection(BiasCorrectionOptions(bias_source="data"), fp_means=means)


def test_bias_correction_restores_the_channel_means(make_case):
    case = make_case(weight_bits=3, act_bits=8)
    solved, units = make_solver(case, correction(case))
    for unit in units:
        solved.solve(unit)
    corrected = QuantizedModel(solved.pair.layers, solved.pair.activations)
    # Without the rounding of biases to int32, so that the means are exact.
    result = simulate(
        case.model, plan=case.plan, quantized=corrected, rules=TARGETS["trt"].spec,
        batches=case.batches, inputs=case.inputs, profile_samples=0, device=CPU, progress=lambda _: None,
    )  # fmt: skip
    np.testing.assert_allclose(result.q_outputs["logits"].mean(0), result.fp_outputs["logits"].mean(0), atol=1e-5)
    before, _ = error_of(case, case.quantized)
    after, _ = error_of(case, corrected)
    assert after < before


def test_a_correction_that_does_not_help_is_taken_back(make_case, monkeypatch):
    case = make_case()
    solver, units = make_solver(case, make_step(AlgoConfig(iters=2, train_bias=False)))
    errors = iter([{"r0": 1.0}, {"r0": 2.0}])
    monkeypatch.setattr("dipo.algo.bias_correction.output_errors", lambda *_: next(errors))
    assert not solver.solve(units[0]).bias_corrected
    assert np.array_equal(solver.pair.layers["stem"].bias, case.quantized.layers["stem"].bias)


def captures_of(pair):
    return {name: capture.data for name, capture in {**pair.q, **{f"fp {k}": v for k, v in pair.fp.items()}}.items()}


@pytest.mark.parametrize("kind", ["qdrop", "bias_correction"])
def test_a_replay_ends_in_the_very_same_place(make_case, kind):
    case = make_case(weight_bits=3, act_bits=4 if kind == "qdrop" else 8)
    step = make_step(AlgoConfig(iters=8, fp_input_prob=0.5)) if kind == "qdrop" else correction(case)
    solver, units = make_solver(case, step)
    results = [solver.solve(unit) for unit in units[:2]]
    again, _ = make_solver(case, step)
    for unit, result in zip(units, results, strict=False):
        again.replay(unit, result)
    found, expected = captures_of(again.pair), captures_of(solver.pair)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)
    left, right = (each.solve(units[2]) for each in (solver, again))
    for name, layer in left.layers.items():
        assert np.array_equal(layer.codes, right.layers[name].codes)
        assert np.array_equal(layer.bias, right.layers[name].bias)


def test_a_unit_alone_is_trained_behind_what_was_captured(make_case):
    """For the first unit, whose input no unit has touched, that is what happens in the sequence."""
    case = make_case()
    step = make_step(AlgoConfig(iters=12, fp_input_prob=0.5))
    solver, units = make_solver(case, step)
    expected = solver.solve(units[0])
    bench, quantized = make_bench(case), InPlace(case.quantized)
    _, *stored = CaptureValues(case.batches, ["input"], quantized).run(bench)
    alone = SolveAlone(step, units[0], case.batches, quantized, None).run(bench, *stored)
    for name, layer in expected.layers.items():
        assert np.array_equal(alone.layers[name].codes, layer.codes)
        assert np.array_equal(alone.layers[name].bias, layer.bias)


def test_two_phases_polish_what_was_begun(make_case):
    """The second phase goes on with the rounding, the biases and the scales of the first."""
    case = make_case(weight_bits=3)
    cfg = AlgoConfig(iters=120, batch_size=16)
    first = solve_all(case, cfg, phase=Phase(0, 100))
    assert all(result.rounding is not None for result in first.results if result.layers)
    polish = solve_all(case, cfg, phase=Phase(100, 120), warm=[each if each.layers else None for each in first.results])
    assert all(result.rounding is None for result in polish.results)
    unpolished = solve_all(case, cfg, phase=Phase(100, 120))
    half, done, from_nothing = (
        error_of(case, QuantizedModel(each.pair.layers, each.pair.activations))[0]
        for each in (first, polish, unpolished)
    )
    assert done < 1.1 * half
    assert done < from_nothing


def test_layers_between_which_samples_cannot_be_told_apart_are_left_by_steps_on_single_ones(make_case):
    case, mixed = make_case(), SampleAxes(mixed=frozenset({"r0", "c1"}))
    means = case.observed.calibration().channel_means
    step = BiasCorrection(BiasCorrectionOptions(bias_source="data"), fp_means=means)
    solver, units = make_solver(case, step, samples=mixed)
    corrected = {name for unit in units for name in solver.solve(unit).layers}
    assert [unit.layers for unit in units] == [("stem", "left", "right"), ("head",)]
    assert corrected == {"head"}
    solver, units = make_solver(case, make_step(AlgoConfig(iters=4)), granularity="layer", samples=mixed)
    trained = {name for unit in units for name in solver.solve(unit).layers}
    assert trained == {"stem", "left", "right", "head"}
