import json
import os

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

from dipo.errors import UserError
from dipo.run import RunFolder


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path / "a" / "run")


def test_the_folder_is_made_with_those_above_it_and_holds_nothing(folder):
    assert folder.path.is_dir()
    assert list(folder.path.iterdir()) == []


def test_an_existing_folder_is_taken(folder):
    folder.write_json("kept.json", {})
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
