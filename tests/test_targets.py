"""Files for other targets: with a job, and later from its folder."""

import errno
import json
import os
import shutil

import numpy as np
import onnx
import pytest

from dipo.cli.export import main as export
from dipo.errors import JobError
from dipo.launch import main
from dipo.run import RunFolder

ALL = "[snpe,qnn,rv,rk,atlas,ti,imx,magicmind,stpu,openvino,trt]"


def properties(path):
    return {prop.key: prop.value for prop in onnx.load(path).metadata_props}


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.name != "export.json"}


def files_of(folder):
    return {path.name for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize("algo", ["algo=brecq", "algo.steps=[equalize,bias_correction]"])
def test_a_job_writes_other_targets_and_so_does_its_folder_later_without_samples(tiny_job, tmp_path, algo):
    run = tmp_path / "run"
    more = ["precision.weight_per_channel=false", "precision.weight_bits=4", f"export.also={ALL}"]
    assert main(tiny_job.arguments(f"run.dir={run}", algo, *more)) == 0
    rows = {row["name"]: row for row in json.loads((run / "report.json").read_text())["targets"]}
    assert list(rows) == ALL[1:-1].split(",")
    for name, row in rows.items():
        assert {file.name: file.stat().st_size for file in (run / name).iterdir()} == row["files"]
        assert row["error"]["sqnr_db"] > 5
    assert rows["ti"]["weights"] and rows["snpe"]["differences"]
    tiny_job.data.unlink()
    before = {name: contents(run / name) for name in rows}
    for name in rows:
        shutil.rmtree(run / name)
    assert export([f"run={run}", f"platform={ALL}"]) == 0
    assert {name: contents(run / name) for name in rows} == before
    again = json.loads((run / "ti" / "export.json").read_text())
    assert again == {**rows["ti"], "error": None, "outputs": []}


def test_the_files_say_where_they_come_from(tiny_job, tmp_path):
    for name, more in {"a": [], "b": ["seed=1"], "c": ["export.format=qop"]}.items():
        assert main(tiny_job.arguments(f"run.dir={tmp_path / name}", *more)) == 0
    a, b, c = (properties(tmp_path / name / "quantized.onnx") for name in "abc")
    assert a["dipo_platform"] == "ort" and a["dipo_scheme"] == "w8a8" and a["dipo_form"] == "qdq"
    assert a["dipo_config"] != b["dipo_config"]
    assert c == {**a, "dipo_form": "qop"}
    assert {"QLinearConv"} <= {node.op_type for node in onnx.load(tmp_path / "c" / "quantized.onnx").graph.node}


def test_packed_weights(tiny_job, tmp_path):
    more = ["export.weights=packed", "precision.weight_bits=4", "precision.first_last_bits=null"]
    assert main(tiny_job.arguments(f"run.dir={tmp_path / 'run'}", *more)) == 0
    types = {tensor.data_type for tensor in onnx.load(tmp_path / "run" / "quantized.onnx").graph.initializer}
    assert types & {onnx.TensorProto.INT4, onnx.TensorProto.UINT4}
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["error"]["deployed_vs_simulated"]["cosine"] > 0.999


def test_tensorrt_11_gets_no_range_files_and_that_is_said(tiny_job, tmp_path, capsys):
    assert main(tiny_job.arguments(f"run.dir={tmp_path / 'a'}", "platform=trt", "platform.version=11")) == 0
    assert "no longer reads range files" in capsys.readouterr().out
    assert not (tmp_path / "a" / "calibration.cache").exists()
    assert main(tiny_job.arguments(f"run.dir={tmp_path / 'b'}", "platform=trt", "platform.version=10.10")) == 0
    assert (tmp_path / "b" / "calibration.cache").read_text().startswith("TRT-101000-")


def test_an_export_leaves_no_files_of_the_one_before(tiny_job, tmp_path):
    run = tmp_path / "run"
    assert main(tiny_job.arguments(f"run.dir={run}")) == 0
    assert export([f"run={run}", "platform=trt", "platform.version=10"]) == 0
    assert (run / "trt" / "calibration.cache").exists()
    (run / "trt" / "notes.txt").write_text("the user's own")
    assert export([f"run={run}", "platform=trt", "platform.version=11"]) == 0
    assert {file.name for file in (run / "trt").iterdir()} == {"quantized.onnx", "export.json", "notes.txt"}


def test_an_export_leaves_no_files_of_the_job_before(tiny_job, tmp_path):
    run = tmp_path / "run"
    assert main(tiny_job.arguments(f"run.dir={run}", "export.also=[trt]")) == 0
    (run / "trt" / "notes.txt").write_text("the user's own")
    assert (run / "trt" / "calibration.cache").exists()
    assert export([f"run={run}", "platform=trt", "platform.version=11"]) == 0
    assert files_of(run / "trt") == {"quantized.onnx", "export.json", "notes.txt"}


def test_a_job_leaves_no_files_of_itself_with_other_options(tiny_job, tmp_path):
    run = tmp_path / "run"
    assert main(tiny_job.arguments(f"run.dir={run}", "platform=trt", "platform.version=10", "export.also=[snpe]")) == 0
    (run / "notes.txt").write_text("the user's own")
    before, newer = files_of(run), ["platform.version=11"]
    assert main([f"run.resume={run}", *newer]) == 0
    lost = {"deploy.onnx", "calibration.cache", "trt_clip_val.json"}
    assert lost < before and files_of(run) == before - lost
    assert main([f"run.resume={run}", "platform.version=10"]) == 0, "the run is now one for 11"
    assert files_of(run) == before


def test_a_job_leaves_no_files_of_its_other_targets_with_other_options(tiny_job, tmp_path):
    run = tmp_path / "run"
    assert main(tiny_job.arguments(f"run.dir={run}")) == 0
    assert export([f"run={run}", "platform=[trt,snpe]"]) == 0
    assert main([f"run.resume={run}", "export.also=[trt]", "platform.version=11", "calib.method=mse"]) == 0
    assert files_of(run / "trt") == {"quantized.onnx"}
    assert files_of(run / "snpe") == {"quantized.onnx", "deploy.onnx", "snpe_encodings.json", "export.json"}


def test_a_run_without_a_list_of_its_files_has_its_report(tiny_job, tmp_path):
    run = tmp_path / "run"
    assert main(tiny_job.arguments(f"run.dir={run}", "platform=trt", "export.also=[snpe]")) == 0
    (run / "written.list").write_text("../kept.txt\n/kept.txt\n")
    (tmp_path / "kept.txt").write_text("another's")
    (run / "snpe" / "export.json").write_text("{")
    assert main([f"run.resume={run}", "platform.version=11"]) == 0
    assert not (run / "calibration.cache").exists()
    assert "export.json" not in files_of(run / "snpe")
    assert (tmp_path / "kept.txt").exists()


@pytest.mark.parametrize("targets", ["[trt,snpe,rk]", "[snpe,trt]"])
def test_where_one_target_refuses_nothing_is_written_for_any(tiny_job, tmp_path, capsys, targets):
    run = tmp_path / "run"
    assert main(tiny_job.arguments(f"run.dir={run}", "precision.skip=[head]")) == 0
    before = set(run.rglob("*"))
    assert export([f"run={run}", f"platform={targets}"]) == 2
    assert "platform=snpe: no range for tensors" in capsys.readouterr().err
    assert set(run.rglob("*")) == before
    report = (run / "report.json").read_bytes()
    assert main([f"run.resume={run}", "export.also=[trt,snpe]"]) == 2
    assert set(run.rglob("*")) == before and (run / "report.json").read_bytes() == report


def test_what_lies_in_the_way_of_a_targets_files_is_named(tiny_job, tmp_path, capsys):
    run = tmp_path / "run"
    run.mkdir()
    (run / "snpe").write_text("")
    assert main(tiny_job.arguments(f"run.dir={run}", "export.also=[snpe]")) == 2
    assert f"run.dir={run}: snpe in it is a file" in capsys.readouterr().err
    assert main(tiny_job.arguments(f"run.dir={run}")) == 0
    assert export([f"run={run}", "platform=[trt,snpe]"]) == 2
    assert f"run={run}: snpe in it is a file" in capsys.readouterr().err
    (run / "snpe").unlink()
    (run / "snpe" / "deploy.onnx").mkdir(parents=True)
    assert export([f"run={run}", "platform=[trt,snpe]"]) == 2
    assert "snpe/deploy.onnx in it is a folder" in capsys.readouterr().err
    assert not (run / "trt").exists()


@pytest.mark.parametrize("schema", ["0.6.1", "1.0.0", "2.0.0"])
def test_the_schema_is_that_which_was_asked_for(tiny_job, tmp_path, schema):
    assert main(tiny_job.arguments(f"run.dir={tmp_path / 'run'}", "platform=snpe", f"platform.schema={schema}")) == 0
    assert json.loads((tmp_path / "run" / "snpe_encodings.json").read_text())["version"] == schema


def test_ti_is_simulated_with_powers_of_two(tiny_job, tmp_path):
    assert main(tiny_job.arguments(f"run.dir={tmp_path / 'run'}", "platform=ti", "algo=qdrop")) == 0
    graph = onnx.load(tmp_path / "run" / "quantized.onnx").graph
    scales = [onnx.numpy_helper.to_array(each) for each in graph.initializer if each.name.endswith("_scale")]
    assert scales
    assert all((np.frexp(scale)[0] == 0.5).all() for scale in scales)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["platform.schema=1.0.0"], "platform.schema: only snpe or qnn has it, not ort, leave it out"),
        (["platform.version=eleven", "platform=trt"], "platform.version 'eleven': give TensorRT's version"),
        (["platform.version=0", "platform=trt"], "platform.version '0': TensorRT reads such files from version 5 on"),
        (["platform.version=4.9", "platform=trt"], "platform.version '4.9': TensorRT"),
        (["export.format=qop", "platform=trt"], "export.format=qop: platform trt keeps biases float"),
        (["platform=rk", "precision.weight_bits=4"], "has 4 bits and the target takes 8"),
        (["platform=snpe", "precision.skip=[head]"], "platform=snpe: no range for tensors"),
        (["export.also=[snpee]"], "did you mean snpe"),
    ],
)
def test_what_a_target_cannot_do_is_said(tiny_job, tmp_path, capsys, words, sentence):
    assert main(tiny_job.arguments(f"run.dir={tmp_path / 'run'}", "precision.first_last_bits=null", *words)) == 2
    assert sentence in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.onnx")) or not (tmp_path / "run").exists()


