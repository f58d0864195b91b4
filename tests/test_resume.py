"""A run that was ended goes on from its last finished unit, to the same bits; another's run is refused."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
import yaml

from dipo.launch import main

HOW = ("algo=qdrop", "precision=w4a4", "algo.iters=6", "cluster.grad_shards=2")


@pytest.fixture
def finished(tiny_job, tmp_path):
    """An undisturbed run."""
    folder = tmp_path / "whole"
    assert main(tiny_job.arguments(*HOW, f"run.dir={folder}")) == 0
    return folder


def ended_early(finished: Path, folder: Path, *lacking: str) -> Path:
    """The folder as a process leaves it that was killed before it wrote these files."""
    shutil.copytree(finished, folder)
    for name in ("report.json", "quantized.onnx", *lacking):
        (folder / name).unlink()
    return folder


def units(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "units").iterdir())


def same_outcome(a: Path, b: Path) -> bool:
    names = ["quantized.onnx", "statistics.safetensors", *(f"units/{name}" for name in units(a))]
    same = [(a / name).read_bytes() == (b / name).read_bytes() for name in ("quantized.onnx", "statistics.safetensors")]
    reports = [json.loads((folder / "report.json").read_text()) for folder in (a, b)]
    return all(same) and len(names) == 2 + len(units(b)) and reports[0]["error"] == reports[1]["error"]


@pytest.mark.parametrize("num_lost", [0, 1, 2, 3])
def test_a_run_goes_on_from_its_last_finished_unit(finished, tmp_path, capsys, num_lost):
    lost = [f"units/{name}" for name in units(finished)[3 - num_lost :]]
    folder = ended_early(finished, tmp_path / "ended", *lost)
    capsys.readouterr()
    assert main([f"run.resume={folder}"]) == 0
    said = capsys.readouterr().out
    assert f"going on with {folder}" in said
    assert said.count("unit ") - said.count("unit 0") == 2 * num_lost, said
    assert "calibrate:" not in said
    assert same_outcome(finished, folder)


def test_a_run_that_was_ended_before_calibration_begins_anew(finished, tmp_path):
    lost = ["statistics.safetensors", "fingerprint.json", *(f"units/{name}" for name in units(finished))]
    folder = ended_early(finished, tmp_path / "ended", *lost)
    assert main([f"run.resume={folder}"]) == 0
    assert same_outcome(finished, folder)


def test_the_command_line_may_be_given_again(finished, tmp_path, tiny_job):
    folder = ended_early(finished, tmp_path / "ended")
    assert main(tiny_job.arguments(*HOW, f"run.resume={folder}")) == 0
    assert same_outcome(finished, folder)


def test_other_workers_go_on_to_the_same_bits(finished, tmp_path):
    """One process begins, Ray's workers go on, one process ends it."""
    lost = [f"units/{name}" for name in units(finished)]
    by_ray = ended_early(finished, tmp_path / "ray", *lost[1:])
    assert main([f"run.resume={by_ray}", "cluster=ray", "cluster.workers=2", "cluster.device=cpu"]) == 0
    assert same_outcome(finished, by_ray)
    assert yaml.safe_load((by_ray / "config.yaml").read_text())["cluster"]["workers"] == 2
    by_one = ended_early(by_ray, tmp_path / "one", *lost[2:])
    assert main([f"run.resume={by_one}", "cluster=inline"]) == 0
    assert same_outcome(finished, by_one)


def test_a_finished_run_is_left_alone(finished, capsys):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()}
    assert main([f"run.resume={finished}"]) == 0
    assert "the run is finished" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()}


@pytest.mark.parametrize("schedule", ["sequential", "parallel"])
@pytest.mark.parametrize("damaged", ["statistics.safetensors", "units/qdrop-001.safetensors"])
def test_a_damaged_file_is_made_again(tiny_job, tmp_path, capsys, damaged, schedule):
    whole = tmp_path / "whole"
    assert main(tiny_job.arguments(*HOW, f"cluster.schedule={schedule}", f"run.dir={whole}")) == 0
    folder = ended_early(whole, tmp_path / "ended")
    content = bytearray((folder / damaged).read_bytes())
    content[-20] ^= 1
    (folder / damaged).write_bytes(content)
    assert main([f"run.resume={folder}"]) == 0
    assert f"{damaged} is damaged" in capsys.readouterr().out
    assert same_outcome(whole, folder)


def test_a_lost_unit_of_the_first_phase_is_made_again(tiny_job, tmp_path):
    whole = tmp_path / "whole"
    assert main(tiny_job.arguments(*HOW, "cluster.schedule=parallel", f"run.dir={whole}")) == 0
    assert units(whole) == [
        f"{phase}-00{index}.safetensors" for phase in ("alone-1", "alone-2", "qdrop") for index in range(3)
    ]
    folder = ended_early(whole, tmp_path / "ended", "units/alone-2-001.safetensors", "units/qdrop-002.safetensors")
    assert main([f"run.resume={folder}"]) == 0
    assert same_outcome(whole, folder)


