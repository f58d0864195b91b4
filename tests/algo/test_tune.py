"""Tuning the whole network with its codes as they are."""

import dataclasses

import numpy as np
import pytest
from solving import CPU, solve_all

from dipo.algo.simulate import simulate
from dipo.algo.steps.tune import Tune
from dipo.config import AlgoConfig
from dipo.export.targets import TARGETS
from dipo.graph.plan import QuantizedModel

CFG = AlgoConfig(tune_iters=60, batch_size=16, lr_scale=1e-3, lr_bias=2e-3, lr_act=2e-3)


def error_of(case, quantized):
    result = simulate(
        case.model, plan=case.plan, quantized=quantized, rules=TARGETS["ort"].spec,
        batches=case.batches, inputs=case.inputs, profile_samples=0, device=CPU, progress=lambda _: None,
    )  # fmt: skip
    return float(((result.fp_outputs["logits"] - result.q_outputs["logits"]) ** 2).mean())


@pytest.mark.parametrize(("reconstructed", "left"), [(False, 0.8), (True, 1.0)])
def test_tuning_lowers_the_error_and_keeps_the_codes(make_case, reconstructed, left):
    case = make_case(weight_bits=3)
    if reconstructed:
        begun = solve_all(case, AlgoConfig(iters=80, batch_size=16))
        case = dataclasses.replace(case, quantized=QuantizedModel(begun.pair.layers, begun.pair.activations))
    tuned = solve_all(case, CFG, granularity="network", freeze_rounding=True)
    assert error_of(case, QuantizedModel(tuned.pair.layers, tuned.pair.activations)) < left * error_of(
        case, case.quantized
    )
    (result,) = tuned.results
    assert result.loss_last < result.loss_first
    assert result.rounding is None
    assert result.layers.keys() == case.plan.layers.keys()
    for name, layer in result.layers.items():
        old = case.quantized.layers[name]
        assert np.array_equal(layer.codes, old.codes)
        assert np.any(layer.qparams.scale != old.qparams.scale)
        assert np.any(layer.bias != old.bias)


def test_all_activations_behind_the_input_are_trained(make_case):
    """Beside coarse ones too, which a reconstruction trains alone."""
    case = make_case(weight_bits=3)
    tuned = solve_all(case, dataclasses.replace(CFG, tune_iters=2), granularity="network", freeze_rounding=True)
    assert tuned.results[0].activations.keys() == case.plan.activations.keys() - {"input"}
    for name, qparams in tuned.results[0].activations.items():
        assert qparams.scale != case.quantized.activations[name].scale


def test_scales_that_are_powers_of_two_stay(make_case):
    case = make_case()
    layers = {
        name: dataclasses.replace(layer, qparams=dataclasses.replace(layer.qparams, power_of_two=True))
        for name, layer in case.quantized.layers.items()
    }
    activations = {
        name: dataclasses.replace(qparams, power_of_two=True) for name, qparams in case.quantized.activations.items()
    }
    own = dataclasses.replace(case, quantized=QuantizedModel(layers, activations))
    (result,) = solve_all(
        own, dataclasses.replace(CFG, tune_iters=4), granularity="network", freeze_rounding=True
    ).results
    for name, layer in result.layers.items():
        assert np.array_equal(layer.qparams.scale, layers[name].qparams.scale)
        assert np.any(layer.bias != layers[name].bias)
    for name, qparams in result.activations.items():
        assert qparams.scale == activations[name].scale


def test_a_correction_of_biases_is_not_asked_for_twice(make_case):
    case = make_case(num=16)
    (result,) = solve_all(
        case, dataclasses.replace(CFG, tune_iters=2), granularity="network", freeze_rounding=True
    ).results
    assert not result.bias_corrected


def test_tuning_has_its_own_schedule():
    asked = AlgoConfig(iters=320, tune_iters=50, tune_lr=3.0, lr_scale=1e-3, fp_input_prob=0.5, loss="fisher")
    cfg = Tune.configured(asked, {}).training
    assert (cfg.iters, cfg.reference_iters, cfg.fp_input_prob, cfg.loss) == (50, 50, 0.0, "error")
    assert np.isclose(cfg.lr_scale, 3e-3)
    assert cfg.train_scale
