import json
import math
from pathlib import Path

import numpy as np
import onnx
import pytest
import yaml
from networks import images, network, saved, tiny_cnn
from safetensors.numpy import load_file

from dipo.config import Config
from dipo.export.runtime import run_model
from dipo.launch import main
from dipo.section import from_plain

REPORT_KEYS = {"accuracy", "error", "layers", "units", "seconds", "peak_rss_mb", "workers", "versions"}
ERROR_KEYS = {"agreement", "cosine", "sqnr_db"}
FILES = {
    "ort": {"quantized.onnx"},
    "trt": {"quantized.onnx", "calibration.cache", "trt_clip_val.json"},
}
ALGOS = ("none", "bias_correction", "adaround", "brecq", "qdrop")


def run(job, folder: Path, *more: str) -> dict:
    assert main(job.arguments(f"run.dir={folder}", *more)) == 0
    return json.loads((folder / "report.json").read_text())


def files_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("platform", FILES)
@pytest.mark.parametrize("algo", ALGOS)
def test_a_job_leaves_a_model_that_computes_what_was_simulated(tiny_job, tmp_path, algo, platform):
    folder = tmp_path / "run"
    report = run(tiny_job, folder, f"algo={algo}", f"platform={platform}", "precision=w4a8")
    files = files_in(folder)
    assert {"config.yaml", "report.json", "statistics.safetensors", "dipo.log"} | FILES[platform] <= files
    assert not [name for name in files if Path(name).name.startswith(".") or name.endswith((".part", ".pkl"))]
    assert report.keys() >= REPORT_KEYS
    assert report["accuracy"].keys() == {"fp32", "simulated", "deployed"}
    for name in ("simulated_vs_fp32", "deployed_vs_fp32", "deployed_vs_simulated"):
        assert report["error"][name].keys() == ERROR_KEYS
    assert report["error"]["deployed_vs_simulated"]["cosine"] > 0.999
    assert report["error"]["deployed_vs_fp32"]["sqnr_db"] > 5
    assert [layer["name"] for layer in report["layers"]] == ["stem", "left", "right", "head"]
    assert report["samples"] == {"calibration": 24, "evaluation": 16}
    onnx.checker.check_model(folder / "quantized.onnx", full_check=True)


def test_the_deployed_accuracy_is_that_of_the_written_file(tiny_job, tmp_path):
    report = run(tiny_job, tmp_path / "run")
    with np.load(tiny_job.data) as data:
        for name, path in {"fp32": tiny_job.model, "deployed": tmp_path / "run" / "quantized.onnx"}.items():
            scores = run_model(path, [{"image": data["test_x"]}], threads=1)["scores"]
            assert report["accuracy"][name] == pytest.approx(100 * np.mean(scores.argmax(1) == data["test_y"]))


@pytest.mark.parametrize(
    ("algo", "units"), [("adaround", ["stem", "left", "right", "head"]), ("brecq", ["stem", "left", "head"])]
)
def test_units_of_a_reconstruction_are_reported_and_kept(tiny_job, tmp_path, algo, units):
    report = run(tiny_job, tmp_path / "run", f"algo={algo}", "precision=w4a4")
    assert [unit["name"] for unit in report["units"]] == units
    for unit in report["units"]:
        assert unit.keys() >= {"layers", "inputs", "outputs", "steps", "loss", "seconds"}
        assert unit["steps"] == 4
        assert math.isfinite(unit["loss"]["first"])
        assert math.isfinite(unit["loss"]["last"])
    kept = sorted((tmp_path / "run" / "units").iterdir())
    assert len(kept) == len(units)
    arrays = load_file(kept[0])
    assert arrays["stem/codes"].shape == (8, 3, 3, 3)


def test_more_steps_of_reconstruction_bring_the_network_nearer(tiny_job, tmp_path):
    rounded = run(tiny_job, tmp_path / "none", "precision=w3a3", "algo=none")
    trained = run(tiny_job, tmp_path / "qdrop", "precision=w3a3", "algo=qdrop", "algo.iters=60")
    assert trained["error"]["deployed_vs_fp32"]["sqnr_db"] > rounded["error"]["deployed_vs_fp32"]["sqnr_db"] + 1


def test_the_same_job_twice_gives_the_same_bytes(tiny_job, tmp_path):
    for name in ("a", "b"):
        run(tiny_job, tmp_path / name, "algo=qdrop")
    a, b = (tmp_path / name / "quantized.onnx" for name in ("a", "b"))
    assert a.read_bytes() == b.read_bytes()


def test_the_config_of_a_run_can_be_read_again(tiny_job, tmp_path):
    run(tiny_job, tmp_path / "run", "precision=w4a8", "seed=3", "precision.skip=[he*]")
    config = from_plain(Config, yaml.safe_load((tmp_path / "run" / "config.yaml").read_text("utf-8")))
    assert (config.seed, config.precision.skip, config.precision.weight_bits) == (3, ["he*"], 4)
    assert config.cluster.kind == "inline"


def test_without_labels_there_is_no_accuracy(tiny_job, tmp_path):
    np.save(tmp_path / "only.npy", images(20))
    report = run(tiny_job, tmp_path / "run", f"data.path={tmp_path / 'only.npy'}", "data.num=10")
    assert report["accuracy"] == {"fp32": None, "simulated": None, "deployed": None}
    assert report["samples"] == {"calibration": 10, "evaluation": 10}
    assert report["evaluated_on"] == "calibration"


