"""Attention masks, finite and infinite, on targets that quantize everything and on others."""

import json

import numpy as np
import pytest
from networks import network

import dipo

LENGTH, WIDTH = 10, 16
HEAD = f"(float[N,{LENGTH},{WIDTH}] x, int64[N,1,{LENGTH}] off) => (float[N,{LENGTH},{WIDTH}] y)"
SCORES = """
  [q] q = MatMul(x, wq)
  [k] k = MatMul(x, wk)
  [v] v = MatMul(x, wv)
  [kt] kt = Transpose<perm=[0,2,1]>(k)
  [scores] s = MatMul(q, kt)
  [is_off] hide = Cast<to=9>(off)
"""
FORMS = {
    "where": "[mask] m = Where(hide, low, s)",
    "added": "[mask] b = Where(hide, low, zero) [add] m = Add(s, b)",
    "joined": "[mask] b = Where(hide, low, zero) [join] j = Add(b, position) [add] m = Add(s, j)",
    "constant": "[add] m = Add(s, causal)",
    "reshaped": "[mask] b = Where(hide, low, zero) [add] c = Add(s, b) [same] m = Identity(c)",
}
MASKS = [-50.0, -1e4, np.finfo(np.float32).min, -np.inf]


def attention(form, low):
    triangle = np.triu(np.ones((LENGTH, LENGTH), bool), 1)
    constants = {
        "low": np.float32(low),
        "zero": np.float32(0),
        "position": (LENGTH, LENGTH),
        "causal": np.where(triangle, np.float32(low), np.float32(0.5)).astype(np.float32),
    }
    text = (
        f"{HEAD} {{ {SCORES} {FORMS[form]} [soft] p = Softmax<axis=-1>(m) o = MatMul(p, v) [out] y = MatMul(o, wo) }}"
    )
    used = {name: value for name, value in constants.items() if f" {name})" in text or f" {name}," in text}
    return network(text, wq=(WIDTH, WIDTH), wk=(WIDTH, WIDTH), wv=(WIDTH, WIDTH), wo=(WIDTH, WIDTH), **used)


@pytest.fixture(scope="module")
def samples():
    rng = np.random.default_rng(0)
    off = (np.arange(LENGTH) >= rng.integers(3, LENGTH + 1, (24, 1, 1))).astype(np.int64)
    return {"x": rng.normal(size=(24, LENGTH, WIDTH)).astype(np.float32), "off": off}


def quantized(model, samples, **options):
    return dipo.quantize(model, samples, cluster={"kind": "inline", "threads": 1}, **options)


@pytest.mark.parametrize("form", FORMS)
def test_any_mask_gives_the_same_good_result_on_integers(form, samples):
    found = []
    for low in MASKS:
        result = quantized(attention(form, low), samples, target="qnn", algo="none")
        assert result.report.error["deployed_vs_simulated"].sqnr_db > 60
        found.append(result.report.error["simulated_vs_fp32"].sqnr_db)
    assert min(found) > 22, found
    assert max(found) - min(found) < 1, found


@pytest.mark.parametrize("target", ["snpe", "rk", "atlas", "trt", "ort", "openvino"])
def test_every_target_takes_an_infinite_mask(target, samples, tmp_path):
    result = quantized(attention("joined", -np.inf), samples, target=target, folder=tmp_path / "run")
    assert result.report.error["simulated_vs_fp32"].sqnr_db > 20
    assert result.report.error["deployed_vs_simulated"].sqnr_db > 60


@pytest.mark.parametrize("form", ["constant", "joined"])
def test_a_range_file_has_short_finite_ranges(form, samples, tmp_path):
    quantized(attention(form, -np.inf), samples, target="qnn", algo="none", folder=tmp_path / "run")
    file = next((tmp_path / "run").rglob("qnn_encodings.json"))
    content = json.loads(file.read_text())
    grids = {grid["name"]: grid for grid in (*content["activation_encodings"], *content["param_encodings"])}
    for name in ("causal",) if form == "constant" else ("b", "j", "m"):
        assert 0 < grids[name]["scale"][0] * 255 < 80, name


@pytest.mark.parametrize("algo", ["qdrop", "brecq", "bias_correction"])
@pytest.mark.parametrize("form", ["where", "added"])
def test_steps_go_on_through_infinite_values(algo, form, samples):
    options = {} if algo == "bias_correction" else {"options": {"algo.iters": 20}}
    model = attention(form, -np.inf)
    plain = quantized(model, samples, target="ort", algo="none", precision="w4a8")
    result = quantized(model, samples, target="ort", algo=algo, precision="w4a8", **options)
    error = result.report.error["simulated_vs_fp32"]
    assert error.sqnr_db > plain.report.error["simulated_vs_fp32"].sqnr_db - 1
    for unit in result.report.units:
        assert all(loss is None or np.isfinite(loss) for loss in unit.loss.values())


def test_outputs_may_be_infinite(samples):
    text = f"{HEAD} {{ [is_off] hide = Cast<to=9>(off) [q] q = MatMul(x, w) [mask] y = Where(hide, low, q) }}"
    model = network(text, w=(WIDTH, WIDTH), low=np.float32(-np.inf))
    x = samples["x"]
    off = np.zeros((len(x), 1, 16), np.int64)
    off[:, :, 9:] = 1
    model.graph.input[1].type.tensor_type.shape.dim[2].dim_value = WIDTH
    result = quantized(model, {"x": x, "off": off}, target="ort", algo="qdrop", options={"algo.iters": 5})
    assert result.report.error["simulated_vs_fp32"].sqnr_db > 30
