import errno
import json
import os

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file, save_file

from dipo.errors import JobError, UserError
from dipo.run import DamagedFileError, RunFolder


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path / "a" / "run")


def test_the_folder_is_made_with_those_above_it_and_holds_nothing(folder):
    assert folder.path.is_dir()
    assert list(folder.path.iterdir()) == []


def test_an_existing_folder_is_taken(folder):
    folder.write_json("kept.json", {})
    folder.close()
    RunFolder(folder.path)
    assert (folder.path / "kept.json").exists()


def test_what_is_written_can_be_read(folder):
    folder.write_json("report.json", {"Größe": [1, 2.5, None]})
    folder.write_yaml("config.yaml", {"b": "é", "a": None})
    codes = np.arange(12, dtype=np.int8).reshape(3, 4).T
    folder.write_arrays("units/0.safetensors", {"codes": codes, "scale": np.float32(0.5)})
    assert json.loads((folder.path / "report.json").read_text("utf-8")) == {"Größe": [1, 2.5, None]}
    text = (folder.path / "config.yaml").read_text("utf-8")
    assert yaml.safe_load(text) == {"b": "é", "a": None}
    assert text.startswith("b"), "the order is kept"
    arrays = load_file(folder.path / "units" / "0.safetensors")
    np.testing.assert_array_equal(arrays["codes"], codes)
    assert arrays["scale"].shape == ()


def test_nothing_is_found_under_the_final_name_while_it_is_written(folder):
    with folder.writing("out.bin") as path:
        path.write_bytes(b"half")
        assert not (folder.path / "out.bin").exists()
        assert path.parent == folder.path, "a rename is only atomic within a file system"
    assert [file.name for file in folder.path.iterdir()] == ["out.bin"]


def test_a_failed_write_leaves_nothing_and_the_old_file_whole(folder):
    folder.write_json("report.json", {"old": 1})
    with pytest.raises(RuntimeError), folder.writing("report.json") as path:
        path.write_text("{")
        raise RuntimeError
    with pytest.raises(ValueError, match="JSON"):
        folder.write_json("report.json", {"loss": float("nan")})
    assert [file.name for file in folder.path.iterdir()] == ["report.json"]
    assert json.loads((folder.path / "report.json").read_text()) == {"old": 1}


def test_a_folder_that_cannot_be_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(UserError, match=r"run\.dir=.*cannot be written"):
            RunFolder(path)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="Permission denied"):
        RunFolder(tmp_path)
    with pytest.raises(UserError, match=r"^run\.dir=.*choose another folder"):
        RunFolder(tmp_path)


@pytest.mark.parametrize("option", ["run", "run.resume"])
def test_a_run_that_cannot_be_written_is_named_by_its_option(folder, monkeypatch, option):
    def denied(**_):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    folder.write_yaml("config.yaml", {})
    folder.close()
    monkeypatch.setattr("tempfile.TemporaryFile", denied)
    with pytest.raises(UserError, match=rf"^{option}=.*Permission denied.*make it writable, or copy the run"):
        RunFolder(folder.path, resume=True, option=option)


def test_two_processes_cannot_have_one_folder(folder):
    folder.write_yaml("config.yaml", {})
    with pytest.raises(UserError, match=r"run\.resume=.*another process"):
        RunFolder(folder.path, resume=True)
    folder.close()
    RunFolder(folder.path, resume=True).close()


def test_what_a_killed_process_left_half_written_goes_away(folder):
    folder.write_yaml("config.yaml", {})
    (folder.path / "units").mkdir()
    (folder.path / "units" / ".3.safetensors.77.part").write_bytes(b"half")
    folder.close()
    (folder.path / ".staging.77.part" / "snpe").mkdir(parents=True)
    RunFolder(folder.path, resume=True)
    assert not list((folder.path / "units").iterdir())
    assert not list(folder.path.glob(".*"))


def test_arrays_come_back_bit_for_bit_with_what_goes_with_them(folder):
    arrays = {"a/b": np.array([0.1, -0.0, np.float32(1e-45)], np.float32), "n": np.array(3, np.int32)}
    folder.write_arrays("x.safetensors", arrays, {"loss": 0.1, "name": "stem", "none": None})
    found, about = folder.read_arrays("x.safetensors")
    assert {key: array.tobytes() for key, array in found.items()} == {k: a.tobytes() for k, a in arrays.items()}
    assert about == {"loss": 0.1, "name": "stem", "none": None}


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "other", "gone"])
def test_a_damaged_file_is_noticed(folder, damage):
    folder.write_arrays("x.safetensors", {"a": np.arange(64, dtype=np.float32)}, {"n": 1})
    path = folder.path / "x.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    match damage:
        case "flip":
            path.write_bytes(content)
        case "cut":
            path.write_bytes(path.read_bytes()[:-16])
        case "empty":
            path.write_bytes(b"")
        case "other":
            save_file({"a": np.arange(64, dtype=np.float32)}, path)
        case "gone":
            path.unlink()
    with pytest.raises(DamagedFileError):
        folder.read_arrays("x.safetensors")


def test_a_full_disk_is_a_sentence_and_leaves_nothing_half_written(folder, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    folder.write_json("a.json", {"old": 1})
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(JobError, match=r"no space is left.*run\.resume="):
        folder.write_json("a.json", {"new": 2})
    assert [file.name for file in folder.path.iterdir()] == ["a.json"]
    assert folder.read_json("a.json") == {"old": 1}
