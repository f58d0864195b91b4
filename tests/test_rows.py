"""Rows that are no samples: values whose first axis has several rows for each sample, or none."""

import numpy as np
import pytest
from networks import network

import dipo

STEPS = ["bias_correction", "update_bn", "sparsify", "adaround", "brecq", "qdrop", "tune"]


def mlp(rows: str, *, windows: bool, count: int = 3) -> object:
    """Gemms with a Relu each, on rows of eight numbers; with `windows`, reshaped from four rows for each sample."""
    shape, text, last = (f"{rows},4,8" if windows else f"{rows},8"), "", "x"
    for i in range(count):
        flat, made = (f"f{i}", f"r{i}") if windows else (last, f"k{i}")
        text += f"[flat{i}] f{i} = Reshape({last}, flat)\n" if windows else ""
        text += f"[fc{i}] g{i} = Gemm({flat}, w{i}, b{i})\n[relu{i}] {made} = Relu(g{i})\n"
        text += f"[back{i}] k{i} = Reshape(r{i}, back)\n" if windows else ""
        last = f"k{i}"
    layers = {f"{kind}{i}": (8, 8) if kind == "w" else (8,) for kind in "wb" for i in range(count)}
    shapes = {"flat": np.array([-1, 8]), "back": np.array([-1, 4, 8])} if windows else {}
    return network(f"(float[{shape}] x) => (float[{shape}] {last}) {{ {text} }}", **layers, **shapes)


@pytest.fixture(scope="module")
def samples():
    """Samples of very different sizes: those of another would be told from its own."""
    sizes = np.linspace(0.2, 3, 40)[:, None, None]
    return (np.random.default_rng(0).normal(size=(40, 4, 8)) * sizes).astype(np.float32)


def quantized_by(model, samples, step, **options):
    return dipo.quantize(
        model, {"x": samples}, algo={"steps": [step], **options}, precision="w4a8",
        options={"data.batch_size": 16, "cluster.compile": False, "calib.headroom": "none"},
    )  # fmt: skip


def test_biases_are_corrected_as_those_of_the_rows_by_themselves(samples):
    """The same network on the same rows, which are samples there."""
    windows = quantized_by(mlp("N", windows=True), samples, "bias_correction")
    rows = quantized_by(mlp("N", windows=False), samples.reshape(-1, 8), "bias_correction")
    assert windows.report.error["deployed_vs_fp32"].sqnr_db == pytest.approx(
        rows.report.error["deployed_vs_fp32"].sqnr_db, abs=0.3
    )


@pytest.mark.parametrize("step", STEPS)
def test_no_step_loses_by_rows(samples, step):
    options = {} if step in STEPS[:3] else {"iters": 60}
    plain = dipo.quantize(
        mlp("N", windows=True), {"x": samples}, algo="none", precision="w4a8", options={"calib.headroom": "none"}
    )
    found = quantized_by(mlp("N", windows=True), samples, step, **options)
    allowed = 12.0 if step == "sparsify" else 0.5
    assert found.report.error["deployed_vs_fp32"].sqnr_db > plain.report.error["deployed_vs_fp32"].sqnr_db - allowed
    assert found.report.error["deployed_vs_simulated"].sqnr_db > 60


@pytest.mark.parametrize(
    "mix",
    [
        "[soft] y = Softmax<axis=0>(a)",
        "[all] m = ReduceMean<axes=[0], keepdims=1>(a)\n[rest] y = Sub(a, m)",
        "[all] m = ReduceMean<axes=[0], keepdims=0>(a)\n[twice] y = Add(m, m)",
    ],
)
def test_an_output_that_mixes_samples_is_refused_in_a_sentence(mix):
    """Also where one sample alone gives the same whatever it is: ones, or zeros."""
    shape = "8" if "Add" in mix else "N,8"
    model = network(f"(float[N,8] x) => (float[{shape}] y) {{ [fc] a = Gemm(x, w, b)\n{mix} }}", w=(8, 8), b=(8,))
    with pytest.raises(dipo.UserError, match=r"output 'y', for 4 samples, mixes samples"):
        dipo.quantize(model, {"x": np.random.default_rng(0).normal(size=(16, 8)).astype(np.float32)})
