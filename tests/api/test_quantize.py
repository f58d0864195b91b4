import gc
import hashlib
import json
import logging
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from networks import images, network, saved, tiny_cnn
from torch.utils.data import DataLoader, TensorDataset

import dipo
from dipo.launch import main

IMAGES = images(24)
LABELS = np.random.default_rng(1).integers(0, 10, 24)
QUICK: dict[str, Any] = {"cluster.compile": False}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tiny_cnn(), tmp_path_factory.mktemp("model"), "tiny.onnx")


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("samples") / "x.npz"
    np.savez(path, x=IMAGES, y=LABELS)
    return path


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def tuples(size: int = 5) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for start in range(0, 24, size):
        yield IMAGES[start : start + size], LABELS[start : start + size]


def test_models_and_samples_give_the_same_bytes_however_they_are_held(model: Path, samples: Path) -> None:
    loader = DataLoader(TensorDataset(torch.from_numpy(IMAGES), torch.from_numpy(LABELS)), batch_size=7)
    proto = onnx.load(model)
    (name,) = (value.name for value in proto.graph.input)
    pairs: list[tuple[Any, Any]] = [
        (model, samples),
        (str(model), {"x": IMAGES, "y": LABELS}),
        (proto, loader),
        (ir.load(model), tuples()),
        (proto, {name: torch.from_numpy(IMAGES)}),
        (model, tuples),
        (ir.load(model), list(IMAGES)),
        (model, np.load(samples)),
    ]
    results = [dipo.quantize(net, data, precision="w4a8", options=QUICK) for net, data in pairs]
    assert len({digest(result.folder / "quantized.onnx") for result in results}) == 1
    accuracies = {str(result.report.accuracy) for result in results}
    assert len(accuracies) == 2, "with labels and without"
    assert onnx.load(model).SerializeToString() == proto.SerializeToString(), "the model is not changed"


def test_the_command_line_makes_the_same(model: Path, samples: Path, tmp_path: Path) -> None:
    words = [f"model.path={model}", f"data.path={samples}", "cluster=inline", "cluster.compile=false", "algo.iters=3"]
    assert main([*words, "algo=qdrop", "precision=w4a4", "platform=trt", f"run.dir={tmp_path / 'run'}"]) == 0
    options = {**QUICK, "algo.iters": 3}
    result = dipo.quantize(model, samples, algo="qdrop", precision="w4a4", target="trt", options=options)
    for name in ("quantized.onnx", "calibration.cache", "statistics.safetensors"):
        assert digest(result.folder / name) == digest(tmp_path / "run" / name), name
    assert result.model.SerializeToString() == onnx.load(tmp_path / "run" / "quantized.onnx").SerializeToString()
    stored = json.loads((tmp_path / "run" / "report.json").read_text())
    assert result.report.to_plain()["error"] == stored["error"]


def test_several_inputs() -> None:
    net = network(
        """(float[N,3,8,8] image, float[N,5] extra) => (float[N,4] scores) {
          [conv] a = Conv<pads=[1,1,1,1]>(image, w1)
          [pool] c = GlobalAveragePool(a)
          [flat] d = Flatten(c)
          [fc] e = Gemm(extra, w2)
          [join] f = Concat<axis=1>(d, e)
          [head] scores = Gemm(f, w3)
        }""",
        w1=(8, 3, 3, 3), w2=(5, 6), w3=(14, 4),
    )  # fmt: skip
    extra = np.random.default_rng(0).normal(size=(24, 5)).astype(np.float32)
    one = dipo.quantize(net, zip(IMAGES, extra, strict=True), options=QUICK)
    two = dipo.quantize(net, {"image": IMAGES, "extra": extra}, options=QUICK)
    assert digest(one.folder / "quantized.onnx") == digest(two.folder / "quantized.onnx")


def test_presets_may_be_options(model: Path, samples: Path) -> None:
    config = dipo.quantize(
        model,
        samples,
        algo={"steps": ["bias_correction"], "name": "mine"},
        precision={"weight_bits": 6, "skip": ("he*",)},
        calib={"method": "mse"},
        options=QUICK,
        seed=3,
    ).report
    assert (config.algo, config.precision) == ("mine", "w6a8")


def test_pixels_are_preprocessed_as_a_preset_says() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 8, 8, 3), np.uint8)
    floats = ((pixels / np.float32(255) - 0.5) / 0.5).astype(np.float32).transpose(0, 3, 1, 2)
    by_preset = dipo.quantize(tiny_cnn(), pixels, options={**QUICK, "data": "digits"})
    by_mapping = dipo.quantize(tiny_cnn(), pixels, options={**QUICK, "data": {"mean": [0.5], "std": [0.5]}})
    assert digest(by_preset.folder / "quantized.onnx") == digest(by_mapping.folder / "quantized.onnx")
    difference = dipo.quantize(tiny_cnn(), floats, options=QUICK).compare(by_preset)
    assert next(iter(difference.values())).sqnr_db > 40


