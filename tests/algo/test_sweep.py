import numpy as np
import pytest
import torch

from dipo.algo.bias_correction import correct_layer
from dipo.algo.captures import StoredRows
from dipo.algo.exchange import NoExchange
from dipo.algo.pair import Pair
from dipo.algo.reconstruct import Phase
from dipo.algo.simulate import simulate
from dipo.algo.sweep import Sweep, Training
from dipo.algo.trainer import Piece
from dipo.export.targets import TARGETS
from dipo.graph.plan import QuantizedModel
from dipo.graph.units import find_units
from dipo.quant import kernels
from dipo.recipe import AlgoConfig

CPU = torch.device("cpu")


def make_sweep(case, granularity, *, with_float=True):
    units = find_units(case.model, granularity=granularity)
    pair = make_pair(case, units)
    pair.read_samples(case.inputs, with_float=with_float)
    return Sweep(pair), units


def make_pair(case, units):
    return Pair(
        case.model, plan=case.plan, units=units, quantized=case.quantized, batches=case.batches,
        owners=[0] * len(case.batches), exchange=NoExchange(), device=CPU,
    )  # fmt: skip


def training(case, cfg, seed=0, *, phase=None):
    pieces = [Piece(0, 0, len(case.samples), cfg.batch_size)]
    return Training(
        cfg, phase or Phase(0, cfg.iters), cfg.correct_bias, pieces, [0], seed, kernels.eager(), lambda _: None
    )


def solve(sweep, units, case, cfg, seed=0):
    return [sweep.solve(unit, training(case, cfg, seed)) for unit in units]


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
    sweep, units = make_sweep(case, granularity)
    nearest, _ = error_of(case, case.quantized)
    results = solve(sweep, units, case, AlgoConfig(iters=120, fp_input_prob=prob, batch_size=16))
    error, _ = error_of(case, QuantizedModel(sweep.pair.layers, sweep.pair.activations))
    assert error < 0.7 * nearest
    changed = {name for result in results for name in result.layers}
    assert changed == set(case.plan.layers)
    for name in changed:
        assert np.any(sweep.pair.layers[name].codes != case.quantized.layers[name].codes)
        assert sweep.pair.layers[name].codes.min() >= sweep.pair.layers[name].qparams.qmin
        assert sweep.pair.layers[name].codes.max() <= sweep.pair.layers[name].qparams.qmax


def test_a_rounded_weight_is_a_neighbour_of_the_float_one(make_case):
    case = make_case()
    sweep, units = make_sweep(case, "block")
    solve(sweep, units, case, AlgoConfig(iters=30, fp_input_prob=0.5))
    layer = sweep.pair.layers["left"]
    scale, zero = layer.qparams.along(4)
    floor = np.floor(case.model.graph.initializers["w1"].const_value.numpy() / scale) + zero
    low, high = (np.clip(floor + step, layer.qparams.qmin, layer.qparams.qmax) for step in (0, 1))
    assert np.all((layer.codes == low) | (layer.codes == high))


def test_the_seed_decides_all_that_is_random(make_case):
    case = make_case()
    cfg = AlgoConfig(iters=10, fp_input_prob=0.5)
    runs = []
    for seed in (3, 3, 4):
        sweep, units = make_sweep(case, "block")
        solve(sweep, units, case, cfg, seed=seed)
        runs.append(sweep.pair.activations["r1"].scale)
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


def test_the_captures_follow_the_simulation(make_case):
    """What the sweep hands from unit to unit is what the whole quantized network computes."""
    case = make_case()
    sweep, units = make_sweep(case, "block")
    solve(sweep, units, case, AlgoConfig(iters=5))
    _, result = error_of(case, QuantizedModel(sweep.pair.layers, sweep.pair.activations))
    assert result.layers.keys() == {"stem", "left", "right", "head"}
    assert not sweep.pair.q, "captures that nobody reads any more are let go"
    assert not sweep.pair.fp


