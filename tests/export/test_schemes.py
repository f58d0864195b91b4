"""Every scheme, from the plan to what ONNX Runtime computes with the file."""

import numpy as np
import pytest
import torch
from exported import write_files
from networks import images, saved, tiny_cnn

from dipo.algo.activation_cache import cut
from dipo.algo.calibrate import activation_ranges, observe, quantize_model
from dipo.algo.simulate import simulate
from dipo.export.targets import TARGETS
from dipo.graph.load import load
from dipo.graph.plan import make_plan
from dipo.recipe import CalibConfig, PrecisionConfig
from dipo.report.measures import output_error

SCHEMES = {
    "narrow": {"weight_narrow": True},
    "narrow asymmetric": {"weight_narrow": True, "weight_bits": 4, "weight_symmetric": False},
    "signed": {"act_signed": True},
    "signed symmetric": {"act_signed": True, "act_symmetric": True},
    "unsigned symmetric": {"act_symmetric": True},
    "signed 4 bits": {"act_signed": True, "act_bits": 4},
    "output": {"placement": "output"},
    "powers of two": {"power_of_two": True},
    "all": {"power_of_two": True, "weight_narrow": True, "act_signed": True, "act_symmetric": True},
}


def deployed_and_simulated(tmp_path, run, *, platform="ort", **settings):
    """How far the written model is from the simulation, and this from the float network."""
    model = load(saved(tiny_cnn(), tmp_path))
    samples, device, batches = images(32), torch.device("cpu"), cut(32, 8)
    rules = TARGETS[platform].spec
    plan = make_plan(model, rules, PrecisionConfig(**{"weight_bits": 8, "act_bits": 8, **settings}))

    def inputs(batch):
        return {"image": torch.from_numpy(samples[batch.start : batch.stop])}

    seen = observe(model, plan=plan, batches=batches, inputs=inputs, device=device)
    ranges = activation_ranges(plan, seen.statistics, cfg=CalibConfig())
    quantized = quantize_model(model, plan=plan, ranges=ranges, cfg=CalibConfig())
    path = write_files(TARGETS[platform], model, quantized, tmp_path)[0]
    simulated = simulate(
        model,
        plan=plan,
        quantized=quantized,
        rules=rules,
        batches=batches,
        inputs=inputs,
        profile_samples=0,
        device=device,
        progress=lambda _: None,
    )
    found = run(path, {"image": samples}, keep_float_bias=not rules.int32_bias)
    return (
        output_error(simulated.q_outputs, found).sqnr_db,
        output_error(simulated.fp_outputs, simulated.q_outputs).sqnr_db,
        quantized,
    )


@pytest.mark.parametrize("settings", SCHEMES.values(), ids=SCHEMES)
def test_onnx_runtime_computes_what_was_simulated(tmp_path, run, settings):
    deployed, simulated, quantized = deployed_and_simulated(tmp_path, run, **settings)
    assert simulated > 8, "the scheme itself works"
    assert deployed > simulated + 10
    if settings.get("power_of_two"):
        assert deployed > 100, "no product with a scale is rounded"
        for qparams in (*quantized.activations.values(), *(layer.qparams for layer in quantized.layers.values())):
            assert qparams.power_of_two and (np.frexp(qparams.scale)[0] == 0.5).all()


@pytest.mark.parametrize("settings", [SCHEMES["narrow"], SCHEMES["output"], SCHEMES["all"]])
def test_tensorrts_file_means_what_was_simulated(tmp_path, run, settings):
    deployed, simulated, _ = deployed_and_simulated(tmp_path, run, platform="trt", **settings)
    assert simulated > 20
    assert deployed > simulated + 10
