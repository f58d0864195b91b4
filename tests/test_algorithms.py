"""The steps of an algorithm in whole jobs: what each leaves in the run folder and in the written model."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from networks import images, network, saved
from safetensors.numpy import load_file

from dipo.launch import main

PARTS = ("scale", "bias", "mean", "var")
BN = ", ".join(f"bn_{part}{{0}}" for part in PARTS)


def chain(folder: Path) -> Path:
    """Three convolutions with BatchNorm, one of them depthwise, channels of very different ranges, and a classifier."""
    rng = np.random.default_rng(0)
    weights = {
        "w1": rng.normal(0, 0.3, (8, 3, 3, 3)) * np.logspace(-1, 1, 8)[:, None, None, None],
        "w2": rng.normal(0, 0.3, (8, 1, 3, 3)),
        "w3": rng.normal(0, 0.3, (8, 8, 1, 1)),
    }
    norms: dict[str, torch.Tensor] = {}
    x = torch.tensor(images(64, seed=3))
    for index, (groups, pads) in enumerate([(1, 1), (8, 1), (1, 0)], start=1):
        x = F.conv2d(x, torch.tensor(weights[f"w{index}"], dtype=torch.float32), padding=pads, groups=groups)
        mean, var = x.mean(dim=(0, 2, 3)), x.var(dim=(0, 2, 3))
        scale = torch.tensor(np.geomspace(0.1, 3, 8), dtype=torch.float32)
        bias = torch.tensor(rng.uniform(-0.2, 0.8, 8), dtype=torch.float32) * scale
        norms |= {f"bn_{part}{index}": v for part, v in zip(PARTS, (scale, bias, mean, var), strict=True)}
        x = F.batch_norm(x, mean, var, scale, bias).relu()
    model = network(
        f"""(float[N,3,8,8] image) => (float[N,10] scores) {{
          [stem] a = Conv<pads=[1,1,1,1]>(image, w1)
          [norm1] a1 = BatchNormalization(a, {BN.format(1)})
          [relu1] b = Relu(a1)
          [deep] c = Conv<pads=[1,1,1,1], group=8>(b, w2)
          [norm2] c1 = BatchNormalization(c, {BN.format(2)})
          [relu2] d = Relu(c1)
          [point] e = Conv(d, w3)
          [norm3] e1 = BatchNormalization(e, {BN.format(3)})
          [relu3] h = Relu(e1)
          [pool] i = GlobalAveragePool(h)
          [flat] j = Flatten(i)
          [head] scores = Gemm<transB=1>(j, w4, b4)
        }}""",
        **{name: array.astype(np.float32) for name, array in weights.items()},
        w4=(10, 8),
        b4=(10,),
        **{name: tensor.numpy() for name, tensor in norms.items()},
    )
    return saved(model, folder, "chain.onnx")


@pytest.fixture
def run(tiny_job, tmp_path):
    """Run a job on the chain; return its folder and its report."""
    model = chain(tmp_path)

    def job(*how: str, name: str = "run") -> tuple[Path, dict]:
        folder = tmp_path / name
        assert main(tiny_job.arguments(f"model.path={model}", f"run.dir={folder}", *how)) == 0
        return folder, json.loads((folder / "report.json").read_text())

    return job


def weights(folder: Path) -> dict[str, np.ndarray]:
    """Integer weights of the written model less their zero points, by layer."""
    model = onnx.load(folder / "quantized.onnx")
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    made = {node.output[0]: node for node in model.graph.node}
    found = {}
    for node in model.graph.node:
        if node.op_type in {"Conv", "Gemm"}:
            codes, _, *zero = made[node.input[1]].input
            axis = next((a.i for a in made[node.input[1]].attribute if a.name == "axis"), 0)
            shape = [-1 if d == axis else 1 for d in range(constants[codes].ndim)]
            point = constants[zero[0]].astype(int) if zero else np.zeros(1, int)
            found[node.name] = constants[codes].astype(int) - (point.reshape(shape) if point.ndim else point)
    return found


STEPS = {
    "equalize": ("+algo=equalize", "algo.equalize_per_channel=true"),
    "update_bn": ("+algo=update_bn",),
    "sparse": ("+algo=sparse", "algo.sparsity_pattern=2:4"),
    "gptq": ("+algo=gptq",),
    "gptq behind others": ("algo.steps=[equalize,sparsify,update_bn,gptq,bias_correction,tune]", "algo.tune_iters=4"),
    "tune": ("+algo=tune", "algo.tune_iters=4"),
    "full": ("+algo=full", "algo.tune_iters=4"),
    "stage": ("+algo=brecq", "algo.unit=stage"),
    "network": ("+algo=qdrop", "algo.unit=network"),
    "fisher": ("+algo=brecq", "algo.loss=fisher"),
    "norm": ("+algo=brecq", "algo.loss_norm=2.4"),
    "float inputs": ("+algo=brecq", "algo.inputs=float"),
    "straight through": ("+algo=brecq", "algo.rounding=straight_through"),
    "scales": ("+algo=brecq", "algo.train_scale=true"),
    "order": ("algo.steps=[equalize,sparsify,update_bn,adaround,bias_correction,tune,analyze]", "algo.tune_iters=4"),
}


@pytest.mark.parametrize("schedule", ["sequential", "parallel"])
@pytest.mark.parametrize("how", STEPS.values(), ids=STEPS)
def test_every_step_leaves_a_model_that_computes_what_was_simulated(run, how, schedule):
    folder, report = run(*how, "precision=w4a8", f"cluster.schedule={schedule}")
    assert report["error"]["deployed_vs_simulated"]["cosine"] > 0.999
    assert report["error"]["deployed_vs_fp32"]["sqnr_db"] > 5
    onnx.checker.check_model(folder / "quantized.onnx", full_check=True)


@pytest.mark.parametrize(
    "how", [STEPS[name] for name in ("order", "sparse", "update_bn", "fisher", "gptq")], ids=" ".join
)
def test_every_step_is_resumed_to_the_same_bits(run, how):
    whole, _ = run(*how, "precision=w4a8", "cluster.grad_shards=2")
    expected = (whole / "quantized.onnx").read_bytes()
    files = sorted(path.name for path in (whole / "units").iterdir())
    for index in range(0, len(files), max(1, len(files) // 4)):
        (whole / "report.json").unlink()
        for name in files[index:]:
            (whole / "units" / name).unlink()
        assert main([f"run.resume={whole}"]) == 0
        assert (whole / "quantized.onnx").read_bytes() == expected


def test_workers_do_not_change_what_the_steps_find(run):
    how = ("algo.steps=[equalize,sparsify,update_bn,brecq,bias_correction,tune,analyze]", "algo.tune_iters=4")
    more = ("precision=w4a4", "cluster.grad_shards=2", "algo.loss=fisher", "cluster.threads=1")
    one, report = run(*how, *more)
    two, other = run(*how, *more, "cluster=ray", "cluster.workers=2", name="two")
    assert (one / "quantized.onnx").read_bytes() == (two / "quantized.onnx").read_bytes()
    assert report["analysis"] == other["analysis"]


@pytest.mark.parametrize("reconstruction", ["adaround", "qdrop"])
def test_zeros_of_a_pattern_survive_reconstruction_and_export(run, reconstruction):
    folder, _ = run(f"algo.steps=[sparsify,{reconstruction},tune]", "algo.sparsity_pattern=2:4", "precision=w4a8")
    codes = weights(folder)["point"]
    groups = np.moveaxis(codes, 1, -1).reshape(-1, 4)
    assert (np.count_nonzero(groups, axis=1) <= 2).all()
    assert np.count_nonzero(groups) > len(groups)
    first = weights(folder)["stem"]
    assert np.count_nonzero(first) > 0.6 * first.size, "the first layer is left alone"


def test_a_job_without_samples_has_ranges_and_biases_from_batchnorm(run, tmp_path):
    folder, report = run("+algo=dfq", "data.path=null")
    assert report["evaluated_on"] == "noise"
    assert report["accuracy"] == {"fp32": None, "simulated": None, "deployed": None}
    assert report["error"]["deployed_vs_fp32"]["sqnr_db"] > 10
    assert not (folder / "statistics.safetensors").exists()


@pytest.mark.parametrize("how", [("+algo=brecq",), ("calib=mse",), ("+algo=dfq", "algo.bias_source=data")])
def test_what_needs_samples_is_refused_without(tiny_job, tmp_path, capsys, how):
    assert main(tiny_job.arguments(f"run.dir={tmp_path / 'run'}", "data.path=null", *how)) == 2
    assert "no samples: give data.path=" in capsys.readouterr().err


def test_equalization_is_reported(run):
    _, report = run("+algo=equalize", "precision.weight_per_channel=false")
    assert [row["layers"] for row in report["equalized"]] == [["stem", "deep"], ["deep", "point"], ["point", "head"]]
    assert max(row["max_scale"] for row in report["equalized"]) > 2
    assert report["parity"] < 1e-4, "the float function is what it was"


def test_weights_with_a_scale_for_each_channel_are_not_equalized_unless_that_is_asked_for(run, capsys):
    _, report = run("+algo=equalize")
    assert report["equalized"] == []
    assert "algo.equalize_per_channel=true equalizes them" in capsys.readouterr().out


def test_the_analysis_names_each_layer_and_what_hurts_it(run, capsys):
    _, report = run("+algo=analyze", "precision=w2a4", "precision.first_last_bits=null")
    rows = report["analysis"]["layers"]
    assert {row["name"] for row in rows} == {"stem", "deep", "point", "head"}
    assert {row["hurts"] for row in rows} <= {"weight", "activation"}
    assert "most sensitive" in capsys.readouterr().out


# Ranges, chosen again


def _seen(folder):
    """Return the bytes of the statistics, less the room beyond them, which is another with other ranges."""
    arrays = load_file(folder / "statistics.safetensors")
    return {name: each.tobytes() for name, each in arrays.items() if not name.endswith("/room")}


@pytest.mark.parametrize("method", ["kl", "octav", "minmax", "percentile"])
def test_another_range_method_takes_the_statistics_that_are_there(run, tiny_job, method, capsys):
    folder, before = run("+algo=bias_correction", "precision.act_bits=4")
    statistics = _seen(folder)
    capsys.readouterr()
    assert main([f"calib={method}", f"run.resume={folder}"]) == 0
    assert "calibrate:" not in capsys.readouterr().out
    assert _seen(folder) == statistics
    report = json.loads((folder / "report.json").read_text())
    assert report["seconds"].get("calibrate", 0) + report["seconds"]["ranges"] < before["seconds"]["ranges"] + 5
    fresh, again = run("+algo=bias_correction", "precision.act_bits=4", f"calib={method}", name="fresh")
    assert (folder / "quantized.onnx").read_bytes() == (fresh / "quantized.onnx").read_bytes()
    assert report["error"] == again["error"]
    assert main([f"run.resume={folder}"]) == 0
    assert "the run is finished" in capsys.readouterr().out


def test_a_run_whose_ranges_were_being_chosen_again_is_resumed(run):
    folder, _ = run("+algo=brecq")
    assert main(["calib=minmax", f"run.resume={folder}"]) == 0
    expected = (folder / "quantized.onnx").read_bytes()
    units = load_file(folder / "units" / "brecq-001.safetensors")
    for name in ("report.json", "units/brecq-001.safetensors"):
        (folder / name).unlink()
    assert main([f"run.resume={folder}"]) == 0
    assert (folder / "quantized.onnx").read_bytes() == expected
    assert units.keys() == load_file(folder / "units" / "brecq-001.safetensors").keys()