def test_bias_correction_restores_the_channel_means(make_case):
    case = make_case(weight_bits=3, act_bits=8)
    sweep, units = make_sweep(case, "layer", with_float=False)
    means = case.observed.calibration().channel_means
    for unit in units:
        correct_layer(sweep.pair, unit, means)
    corrected = QuantizedModel(sweep.pair.layers, sweep.pair.activations)
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
    sweep, units = make_sweep(case, "block")
    errors = iter([1.0, 2.0])
    monkeypatch.setattr(sweep.pair, "output_error", lambda *_: next(errors))
    cfg = AlgoConfig(iters=2, train_bias=False)
    result = solve(sweep, units[:1], case, cfg)[0]
    assert not result.bias_corrected
    assert np.array_equal(sweep.pair.layers["stem"].bias, case.quantized.layers["stem"].bias)


def captures_of(pair):
    return {name: capture.data for name, capture in {**pair.q, **{f"fp {k}": v for k, v in pair.fp.items()}}.items()}


def test_a_replay_ends_in_the_very_same_place(make_case):
    case = make_case()
    cfg = AlgoConfig(iters=8, fp_input_prob=0.5)
    sweep, units = make_sweep(case, "block")
    results = [sweep.solve(unit, training(case, cfg)) for unit in units[:2]]
    again, _ = make_sweep(case, "block")
    for unit, result in zip(units, results, strict=False):
        again.replay(unit, result)
    found, expected = captures_of(again.pair), captures_of(sweep.pair)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)
    left, right = (each.solve(units[2], training(case, cfg)) for each in (sweep, again))
    assert all(np.array_equal(left.layers[name].codes, right.layers[name].codes) for name in left.layers)


def test_a_replayed_bias_correction_ends_in_the_very_same_place(make_case):
    case = make_case(weight_bits=3, act_bits=8)
    means = case.observed.calibration().channel_means
    sweep, units = make_sweep(case, "layer", with_float=False)
    results = [correct_layer(sweep.pair, unit, means) for unit in units[:2]]
    again, _ = make_sweep(case, "layer", with_float=False)
    for unit, result in zip(units, results, strict=False):
        correct_layer(again.pair, unit, {}, known=next(iter(result.values()), None))
    found, expected = captures_of(again.pair), captures_of(sweep.pair)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)


def test_a_unit_alone_is_trained_behind_what_was_captured(make_case):
    """For the first unit, whose input no unit has touched, that is what the sweep does."""
    case = make_case()
    cfg = AlgoConfig(iters=12, fp_input_prob=0.5)
    sweep, units = make_sweep(case, "block")
    expected = sweep.solve(units[0], training(case, cfg))
    pair = make_pair(case, units[:1])
    whole = make_pair(case, units)
    whole.read_samples(case.inputs, with_float=True)
    fp, q = ({name: [StoredRows.of(value)] for name, value in found.items()} for found in whole.capture(["input"]))
    pair.take_inputs(fp, q)
    alone = Sweep(pair).train(units[0], pair.targets(units[0]), training(case, cfg), rounding=None)
    for name, layer in expected.layers.items():
        assert np.array_equal(alone.layers[name].codes, layer.codes)
        assert np.array_equal(alone.layers[name].bias, layer.bias)


def test_two_phases_polish_what_was_begun(make_case):
    """The second phase goes on with the rounding, the biases and the scales of the first."""
    case = make_case(weight_bits=3)
    cfg = AlgoConfig(iters=120, batch_size=16)
    sweep, units = make_sweep(case, "block")
    first = {
        unit.index: sweep.solve(unit, training(case, cfg, phase=Phase(0, 100)))
        for unit in units
        if sweep.has_layers(unit)
    }
    assert all(result.rounding is not None for result in first.values())
    half, _ = error_of(case, QuantizedModel(sweep.pair.layers, sweep.pair.activations))
    polish, _ = make_sweep(case, "block")
    for unit in units:
        result = polish.solve(unit, training(case, cfg, phase=Phase(100, 120)), begun=first.get(unit.index))
        assert result.rounding is None
    done, _ = error_of(case, QuantizedModel(polish.pair.layers, polish.pair.activations))
    unpolished, _ = make_sweep(case, "block")
    for unit in units:
        unpolished.solve(unit, training(case, cfg, phase=Phase(100, 120)))
    from_nothing, _ = error_of(case, QuantizedModel(unpolished.pair.layers, unpolished.pair.activations))
    assert done < 1.1 * half
    assert done < from_nothing
