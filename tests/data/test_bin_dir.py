import pickle
from pathlib import Path

import numpy as np
import pytest

from dipo.data.bin_dir import is_bin_dir, read_bin_dir
from dipo.data.preprocess import Layout, Preprocessing
from dipo.data.samples import InputSpec, SubsetDataset
from dipo.errors import UserError

IMAGE = InputSpec("input", (1, 3, 4, 4), np.dtype(np.float32))
IDS = InputSpec("model/ids", (None, 5), np.dtype(np.int64))
VALUES = np.random.default_rng(0).normal(size=(12, 3, 4, 4)).astype("<f4")


def write(folder: Path, values: np.ndarray = VALUES) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number, sample in enumerate(values):
        sample.tofile(folder / f"{number}.bin")
    return folder.parent


def opened(path: Path, *inputs: InputSpec, layout: Layout = "auto") -> SubsetDataset:
    how = Preprocessing(mean=(0.5,), std=(0.5,), scale=1 / 255, size=None, layout=layout)
    assert is_bin_dir(path, inputs)
    return read_bin_dir(path, inputs=inputs, how=how).calib


def test_files_are_taken_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    dataset = opened(write(tmp_path / "input"), IMAGE)
    samples = dataset.read(1, 12)
    np.testing.assert_array_equal(samples.inputs["input"], VALUES[1:12])
    assert samples.inputs["input"].dtype == np.float32 and samples.labels is None
    assert dataset.describe() == "raw files, 12 samples of 3x4x4, no labels"


def test_several_inputs_and_a_name_with_a_slash(tmp_path: Path) -> None:
    ids = np.arange(60).reshape(12, 5)
    write(tmp_path / "input")
    samples = opened(write(tmp_path / "model_ids", ids), IMAGE, IDS).take(4).read(2, 4)
    np.testing.assert_array_equal(samples.inputs["model/ids"], ids[2:4])
    np.testing.assert_array_equal(samples.inputs["input"], VALUES[2:4])


@pytest.mark.parametrize("folder", ["model/ids", "model_ids"])
@pytest.mark.parametrize("name", ["model/ids", "/model/ids"])
def test_a_name_with_a_slash_is_a_folder_in_a_folder_too(tmp_path: Path, name: str, folder: str) -> None:
    if name.startswith("/") and "_" in folder:
        folder = f"_{folder}"
    ids = np.arange(60).reshape(12, 5)
    write(tmp_path / folder, ids)
    spec = InputSpec(name, (None, 5), np.dtype(np.int64))
    np.testing.assert_array_equal(opened(tmp_path, spec).read(0, 12).inputs[name], ids)


def test_a_name_leads_nowhere_outside(tmp_path: Path) -> None:
    write(tmp_path / "ids")
    (tmp_path / "samples").mkdir()
    assert not is_bin_dir(tmp_path / "samples", [InputSpec("../ids", (None, 5), np.dtype(np.int64))])


@pytest.mark.parametrize("stored", ["<f4", "<f2"])
def test_half_precision_input_takes_both_widths(tmp_path: Path, stored: str) -> None:
    spec = InputSpec("input", (1, 3, 4, 4), np.dtype(np.float16))
    result = opened(write(tmp_path / "input", VALUES.astype(stored)), spec).read(0, 12).inputs["input"]
    np.testing.assert_array_equal(result, VALUES.astype(np.float16))


def test_one_open_dimension_follows_from_the_length(tmp_path: Path) -> None:
    path = write(tmp_path / "input")
    spec = InputSpec("input", (None, 3, 4, None), np.dtype(np.float32))
    np.testing.assert_array_equal(opened(path, spec).read(0, 12).inputs["input"], VALUES)
    with pytest.raises(UserError, match="3x\\?x\\?, of which more than one"):
        opened(path, InputSpec("input", (None, 3, None, None), np.dtype(np.float32)))


def test_layout_nhwc_is_transposed(tmp_path: Path) -> None:
    path = write(tmp_path / "input", VALUES.transpose(0, 2, 3, 1).copy())
    np.testing.assert_array_equal(opened(path, IMAGE, layout="nhwc").read(0, 12).inputs["input"], VALUES)


def test_pickles_and_reads_again(tmp_path: Path) -> None:
    copy = pickle.loads(pickle.dumps(opened(write(tmp_path / "input"), IMAGE)))
    np.testing.assert_array_equal(copy.read(11, 12).inputs["input"], VALUES[11:])


@pytest.mark.parametrize("number", [0, 7])
def test_wrong_length_is_told_with_the_expected_one(tmp_path: Path, number: int) -> None:
    path = write(tmp_path / "input")
    file = path / "input" / f"{number}.bin"
    file.write_bytes(bytes(100))
    with pytest.raises(UserError, match=rf"{number}\.bin has 100 bytes, but a float32 .*3x4x4\) has 192"):
        opened(path, IMAGE)


def test_file_that_changes_later_is_refused(tmp_path: Path) -> None:
    dataset = opened(write(tmp_path / "input"), IMAGE)
    (tmp_path / "input" / "3.bin").write_bytes(bytes(100))
    with pytest.raises(UserError, match=r"3\.bin has 100 bytes"):
        dataset.read(0, 12)
    (tmp_path / "input" / "3.bin").unlink()
    with pytest.raises(UserError, match=r"3\.bin cannot be read"):
        dataset.read(0, 12)


def test_numbers_must_agree_between_inputs(tmp_path: Path) -> None:
    write(tmp_path / "input")
    path = write(tmp_path / "model_ids", np.zeros((11, 5), np.int64))
    with pytest.raises(UserError, match=r"11\.bin for only one of the inputs 'input' and 'model/ids'"):
        opened(path, IMAGE, IDS)


def test_missing_folder_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "input")
    with pytest.raises(UserError, match="no folder for input 'model/ids'"):
        opened(path, IMAGE, IDS)
    (path / "model_ids").mkdir()
    with pytest.raises(UserError, match=r"model_ids has no \.bin files"):
        opened(path, IMAGE, IDS)


@pytest.mark.parametrize("name", ["sample.bin", "-1.bin", "01.bin"])
def test_names_that_are_no_numbers_or_double_are_refused(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "input")
    VALUES[0].tofile(path / "input" / name)
    with pytest.raises(UserError, match="by their sample's number"):
        opened(path, IMAGE)


def test_hidden_files_are_left_alone(tmp_path: Path) -> None:
    path = write(tmp_path / "input")
    (path / "input" / "._0.bin").write_bytes(b"x")
    assert len(opened(path, IMAGE)) == 12


def test_nan_is_told_with_sample_and_folder(tmp_path: Path) -> None:
    values = VALUES.copy()
    values[9, 0, 0, 0] = np.nan
    dataset = opened(write(tmp_path / "input", values), IMAGE)
    with pytest.raises(UserError, match=r"input: sample 9 has NaN or Inf"):
        dataset.read(8, 12)