def test_steps_of_an_algorithm_are_resumed_one_after_the_other(tiny_job, tmp_path):
    how = ["algo=qdrop", "algo.steps=[bias_correction,qdrop]", "precision=w4a4"]
    whole = tmp_path / "whole"
    assert main(tiny_job.arguments(*how, f"run.dir={whole}")) == 0
    for index, lost in enumerate((["qdrop-001"], ["bias_correction-002", "qdrop-000", "qdrop-001"])):
        folder = ended_early(whole, tmp_path / f"ended{index}", *(f"units/{name}.safetensors" for name in lost))
        assert main([f"run.resume={folder}"]) == 0
        assert same_outcome(whole, folder)


@pytest.mark.parametrize(
    ("option", "named"),
    [
        ("algo.iters=7", "algo.iters=6, not 7"),
        ("precision=w8a8", "precision.weight_bits=4, not 8"),
        ("seed=1", "seed=0, not 1"),
        ("cluster.grad_shards=3", "cluster.grad_shards=2, not 3"),
        ("cluster.threads=3", "cluster.threads=1, not 3"),
    ],
)
def test_other_options_are_refused_by_name(finished, tmp_path, capsys, option, named):
    folder = ended_early(finished, tmp_path / "ended")
    assert main([f"run.resume={folder}", option]) == 2
    error = capsys.readouterr().err
    assert named in error
    assert "run.dir=" in error
    assert error.count("\n") == 1
    assert folder.exists()


def test_another_model_or_other_samples_are_refused(finished, tmp_path, capsys, tiny_job):
    folder = ended_early(finished, tmp_path / "ended")
    changed = onnx.load(tiny_job.model)
    weight = changed.graph.initializer[0]
    weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight) * 1.01, weight.name))
    other = tmp_path / "other.onnx"
    onnx.save(changed, other)
    assert main([f"run.resume={folder}", f"model.path={other}"]) == 2
    assert "another model" in capsys.readouterr().err
    assert main([f"run.resume={folder}", "data.num=8"]) == 2
    assert "another data" in capsys.readouterr().err


def test_the_same_files_at_another_place_are_taken(finished, tmp_path, tiny_job):
    folder = ended_early(finished, tmp_path / "ended")
    moved = {key: shutil.copy(path, tmp_path / f"moved{path.suffix}") for key, path in vars(tiny_job).items()}
    assert main([f"run.resume={folder}", f"model.path={moved['model']}", f"data.path={moved['data']}"]) == 0
    assert same_outcome(finished, folder)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.yaml", "a: ["),
        ("config.yaml", ""),
        ("config.yaml", 100),
        ("config.yaml", -20),
        ("fingerprint.json", "{"),
    ],
)
def test_damaged_files_without_which_nothing_goes_on(finished, tmp_path, capsys, name, content):
    folder = ended_early(finished, tmp_path / "ended")
    whole = (folder / name).read_text()
    (folder / name).write_text(content if isinstance(content, str) else whole[:content])
    assert main([f"run.resume={folder}"]) == 2
    error = capsys.readouterr().err
    assert f"run.resume={folder}: its {name} is damaged" in error
    assert "begin the run again with run.dir=" in error


def test_a_config_never_makes_objects(finished, tmp_path, capsys):
    """A run folder from elsewhere runs no code: plain YAML, and only options that dipo knows."""
    folder = ended_early(finished, tmp_path / "ended")
    config = yaml.safe_load((folder / "config.yaml").read_text())
    trap = tmp_path / "trap"
    (folder / "config.yaml").write_text(yaml.safe_dump({**config, "_target_": "os.mkdir", "path": str(trap)}))
    assert main([f"run.resume={folder}"]) == 2
    (folder / "config.yaml").write_text(f"algo: !!python/object/apply:os.mkdir ['{trap}']\n")
    assert main([f"run.resume={folder}"]) == 2
    assert not trap.exists()


def test_a_folder_without_a_run_is_refused(tmp_path, capsys):
    for path in (tmp_path, tmp_path / "none"):
        assert main([f"run.resume={path}"]) == 2
        assert "no run was begun there" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small file system")
def test_a_full_disk_ends_the_run_with_a_sentence_and_the_run_goes_on_elsewhere(tiny_job, finished, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=160k", "tmpfs", disk], check=False, capture_output=True, text=True
    )
    if mounted.returncode != 0:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    try:
        command = [sys.executable, "-m", "dipo.launch", *tiny_job.arguments(*HOW, f"run.dir={disk / 'run'}")]
        run = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
        assert run.returncode == 1, run.stderr
        assert "no space is left on the disk" in run.stderr
        assert "Traceback" not in run.stderr
        assert run.stderr.count("\n") == 1, run.stderr
        assert not list(disk.rglob("*.part"))
        shutil.copytree(disk / "run", tmp_path / "moved")
    finally:
        subprocess.run(["umount", disk], check=True)
    assert main([f"run.resume={tmp_path / 'moved'}"]) == 0
    assert same_outcome(finished, tmp_path / "moved")


@pytest.mark.parametrize("how", [("+algo=dfq",), ("+model=mobilenet",)], ids=" ".join)
def test_presets_that_bring_others_along_are_compared_like_any_option(finished, capsys, how):
    assert main([f"run.resume={finished}", *how]) == 2
    error = capsys.readouterr().err
    assert "that run was begun with" in error
    assert error.count("\n") == 1
