import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from networks import images, saved, tiny_cnn

import dipo

IMAGES = images(24)
OPTIONS: dict[str, Any] = {"cluster.compile": False}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tiny_cnn(), tmp_path_factory.mktemp("model"), "tiny.onnx")


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("target", ["ort", "openvino"])
@pytest.mark.parametrize("schedule", ["sequential", "parallel"])
def test_one_by_one_gives_the_bytes_of_quantize(model: Path, tmp_path: Path, target: str, schedule: str) -> None:
    options = {**OPTIONS, "cluster.schedule": schedule}
    steps = ["equalize", "bias_correction", {"qdrop": {"iters": 3}}]
    algo = {"name": "equalize+bias_correction+qdrop", "steps": steps}
    whole = dipo.quantize(model, IMAGES, algo=algo, precision="w4a4", target=target, options=options)

    with dipo.load(model, IMAGES, precision="w4a4", target=target, options=options) as network:
        quantized = dipo.calibrate(dipo.apply(network, "equalize"))
        quantized = dipo.apply(quantized, "bias_correction")
        quantized = dipo.apply(quantized, "qdrop", iters=3)
        report = dipo.evaluate(quantized)
        files = dipo.export_to(quantized, tmp_path / "out")
        for_snpe = dipo.export_to(quantized, tmp_path / "snpe", target="snpe")
    for file in files:
        assert digest(file) == digest(whole.folder / file.name), file.name
    assert [digest(file) for file in for_snpe] == [digest(file) for file in whole.export("snpe")]
    plain, expected = report.to_plain(), whole.report.to_plain()
    for key in ("algo", "precision", "accuracy", "error", "layers", "samples", "equalized", "notes"):
        assert plain[key] == expected[key], key
    assert [(row["name"], row["step"]) for row in plain["units"]] == [
        (row["name"], row["step"]) for row in expected["units"]
    ]


def test_a_network_says_what_is_planned(model: Path) -> None:
    with dipo.load(model, IMAGES, precision="w4a4", options={"precision.first_last_bits": None, **OPTIONS}) as network:
        assert [layer.name for layer in network.layers] == list(network.plan.layers)
        assert {layer.weight_bits for layer in network.layers} == {4}
        assert network.layers[0].operator == "Conv"
        weights = {array.name: np.prod(array.dims) for array in onnx.load(model).graph.initializer}
        assert network.layers[0].num_weights in weights.values()
        np.testing.assert_array_equal(next(iter(network.samples.read(0, 2).inputs.values())), IMAGES[:2])


def test_steps_branch_off(model: Path) -> None:
    """The same calibrated network may be taken for several experiments."""
    with dipo.load(model, IMAGES, precision={"weight_bits": 3}, options=OPTIONS) as network:
        first = dipo.calibrate(network)
        before = dipo.evaluate(first)
        short, long = (dipo.apply(first, "adaround", iters=iters) for iters in (1, 30))
        assert dipo.evaluate(first).error == before.error
        errors = {dipo.evaluate(each).error["simulated_vs_fp32"].sqnr_db for each in (first, short, long)}
        assert len(errors) == 3


def test_another_plan_needs_no_second_reading(model: Path) -> None:
    def once() -> Any:
        yield IMAGES

    with dipo.load(model, once(), precision={"weight_bits": 2, "first_last_bits": None}, options=OPTIONS) as network:
        worst = min(dipo.evaluate(dipo.calibrate(network)).layers, key=lambda row: row.sqnr_db).name
        better = dipo.plan(network, precision={"overrides": {worst: {"weight_bits": 8}}})
        assert {layer.name: layer.weight_bits for layer in better.layers}[worst] == 8
        assert {layer.name: layer.weight_bits for layer in network.layers}[worst] != 8
        other = dipo.plan(better, target="trt", calib="mse", precision="w8a8")
        assert {layer.weight_bits for layer in other.layers} == {8}
        assert dipo.evaluate(dipo.calibrate(other)).platform == "trt"


def test_analysis(model: Path) -> None:
    with dipo.load(model, IMAGES, precision="w4a4", options=OPTIONS) as network:
        report = dipo.evaluate(dipo.apply(dipo.calibrate(network), "analyze"))
    assert report.analysis is not None


def test_files_go_with_the_network(model: Path) -> None:
    with dipo.load(onnx.load(model), IMAGES, options=OPTIONS) as network:
        folder = network.loaded.path.parents[2]
        dipo.calibrate(network)
        assert folder.is_dir()
    assert not folder.exists()
    with pytest.raises(dipo.UserError, match="the network is closed"):
        dipo.calibrate(network)


def test_what_is_wrong_is_said_in_a_sentence(model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(dipo.UserError, match="unknown precision 'w1'"):
        dipo.load(model, IMAGES, precision="w1")
    with dipo.load(model, IMAGES, options=OPTIONS) as network:
        quantized = dipo.calibrate(network)
        wrong = [
            (lambda: dipo.apply(network, "qdrop"), "qdrop works on the quantized network, calibrate it first"),
            (lambda: dipo.apply(quantized, "equalize"), "equalize works on the float network"),
            (lambda: dipo.apply(quantized, "qdrp"), "algo.steps 'qdrp': did you mean qdrop"),
            (
                lambda: dipo.apply(quantized, "qdrop", iter=3),
                "iter.*did you mean algo.iters|unknown option 'algo.iter'",
            ),
            (lambda: dipo.apply(dipo.apply(quantized, "bias_correction"), "bias_correction"), "comes twice"),
            (lambda: dipo.plan(network, target="trtt"), "unknown platform 'trtt'"),
            (lambda: dipo.plan(network, precision="w5"), "unknown precision 'w5'"),
            (lambda: dipo.plan(network, options={"precision.skip": ["nothing"]}), "precision.skip"),
            (lambda: dipo.export_to(quantized, tmp_path, target="trtt"), "unknown target 'trtt'"),
            (lambda: dipo.export_to(quantized, tmp_path / "file"), "cannot be written"),
        ]
        for call, said in wrong:
            with pytest.raises(dipo.UserError, match=said) as caught:
                call()
            assert "\n" not in str(caught.value)
