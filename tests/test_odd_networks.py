"""Networks with nothing to see in places: no weight, one channel, one value everywhere. Handled, named, never a NaN."""

import json

import numpy as np
import onnx
import pytest
from networks import network, saved

import dipo
from dipo.launch import main

ALGOS = {
    "none": (),
    "equalize": ("+algo=equalize", "precision.weight_per_channel=false"),
    "bias_correction": ("+algo=bias_correction",),
    "update_bn": ("+algo=update_bn",),
    "sparse": ("+algo=sparse",),
    "2:4": ("+algo=sparse", "algo.sparsity_pattern=2:4"),
    "adaround": ("+algo=adaround",),
    "scales": ("+algo=qdrop", "algo.train_scale=true"),
    "straight through": ("+algo=qdrop", "algo.rounding=straight_through"),
    "fisher": ("+algo=brecq", "algo.loss=fisher"),
    "full": ("+algo=full", "algo.tune_iters=4"),
    "analyze": ("+algo=analyze",),
    "dfq": ("+algo=dfq", "data.path=null"),
}
METHODS = ("minmax", "percentile", "kl", "octav", "mse")


@pytest.fixture
def odd(tmp_path):
    """A dead layer, one without some channels, convolutions with one channel, and a value that is zero everywhere."""
    holes = np.random.default_rng(0).normal(size=(8, 3, 3, 3)).astype(np.float32)
    holes[[1, 5]] = 0
    model = network(
        """(float[N,3,8,8] image) => (float[N,10] scores) {
          [holes] a = Conv<pads=[1,1,1,1]>(image, w1, b1)
          [norm] n = BatchNormalization(a, scale, shift, mean, var)
          [relu1] b = Relu(n)
          [dead] c = Conv<pads=[1,1,1,1]>(b, w2, b2)
          [silent] d = Relu(c)
          [narrow] e = Conv(b, w3)
          [relu3] f = Relu(e)
          [single] g = Conv<pads=[1,1,1,1]>(f, w4)
          [sum] h = Add(d, g)
          [after] i = Conv(h, w5)
          [pool] j = GlobalAveragePool(i)
          [flat] k = Flatten(j)
          [head] scores = Gemm<transB=1>(k, w6, b6)
        }""",
        w1=holes,
        b1=(8,),
        scale=np.float32([1, 1, 0, 1, 1, 1, 1, 1]),
        shift=(8,),
        mean=np.zeros(8, np.float32),
        var=np.float32([1, 0, 1, 1, 1, 0, 1, 1]),
        w2=np.zeros((1, 8, 3, 3), np.float32),
        b2=np.float32([-1]),
        w3=(1, 8, 1, 1),
        w4=(1, 1, 3, 3),
        w5=(8, 1, 1, 1),
        w6=(10, 8),
        b6=(10,),
    )
    return saved(model, tmp_path, "odd.onnx")


@pytest.mark.parametrize("platform", ["snpe", "rk", "ti", "imx"])
def test_a_flat_softmax_has_the_range_of_the_function(tmp_path, platform):
    """Its outputs are all below 1/8: on a grid made for these, ONNX Runtime's integer Softmax wraps round."""
    model = network(
        """(float[N,3,8,8] image) => (float[N,24] odds) {
          [conv] a = Conv<pads=[1,1,1,1]>(image, w1, b1)
          [gate] b = Sigmoid(a)
          [pool] c = GlobalAveragePool(b)
          [flat] d = Flatten(c)
          [head] e = Gemm<transB=1>(d, w2, b2)
          [soft] odds = Softmax(e)
        }""",
        w1=(8, 3, 3, 3), b1=(8,), w2=(24, 8), b2=(24,),
    )  # fmt: skip
    np.save(tmp_path / "samples.npy", np.random.default_rng(0).normal(size=(16, 3, 8, 8)).astype(np.float32))
    job = [f"model.path={saved(model, tmp_path)}", f"data.path={tmp_path / 'samples.npy'}", "cluster=inline"]
    assert main([*job, f"platform={platform}", f"run.dir={tmp_path / 'run'}"]) == 0
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["error"]["deployed_vs_simulated"]["agreement"] == 100
    initializers = {tensor.name: tensor for tensor in onnx.load(tmp_path / "run" / "quantized.onnx").graph.initializer}
    for name in ("b", "odds"):
        assert onnx.numpy_helper.to_array(initializers[f"{name}_scale"]) in (2.0**-8, 2.0**-7)