def test_a_dry_run_writes_nothing_and_tells_the_plan(tiny_job, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    before = files_in(tmp_path)
    assert main(tiny_job.arguments("dry_run=true", "--verbose", "algo=brecq", f"run.dir={tmp_path / 'run'}")) == 0
    assert files_in(tmp_path) == before
    assert not (tmp_path / "run").exists()
    out = capsys.readouterr().out
    for word in ("stem", "left", "activation image: 8 bits", "brecq"):
        assert word in out


@pytest.mark.parametrize("batch", [1, 5])
def test_a_model_with_a_fixed_batch(tiny_job, tmp_path, batch):
    model = saved(tiny_cnn(batch=batch), tmp_path, "fixed.onnx")
    fixed = run(tiny_job, tmp_path / "fixed", f"model.path={model}", "algo=brecq")
    free = run(tiny_job, tmp_path / "free", "algo=brecq")
    assert fixed["error"] == free["error"]


def test_a_model_with_two_inputs_and_two_outputs(tiny_job, tmp_path):
    model = network(
        """(float[N,3,8,8] image, float[N,5] extra) => (float[N,4] scores, float[N,6] side) {
          [conv] a = Conv<pads=[1,1,1,1]>(image, w1)
          [relu] b = Relu(a)
          [pool] c = GlobalAveragePool(b)
          [flat] d = Flatten(c)
          [fc] e = Gemm(extra, w2)
          [act] side = Relu(e)
          [join] f = Concat<axis=1>(d, side)
          [head] scores = Gemm(f, w3)
        }""",
        w1=(8, 3, 3, 3), w2=(5, 6), w3=(14, 4),
    )  # fmt: skip
    path = saved(model, tmp_path, "two.onnx")
    rng = np.random.default_rng(2)
    np.savez(tmp_path / "two.npz", image=images(20), extra=rng.normal(size=(20, 5)).astype(np.float32))
    for algo in ("none", "brecq", "adaround"):
        report = run(
            tiny_job, tmp_path / algo, f"model.path={path}", f"data.path={tmp_path / 'two.npz'}", f"algo={algo}"
        )  # fmt: skip
        assert report["error"]["deployed_vs_simulated"]["cosine"] > 0.999
        assert report["error"]["deployed_vs_fp32"]["cosine"] > 0.99


def test_an_old_opset_is_raised_for_the_written_file(tiny_job, tmp_path):
    model = network(
        """(float[N,3,8,8] image) => (float[N,4] scores) {
          [conv] a = Conv<pads=[1,1,1,1]>(image, w1)
          [clip] b = Clip<min=0.0,max=6.0>(a)
          [pool] c = GlobalAveragePool(b)
          [flat] d = Flatten(c)
          [head] scores = Gemm(d, w2, b2)
        }""",
        opset=10, w1=(8, 3, 3, 3), w2=(8, 4), b2=(4,),
    )  # fmt: skip
    path = saved(model, tmp_path, "old.onnx")
    np.save(tmp_path / "x.npy", images(8))
    report = run(tiny_job, tmp_path / "run", f"model.path={path}", f"data.path={tmp_path / 'x.npy'}")
    assert report["error"]["deployed_vs_simulated"]["cosine"] > 0.999


@pytest.mark.slow
def test_compiled_kernels_give_what_eager_ones_do(tiny_job, tmp_path):
    eager = run(tiny_job, tmp_path / "eager", "algo=qdrop")
    compiled = run(tiny_job, tmp_path / "compiled", "algo=qdrop", "cluster.compile=true")
    assert compiled["error"]["deployed_vs_fp32"]["sqnr_db"] == pytest.approx(
        eager["error"]["deployed_vs_fp32"]["sqnr_db"], abs=1
    )


def test_sizes_count_tensors_beside_the_models(tiny_job, tmp_path, capsys):
    model = tmp_path / "beside.onnx"
    onnx.save(onnx.load(tiny_job.model), model, save_as_external_data=True, location="beside.bin", size_threshold=0)
    report = run(tiny_job, tmp_path / "run", f"model.path={model}")
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "run").glob("quantized.onnx*")}
    assert sizes.keys() == {"quantized.onnx", "quantized.onnx.data"}
    whole = model.stat().st_size + (tmp_path / "beside.bin").stat().st_size
    assert report["files"] == {"float": whole, **sizes}
    written = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("written:"))
    assert f"({sum(sizes.values()) / whole:.2f} of the float file)" in written
    assert ".data" not in written


def test_a_file_that_computes_something_else_is_told_of_aloud(tiny_job, tmp_path, capsys, monkeypatch):
    def disturbed(*arguments, **named):
        noise = np.random.default_rng(0).standard_normal
        return {
            name: array + (0.3 * array.std() * noise(array.shape)).astype(array.dtype)
            for name, array in run_model(*arguments, **named).items()
        }

    assert run(tiny_job, tmp_path / "well")["notes"] == []
    monkeypatch.setattr("dipo.stages.evaluate.run_model", disturbed)
    report = run(tiny_job, tmp_path / "run")
    decibels = report["error"]["deployed_vs_simulated"]["sqnr_db"]
    assert 5 < decibels < 20
    (note,) = report["notes"]
    assert note["name"] == "quantized.onnx"
    assert f"only {decibels:.1f} dB from the simulation" in note["what"]
    assert f"python -m dipo.verify run={tmp_path / 'run'}" in note["what"]
    assert f"note: quantized.onnx: {note['what']}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "count"),
    [
        (("precision.weight_block=2", "platform=trt"), 1),
        (("precision.weight_block=2", "platform=trt", "precision=w4a8", "precision.first_last_bits=null"), 0),
        (("precision.weight_block=2",), 0),
        (("precision.weight_block=4096",), 1),
        ((), 0),
    ],
)
def test_blocks_that_no_layer_has_are_told_of(tiny_job, tmp_path, options, count):
    report = run(tiny_job, tmp_path / "run", *options)
    assert [note["name"] for note in report["notes"]].count("precision.weight_block") == count