def test_without_samples(model: Path) -> None:
    assert dipo.quantize(model, algo="dfq", options=QUICK).report.evaluated_on == "noise"


def test_evaluation_samples(model: Path, samples: Path) -> None:
    result = dipo.quantize(model, samples, eval_data=tuples(), options={**QUICK, "data.num": 8, "data.eval_num": 10})
    assert result.report.samples == {"calibration": 8, "evaluation": 10}
    assert result.report.evaluated_on == "evaluation"


def test_nothing_is_printed_or_changed(model: Path, samples: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def state() -> list[Any]:
        loggers = [logging.getLogger(), logging.getLogger("dipo"), logging.getLogger("ray")]
        logs = [(list(log.handlers), log.level, log.propagate, log.disabled) for log in loggers]
        signals = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
        return [logs, signals, torch.get_num_threads(), list(sys.path), torch.random.get_rng_state().tolist()]

    torch.set_num_threads(2)
    try:
        before = state()
        options = {**QUICK, "algo.iters": 2, "cluster.threads": 1}
        result = dipo.quantize(model, samples, algo="qdrop", options=options)
        result.compare()
        with dipo.load(model, tuples(), options=options) as network:
            quantized = dipo.apply(dipo.calibrate(network), "qdrop", iters=2)
            dipo.evaluate(quantized)
        assert state() == before
    finally:
        torch.set_num_threads(1)
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_import_is_light() -> None:
    code = """
        import sys, dipo
        heavy = {"torch", "onnx", "onnx_ir", "onnxruntime", "ray", "numpy", "hydra"} & set(sys.modules)
        assert not heavy, heavy
        assert "quantize" in dir(dipo)
        assert callable(dipo.quantize)
        try:
            dipo.nothing
        except AttributeError as error:
            assert "nothing" in str(error)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)
    assert set(dipo.__all__) <= set(dir(dipo))
    assert all(hasattr(dipo, name) for name in dipo.__all__)


def test_temporary_files_go_away(model: Path) -> None:
    result = dipo.quantize(onnx.load(model), tuples(), options=QUICK)
    folder = result.folder
    assert folder.is_dir()
    del result
    gc.collect()
    assert not folder.exists()


def test_a_named_folder_is_kept_and_gone_on_with(model: Path, tmp_path: Path) -> None:
    options = {**QUICK, "algo.iters": 2}

    def again(data: Any = None, **more: Any) -> dipo.Result:
        net = onnx.load(model)
        given = tuples() if data is None else data
        return dipo.quantize(net, given, folder=tmp_path / "run", **{"algo": "qdrop", "options": options, **more})

    first = digest(again().folder / "quantized.onnx")
    (tmp_path / "run" / "report.json").unlink()
    units = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run" / "units").iterdir()}
    assert digest(again(tuples(3)).folder / "quantized.onnx") == first
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run" / "units").iterdir()} == units
    with pytest.raises(dipo.UserError, match="another data"):
        again(IMAGES[:7])
    with pytest.raises(dipo.UserError, match=r"precision\.weight_bits=8, not 4"):
        again(precision="w4a8")
    assert main([f"run.resume={tmp_path / 'run'}"]) == 0


def test_save_and_go_on_elsewhere(model: Path, tmp_path: Path) -> None:
    result = dipo.quantize(onnx.load(model), tuples(), options=QUICK)
    saved_to = result.save(tmp_path / "out")
    names = {path.name for path in saved_to.iterdir()}
    assert {"quantized.onnx", "report.json", "config.yaml", "events.jsonl", "inputs"} <= names
    with pytest.raises(dipo.UserError, match="holds a run already"):
        result.save(tmp_path / "out")
    del result
    gc.collect()
    (tmp_path / "out" / "report.json").unlink()
    assert main([f"run.resume={saved_to}"]) == 0


def test_export(model: Path, samples: Path, tmp_path: Path) -> None:
    result = dipo.quantize(model, samples, precision="w4a8", options=QUICK)
    beside = result.export("snpe")
    assert {path.parent for path in beside} == {result.folder / "snpe"}
    elsewhere = result.export("snpe", tmp_path / "a" / "b")
    assert [digest(path) for path in elsewhere] == [digest(path) for path in beside]
    assert not list((tmp_path / "a" / "b").glob(".*"))
    own = result.export("ort", tmp_path / "own")
    assert digest(own[0]) == digest(result.folder / "quantized.onnx")
    old = result.export("trt", tmp_path / "trt", options={"platform.version": "8.6.1"})
    assert "TRT-8601" in next(path for path in old if path.name == "calibration.cache").read_text()
    whole = result.export("ort", tmp_path / "qop", options={"export.format": "qop"})
    assert any(node.op_type == "QLinearConv" for node in onnx.load(whole[0]).graph.node)


def test_compare(model: Path, samples: Path) -> None:
    one = dipo.quantize(model, samples, precision="w8a8", options=QUICK)
    two = dipo.quantize(model, samples, precision={"weight_bits": 3}, options=QUICK)
    (output,) = one.compare()
    assert one.compare()[output].sqnr_db > two.compare(model)[output].sqnr_db
    assert two.compare(onnx.load(model), tuples())[output] == two.compare()[output]
    assert one.compare(one)[output].sqnr_db == 200
    assert two.compare(one, IMAGES[:3])[output].sqnr_db < 40


BAD: list[tuple[dict[str, Any], str]] = [
    ({"model": 3}, "model is int: give the path of an ONNX file"),
    ({"model": "absent.onnx"}, "there is no such file"),
    ({"model": "zoo:absent.onnx"}, "no such file comes with dipo"),
    ({"model": onnx.ModelProto()}, "model"),
    ({"data": None}, "no samples"),
    ({"data": "absent.npz"}, r"data\.path=.*absent\.npz does not exist"),
    ({"data": "no_module:f"}, "data.source=no_module:f: no_module cannot be imported"),
    ({"data": 3}, "data is int: give arrays by name, or an iterable"),
    ({"data": [IMAGES[:, :1]]}, "element 0 of data holds samples of 1x"),
    ({"data": {"foo": IMAGES}}, "data holds foo"),
    ({"data": lambda: None}, "data: the function returned nothing"),
    ({"data": lambda: 1 / 0}, "data: calling it raised ZeroDivisionError"),
    ({"eval_data": []}, "eval_data gives no samples"),
    ({"algo": "qdrp"}, "unknown algo 'qdrp': did you mean qdrop"),
    ({"precision": "w5a5"}, "unknown precision 'w5a5'"),
    ({"calib": "foo"}, "unknown calib 'foo'"),
    ({"target": "trtt"}, "unknown platform 'trtt': did you mean trt"),
    ({"cluster": "rays"}, "unknown cluster 'rays'"),
    ({"precision": {"weight_bit": 4}}, r"unknown option 'precision\.weight_bit': did you mean precision\.weight_bits"),
    ({"options": {"algo.iter": 4}}, r"unknown option 'algo\.iter': did you mean"),
    ({"options": {"algo.iters": "many"}}, "algo.iters 'many': give a whole number"),
    ({"options": {"model.path": "x"}}, r"options: model\.path is the argument model"),
    ({"options": {"run.dir": "x"}}, r"options: run\.dir is the argument folder"),
    ({"options": {"dry_run": True}}, "options: dry_run is of the command line alone"),
    ({"options": {"data.num": 99}}, r"data\.num=99, but .* has 24 samples"),
    ({"options": {"precision.skip": ["*"]}}, "no layer is left to quantize"),
    ({"options": {"data": "digit"}}, "unknown data 'digit': did you mean digits"),
    ({"seed": -1}, "seed -1: give a"),
]


@pytest.mark.parametrize(("wrong", "said"), BAD, ids=[said for _, said in BAD])
def test_what_is_wrong_is_said_in_a_sentence(
    model: Path, samples: Path, tmp_path: Path, wrong: dict[str, Any], said: str
) -> None:
    given = {"model": model, "data": samples, "folder": tmp_path / "run", **wrong}
    with pytest.raises(dipo.UserError, match=said) as caught:
        dipo.quantize(given.pop("model"), given.pop("data"), **given)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists(), "nothing is left behind"


def test_what_is_wrong_with_a_result_is_said_in_a_sentence(model: Path, samples: Path, tmp_path: Path) -> None:
    result = dipo.quantize(model, samples, options=QUICK)
    (tmp_path / "file").write_text("")
    wrong = [
        (lambda: result.export("trtt"), "unknown target 'trtt': did you mean trt"),
        (lambda: result.export("snpe", options={"platform.version": "8.6"}), "platform.version"),
        (lambda: result.export("snpe", options={"algo.iters": 3}), "options: algo.iters says nothing about the files"),
        (lambda: result.export("snpe", tmp_path / "file"), "file: cannot be written"),
        (lambda: result.save(tmp_path / "file"), "cannot be written"),
        (lambda: result.compare("absent.onnx"), "ONNX Runtime cannot run .*absent.onnx"),
        (lambda: result.compare(data=[IMAGES[:, :1]]), "element 0 of data holds samples of 1x"),
    ]
    for call, said in wrong:
        with pytest.raises(dipo.UserError, match=said) as caught:
            call()
        assert "\n" not in str(caught.value)