def test_what_is_wrong_with_a_later_export_is_said(tiny_job, tmp_path, capsys):
    run = tmp_path / "run"
    assert main(tiny_job.arguments(f"run.dir={run}")) == 0

    def complaint(*words):
        capsys.readouterr()
        assert export(list(words)) == 2
        return capsys.readouterr().err

    assert "run is missing" in complaint("platform=snpe")
    assert "platform is missing" in complaint(f"run={run}")
    assert "did you mean snpe" in complaint(f"run={run}", "platform=snpee")
    assert "unknown option 'platfrom': did you mean platform" in complaint(f"run={run}", "platfrom=snpe")
    for targets in ("[snpe,trt]", "[trt,snpe]"):
        error = complaint(f"run={run}", f"platform={targets}", "export.format=qop")
        assert "export.format=qop: platform trt keeps biases float" in error
    assert "platform.version '0'" in complaint(f"run={run}", "platform=trt", "platform.version=0")
    nowhere = complaint(f"run={tmp_path / 'nowhere'}", "platform=snpe")
    assert f"run={tmp_path / 'nowhere'}: no run was begun there, give the folder of a finished run" in nowhere
    other = tmp_path / "other.onnx"
    other.write_bytes(tiny_job.model.read_bytes()[:-100])
    assert str(other) in complaint(f"run={run}", "platform=snpe", f"model.path={other}")
    proto = onnx.load(tiny_job.model)
    proto.producer_name = "another"
    onnx.save(proto, other)
    assert "not the model of the run" in complaint(f"run={run}", "platform=snpe", f"model.path={other}")
    (run / "network.safetensors").write_bytes(b"broken")
    assert "network.safetensors is missing or damaged" in complaint(f"run={run}", "platform=snpe")
    (run / "report.json").unlink()
    assert "not finished" in complaint(f"run={run}", "platform=snpe")