def run(tiny_job, odd, folder, *how):
    """Run the job; the numbers of what it wrote are all finite."""
    assert main(tiny_job.arguments(f"model.path={odd}", f"run.dir={folder}", *how)) == 0
    for tensor in onnx.load(folder / "quantized.onnx").graph.initializer:
        array = onnx.numpy_helper.to_array(tensor)
        assert np.isfinite(array.astype(np.float64)).all(), tensor.name
    text = (folder / "report.json").read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    return json.loads(text)


@pytest.mark.parametrize("how", ALGOS.values(), ids=ALGOS)
def test_every_algorithm_takes_them(tiny_job, odd, tmp_path, how):
    report = run(tiny_job, odd, tmp_path / "run", "precision=w4a4", *how)
    assert report["error"]["deployed_vs_simulated"]["cosine"] > 0.999


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("how", [(), ("precision.power_of_two=true",), ("platform=trt",)], ids=["ort", "powers", "trt"])
def test_every_range_method_takes_them_and_the_report_names_them(tiny_job, odd, tmp_path, method, how):
    report = run(tiny_job, odd, tmp_path / "run", f"calib={method}", f"calib.weights={_weights(method)}", *how)
    notes = {note["name"]: note["what"] for note in report["notes"]}
    assert notes["dead"] == "its weight is all zero"
    assert notes["holes"] == "2 of its 8 channels have no weight but zero" or "3 of its 8" in notes["holes"]
    assert notes["d"] == "it is 0 everywhere, on all samples"


def _weights(method: str) -> str:
    return method if method in {"minmax", "percentile", "mse"} else "mse"


def test_samples_of_one_value_are_named(tiny_job, tmp_path, capsys):
    np.savez(tmp_path / "grey.npz", calib_x=np.full((8, 3, 8, 8), 0.5, np.float32))
    run(tiny_job, tiny_job.model, tmp_path / "run", f"data.path={tmp_path / 'grey.npz'}", "+algo=qdrop")
    assert "note: image: it is 0.5 everywhere, on all samples" in capsys.readouterr().out


def test_a_root_of_zeros_in_a_unit_gives_no_weight_without_a_number(tiny_job, tmp_path):
    """Its slope is infinite there: spectra, distances and deviations end in such roots."""
    model = network(
        """(float[N,3,8,8] image) => (float[N,10] scores) {
          [conv] a = Conv<pads=[1,1,1,1]>(image, w1, b1)
          [relu] b = Relu(a)
          [least] c = ReduceMin<axes=[2,3], keepdims=0>(b)
          [root] d = Sqrt(c)
          [head] scores = Gemm(d, w2, b2)
        }""",
        w1=(8, 3, 3, 3), b1=(8,), w2=(8, 10), b2=(10,),
    )  # fmt: skip
    report = run(tiny_job, saved(model, tmp_path), tmp_path / "run", "+algo=qdrop", "algo.unit=network")
    assert all(np.isfinite(unit["loss"]["last"]) for unit in report["units"])


def test_units_learn_from_outputs_whose_samples_lie_apart_in_memory():
    """Scores of each step in front of the samples, as recognisers of text give them, one number each."""
    model = network(
        """(float[N,5,6] x) => (float[5,N,1] y) {
          [time] t = Transpose<perm=[1,0,2]>(x)
          [wide] a = MatMul(t, w)
          [relu] b = Relu(a)
          [score] y = MatMul(b, v)
        }""",
        w=(6, 8),
        v=(8, 1),
    )
    samples = np.random.default_rng(0).normal(size=(16, 5, 6)).astype(np.float32)
    options = {"algo.iters": 2, "cluster.compile": False}
    result = dipo.quantize(model, {"x": samples}, algo="qdrop", options=options)
    assert [unit.steps for unit in result.report.units][-1] == 2
