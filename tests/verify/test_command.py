import json
import sys

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from dipo.cli.verify import main
from dipo.verify import consumers
from dipo.verify.verdict import Unavailable, require


def words(text):
    return " ".join(text.replace("│", " ").split())


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")


def test_models_of_a_run_and_of_its_other_targets(write, capsys):
    run = write("ort")
    write("trt", below="trt")
    assert main([f"run={run}"]) == 0
    said = words(capsys.readouterr().out)
    assert f"{run}: 8 samples of the run's samples" in said
    assert "quantized.onnx ONNX Runtime" in said and "trt/deploy.onnx ONNX Runtime" in said
    # What nobody can be asked about is named, and never counts as passed.
    assert "trt/calibration.cache, nobody: not checked: TensorRT up to 10 reads it" in said


def test_records_of_atlas_and_ti(write, capsys):
    for platform, name in (("atlas", "scale_offset_record.txt"), ("ti", "tidl_quant_params.prototxt")):
        folder = write(platform, below=platform)
        assert main([f"file={folder / name}"]) == 0
        assert "0 0" in words(capsys.readouterr().out)


@pytest.mark.parametrize("platform", ["atlas", "ti"])
def test_a_network_of_an_old_operator_set(write, capsys, platform):
    run = write(platform)
    model = onnx.load(run / "deploy.onnx")
    model.opset_import[0].version = 11
    onnx.save(model, run / "deploy.onnx")
    assert main([f"run={run}"]) == 0
    assert "refused" not in capsys.readouterr().out


def test_what_an_export_keeps_for_itself_is_no_file_of_the_target(write, capsys):
    run = write("ort")
    (write("rv", below="rv") / "export.json").write_text("{}")
    assert main([f"run={run}"]) == 0
    said = capsys.readouterr().out
    assert "rv_quantized_param.json" in said and "export.json" not in said


def test_all_names_the_accepted(write, capsys):
    run = write("ort")
    assert main([f"run={run}", "all=true"]) == 0
    assert "accepted w1_quantized" in capsys.readouterr().out


def test_the_stored_figure_is_shown(write, capsys):
    run = write("ort")
    (run / "report.json").write_text(json.dumps({"error": {"deployed_vs_simulated": {"sqnr_db": 61.25}}}))
    assert main([f"run={run}"]) == 0
    assert "against the simulation, as the run found it: 61.25 dB" in capsys.readouterr().out


def test_a_broken_model_is_refused(write, capsys):
    run = write("ort")
    model = onnx.load(run / "quantized.onnx")
    model.graph.node[0].op_type = "NoSuchOperator"
    onnx.save(model, run / "quantized.onnx")
    assert main([f"run={run}"]) == 1
    assert "refused" in capsys.readouterr().out


def test_an_unknown_layer_is_ignored(write, capsys):
    run = write("atlas")
    record = run / "scale_offset_record.txt"
    record.write_text(record.read_text().replace('"conv1"', '"conv9"'))
    assert main([f"run={run}"]) == 1
    assert "ignored conv9: no node of deploy.onnx has this name" in capsys.readouterr().out


def test_text_that_protobuf_does_not_take(write, capsys):
    run = write("ti")
    record = run / "tidl_quant_params.prototxt"
    record.write_text(record.read_text().replace("bit_depth", "bits"))
    assert main([f"run={run}"]) == 1
    assert "refused: ValueError: no TIDLNetQuantParams" in capsys.readouterr().out


def test_weights_off_the_grid_are_recomputed(write, capsys):
    run = write("atlas")
    model = onnx.load(run / "deploy.onnx")
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == "w2")
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(1.01), "w2"))
    onnx.save(model, run / "deploy.onnx")
    assert main([f"run={run}"]) == 0
    assert "recomputed w2: lies off the grid" in capsys.readouterr().out


