"""Every activation function goes wherever HardSwish goes: units, plans, all targets, no samples, equalization."""

from __future__ import annotations

import json

import numpy as np
import onnx_ir as ir
import pytest
from networks import images, network, saved

from dipo.algo.calibrate import quantize_model
from dipo.algo.data_free import data_free_ranges
from dipo.algo.layer_pairs import find_layer_pairs
from dipo.algo.moments import moments_of
from dipo.errors import UserError
from dipo.export.target import Export, write_target
from dipo.export.targets import TARGETS
from dipo.export.targets.ti import LAYER_TYPES
from dipo.graph import operators
from dipo.graph.load import load
from dipo.graph.operators import Kind
from dipo.graph.plan import make_plan
from dipo.graph.units import find_units
from dipo.launch import main
from dipo.recipe import CalibConfig, PrecisionConfig

LIKE_HARD_SWISH = ["Mish", "Elu", "Tanh", "Softplus", "Selu", "Celu", "Softsign", "ThresholdedRelu", "Gelu", "Sigmoid",
                   "HardSigmoid"]  # fmt: skip
FULL_INTEGER = sorted(name for name, target in TARGETS.items() if target.spec.quantize_outputs)


def model_with(operator: str, folder) -> ir.Model:
    return load(file_with(operator, folder))


def file_with(operator: str, folder):
    norms = {
        f"{name}{i}": array for i in (1, 2) for name, array in zip("smv", np.ones((3, 8), np.float32), strict=True)
    }
    model = network(
        f"""(float[N,3,8,8] image) => (float[N,10] scores) {{
          [stem] a = Conv<pads=[1,1,1,1]>(image, w1)
          [norm1] b = BatchNormalization(a, s1, o1, m1, v1)
          [act1] c = {operator}(b)
          [deep] d = Conv<pads=[1,1,1,1]>(c, w2)
          [norm2] e = BatchNormalization(d, s2, o2, m2, v2)
          [act2] f = {operator}(e)
          [sum] g = Add(f, c)
          [pool] h = GlobalAveragePool(g)
          [flat] i = Flatten(h)
          [head] scores = Gemm<transB=1>(i, w3, b3)
        }}""",
        opset=20, w1=(8, 3, 3, 3), w2=(8, 8, 3, 3), w3=(10, 8), b3=(10,), o1=(8,), o2=(8,), **norms,
    )  # fmt: skip
    return saved(model, folder, f"{operator}.onnx")


def test_all_activation_functions_are_here() -> None:
    bent_or_cut = {"Relu", "Clip", "LeakyRelu", "PRelu", "Shrink"}
    # ONNX Runtime has no Swish of ONNX's own yet.
    assert operators.with_kind(Kind.ACTIVATION) == {*LIKE_HARD_SWISH, *bent_or_cut, "HardSwish", "Swish"}


@pytest.mark.parametrize("operator", LIKE_HARD_SWISH)
@pytest.mark.parametrize("granularity", ["layer", "block", "stage"])
def test_units_keep_it_with_its_layer(tmp_path, operator, granularity) -> None:
    its, swish = (find_units(model_with(name, tmp_path), granularity=granularity) for name in (operator, "HardSwish"))
    assert [unit.nodes for unit in its] == [unit.nodes for unit in swish]
    assert any({"stem", "act1"} <= set(unit.nodes) for unit in its)


@pytest.mark.parametrize("operator", LIKE_HARD_SWISH)
@pytest.mark.parametrize("placement", ["input", pytest.param("output", marks=pytest.mark.slow)])
def test_plans_quantize_around_it_alike(tmp_path, operator, placement) -> None:
    for rules in (target.spec for target in TARGETS.values()):
        # What a device has a kernel for it reads as integers.
        if len({name in rules.operators for name in (operator, "HardSwish")}) == 1:
            its, swish = (
                make_plan(model_with(name, tmp_path), rules, PrecisionConfig(placement=placement))
                for name in (operator, "HardSwish")
            )
            assert its.layers == swish.layers
            assert its.activations.keys() == swish.activations.keys()


@pytest.mark.parametrize("operator", [*LIKE_HARD_SWISH, "HardSwish"])
@pytest.mark.parametrize("platform", FULL_INTEGER)
def test_targets_of_integers_take_it_with_ranges_without_samples(tmp_path, operator, platform) -> None:
    model, rules = model_with(operator, tmp_path), TARGETS[platform].spec
    plan = make_plan(model, rules, PrecisionConfig())
    assert {"c", "f"} <= plan.activations.keys()
    ranges = data_free_ranges(plan, moments_of(model))
    quantized = quantize_model(model, plan=plan, ranges=ranges, cfg=CalibConfig())
    (tmp_path / "out").mkdir()
    export = Export(model, quantized, tmp_path / "out", metadata={})
    if platform == "ti" and operator not in LAYER_TYPES:
        # The kernel is what is missing, and that is what it says, of HardSwish as well.
        with pytest.raises(UserError, match=f"TIDL has no layer for node 'act1' \\({operator}\\)"):
            write_target(TARGETS[platform], export, {})
    else:
        assert write_target(TARGETS[platform], export, {})


@pytest.mark.parametrize("operator", LIKE_HARD_SWISH)
def test_no_factor_passes_it_in_equalization(tmp_path, operator) -> None:
    links, refusals = find_layer_pairs(model_with(operator, tmp_path))
    assert not links
    reasons = [each.reason for each in refusals]
    assert f"act2 is {operator}: it does not commute with factors" in reasons


@pytest.mark.parametrize(
    ("operator", "more"),
    [("Mish", ["algo=brecq"]), ("Tanh", ["+algo=equalize"]), ("Softplus", ["+algo=dfq", "data.path=null"])],
)
def test_a_job_for_a_target_of_integers(tmp_path, operator, more) -> None:
    """It calibrated to the end, and then blamed precision.skip for a range that nobody had asked for."""
    np.savez(tmp_path / "data.npz", image=images(16))
    arguments = [f"model.path={file_with(operator, tmp_path)}", f"data.path={tmp_path / 'data.npz'}", *more]
    arguments += ["cluster=inline", "cluster.compile=false", "algo.iters=4", "platform=snpe"]
    assert main([*arguments, "precision.weight_per_channel=false", f"run.dir={tmp_path / 'run'}"]) == 0
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["error"]["deployed_vs_fp32"]["sqnr_db"] > 15
    content = json.loads((tmp_path / "run" / "snpe_encodings.json").read_text())
    assert {"c", "f"} <= content["activation_encodings"].keys()