def test_the_scheme_in_a_file_is_its_own(tiny_job, tmp_path):
    run = tmp_path / "run"
    widths = ["precision.weight_bits=4", "precision.act_bits=16", "export.also=[rk,qnn]"]
    assert main(tiny_job.arguments(f"run.dir={run}", *widths)) == 0
    found = {name: properties(run / name / "quantized.onnx")["dipo_scheme"] for name in (".", "rk", "qnn")}
    assert found == {".": "w4a16", "rk": "w8a8", "qnn": "w4a16"}


@pytest.mark.parametrize("own", ["trt", "ort", "magicmind"])
def test_scripts_find_the_range_of_every_tensor(tiny_job, tmp_path, own):
    """Those for TensorRT and MagicMind ask for what every node makes, quantized or not."""
    run = tmp_path / "run"
    assert main(tiny_job.arguments(f"run.dir={run}", f"platform={own}", "export.also=[trt,magicmind,snpe]")) == 0
    names = json.loads((run / "snpe" / "snpe_encodings.json").read_text())["activation_encodings"].keys()
    for name, file in (("trt", "trt_clip_val.json"), ("magicmind", "magicmind_quant_param.json")):
        folder = run if name == own else run / name
        assert json.loads((folder / file).read_text())["blob_range"].keys() == names
    lines = ((run if own == "trt" else run / "trt") / "calibration.cache").read_text().splitlines()[1:]
    assert {line.rpartition(": ")[0] for line in lines} == names