def test_a_consumer_that_is_not_installed_is_named(write, capsys, monkeypatch):
    def gone(file, probe):
        require("no_such_consumer", get="pip install it")

    monkeypatch.setitem(consumers.CONSUMERS, "ONNX Runtime", gone)
    assert main([f"run={write('ort')}"]) == 0
    said = words(capsys.readouterr().out)
    assert "ONNX Runtime unchecked" in said and "no_such_consumer is not installed: pip install it" in said
    with pytest.raises(Unavailable):
        require("no_such_consumer.part", get="")


def test_a_targets_folder_in_the_working_folder_is_no_consumer(tmp_path, monkeypatch):
    (tmp_path / "consumer_of_a_target").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(Unavailable, match="consumer_of_a_target is not installed: pip install it"):
        require("consumer_of_a_target", get="pip install it")


@pytest.mark.parametrize("columns", [80, 160])
def test_the_table_folds_no_name(write, capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    for platform in ("atlas", "ti"):
        write(platform, below=platform)
    assert main([f"run={write('ort')}"]) == 0
    said = capsys.readouterr().out
    consumers = said[said.index("what the consumers make") :].split("\n\n")[0].splitlines()
    assert all(len(line) <= columns for line in consumers)
    rows = [line.split() for line in consumers]
    assert "ti/tidl_quant_params.prototxt" in {row[0] for row in rows if row}
    assert any(" ".join(row).endswith("for TIDL 17 0 0 200.0 100.0 ok") for row in rows)


@pytest.mark.parametrize("module", ["openvino", "aimet_onnx.quantsim", "onnxruntime_qnn", "rknn.api"])
def test_every_consumer_says_in_a_sentence_that_it_is_not_there(write, capsys, monkeypatch, module):
    monkeypatch.setitem(sys.modules, module.partition(".")[0], None)
    monkeypatch.setitem(sys.modules, module, None)
    platform = {"openvino": "openvino", "aimet_onnx.quantsim": "snpe", "onnxruntime_qnn": "qnn", "rknn.api": "rk"}[
        module
    ]
    assert main([f"run={write(platform)}"]) == 0
    (line,) = [
        line
        for line in capsys.readouterr().out.splitlines()
        if module.partition(".")[0] in line and "not checked" in line
    ]
    assert line.startswith(f"  not checked: {module.partition('.')[0]}")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "give one of run=FOLDER and file=FILE"),
        (["run=x", "file=y"], "give one of run=FOLDER and file=FILE"),
        (["runs=x"], "unknown option 'runs': did you mean run"),
        (["run="], "run has no value: give a folder"),
        (["--hepl"], "unknown flag '--hepl': did you mean --help"),
        (["run=nowhere"], "no config.yaml is there"),
        (["file=nowhere.onnx"], "there is no such file"),
        (["file=x.onnx", "platform=foo"], "platform 'foo': choose from ort, trt"),
        (["file=x.onnx", "platform=ops"], "platform 'ops': "),
        (["run=x", "platform=ort"], "platform=ort goes with file=FILE alone"),
        (["run=x", "samples=0"], "samples 0: give a number >= 1"),
        (["run=x", "all=yes"], "all 'yes': give true or false"),
    ],
)
def test_mistakes_are_told_in_a_sentence(arguments, sentence, capsys):
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("dipo.verify: ") and sentence in line


def test_a_run_without_files(tmp_path, capsys):
    (tmp_path / "config.yaml").write_text("platform: {name: ort}\n")
    assert main([f"run={tmp_path}"]) == 2
    assert "has written no model yet" in capsys.readouterr().err


def test_the_run_of_a_file_has_its_samples(write, capsys):
    run = write("ort")
    folder = write("trt", below="trt")
    for file in (run / "quantized.onnx", folder / "deploy.onnx"):
        assert main([f"file={file}"]) == 0
        assert "8 samples of the run's samples" in words(capsys.readouterr().out)
    (run / "config.yaml").unlink()
    assert main([f"file={run / 'quantized.onnx'}"]) == 0
    assert "32 samples of noise" in words(capsys.readouterr().out)


def test_the_manual(capsys):
    assert main(["--help"]) == 0
    page = capsys.readouterr().out
    assert all(f"    {word}=" in page for word in ("run", "file", "platform", "samples", "all"))