@pytest.fixture
def damaged(tiny_job, tmp_path, capsys):
    """Export from a run after a file of it was changed; return the complaint, which names the option that was typed."""

    def of(name, change, *words):
        run = tmp_path / "run"
        assert main(tiny_job.arguments(f"run.dir={run}", "precision.weight_bits=4")) == 0
        path = run / name
        text = None if change is None else change(path.read_text())
        path.unlink()
        if text is not None:
            path.write_text(text)
        capsys.readouterr()
        assert export([f"run={run}", "platform=qnn", *words]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"dipo: run={run}: ") and error.count("\n") == 1
        assert "run.resume=" not in error and "run.dir=" not in error
        assert not (run / "qnn").exists()
        return error

    return of


@pytest.mark.parametrize("length", [0, 100, -20])
def test_a_cut_configuration_is_no_configuration(damaged, length):
    assert "its config.yaml is damaged" in damaged("config.yaml", lambda text: text[:length])


def test_a_configuration_that_is_not_the_runs_is_refused(damaged):
    error = damaged("config.yaml", lambda text: text.replace("weight_bits: 4", "weight_bits: 8"))
    assert "config.yaml says precision.weight_bits=8 and its fingerprint.json 4" in error


def test_missing_statistics_are_named(damaged):
    assert "its statistics.safetensors is missing or damaged" in damaged("statistics.safetensors", None)


def test_a_run_that_is_at_work_or_cannot_be_written_is_named_as_it_was_given(tiny_job, tmp_path, capsys):
    run = tmp_path / "run"
    assert main(tiny_job.arguments(f"run.dir={run}")) == 0
    folder = RunFolder(run, resume=True)
    assert export([f"run={run}", "platform=snpe"]) == 2
    assert f"run={run}: another process is at work" in capsys.readouterr().err
    folder.close()
    with (
        pytest.raises(JobError, match="free some and export again"),
        RunFolder(run, resume=True, option="run").staging(),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert not list(run.glob(".*"))


def test_a_target_that_does_not_take_the_form_says_which_it_has(tiny_job, tmp_path, capsys):
    run = tmp_path / "run"
    said = "quantized.onnx is written with export.format=qdq, not qop"
    assert main(tiny_job.arguments(f"run.dir={run}", "export.format=qop", "export.also=[trt,snpe]")) == 0
    assert capsys.readouterr().out.count(said) == 1
    rows = {row["name"]: row for row in json.loads((run / "report.json").read_text())["targets"]}
    assert said in rows["trt"]["notes"][-1] and not rows["snpe"]["notes"]
    assert properties(run / "trt" / "quantized.onnx")["dipo_form"] == "qdq"
    assert properties(run / "snpe" / "quantized.onnx")["dipo_form"] == "qop"
    assert export([f"run={run}", "platform=[snpe,trt]"]) == 0
    assert capsys.readouterr().out.count(said) == 1
    assert export([f"run={run}", "platform=[snpe,trt]", "export.format=qdq"]) == 0
    assert said not in capsys.readouterr().out
