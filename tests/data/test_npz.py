import pickle
import struct
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dipo.data import stored_array
from dipo.data.npz import read_npy, read_npz
from dipo.data.preprocess import Preprocessing
from dipo.data.samples import InputSpec
from dipo.errors import UserError

HOW = Preprocessing(mean=(0.5,), std=(0.5,), scale=1 / 255, size=None, layout="auto")
IMAGE = InputSpec("input", (None, 3, 8, 8), np.dtype(np.float32))
IDS = InputSpec("ids", (None, 5), np.dtype(np.int64))
MASK = InputSpec("model/mask", (None, 5), np.dtype(np.float32))
PIXELS = np.random.default_rng(0).integers(0, 256, (10, 8, 8, 3), np.uint8)
FLOATS = np.random.default_rng(1).normal(size=(10, 3, 8, 8)).astype(np.float32)


def write(path: Path, *, compressed: bool = True, **arrays: Any) -> Path:
    file = path / "samples.npz"
    (np.savez_compressed if compressed else np.savez)(file, **arrays)
    return file


def refusal(file: Path, inputs: Sequence[InputSpec] = (IMAGE,)) -> str:
    with pytest.raises(UserError) as caught:
        parts = read_npz(file, inputs=inputs, how=HOW)
        parts.calib.read(0, len(parts.calib))
    return str(caught.value)


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("test", ["test", "val", "eval"])
def test_calibration_and_evaluation_parts(tmp_path: Path, compressed: bool, test: str) -> None:
    arrays = {"calib_x": PIXELS[:6], "calib_y": np.arange(6, dtype=np.uint8), f"{test}_x": PIXELS[6:]}
    parts = read_npz(write(tmp_path, compressed=compressed, **arrays), inputs=[IMAGE], how=HOW)
    samples = parts.calib.read(2, 5)
    np.testing.assert_allclose(samples.inputs["input"], PIXELS[2:5].transpose(0, 3, 1, 2) / 127.5 - 1, atol=1e-6)
    assert samples.labels is not None and samples.labels.dtype == np.int64
    assert samples.labels.tolist() == [2, 3, 4]
    assert parts.eval is not None and len(parts.eval) == 4
    assert parts.eval.read(0, 4).labels is None


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("order", ["C", "F"])
def test_floats_come_back_as_they_are(tmp_path: Path, compressed: bool, order: str) -> None:
    file = write(tmp_path, compressed=compressed, x=np.asarray(FLOATS, order=order), y=np.arange(10)[:, None])
    parts = read_npz(file, inputs=[IMAGE], how=HOW)
    samples = parts.calib.read(0, 10)
    np.testing.assert_array_equal(samples.inputs["input"], FLOATS)
    assert type(samples.inputs["input"]) is np.ndarray and samples.inputs["input"].flags.c_contiguous
    assert samples.labels is not None and samples.labels.tolist() == list(range(10))
    assert parts.eval is None


@pytest.mark.parametrize("mask", ["model/mask", "model_mask"])
def test_several_inputs_by_their_names(tmp_path: Path, mask: str) -> None:
    ids, weights = np.arange(20, dtype=np.int32).reshape(4, 5), np.ones((4, 5))
    file = write(tmp_path, **{"ids": ids, mask: weights, "labels": np.array([3, 1, 2, 0])})
    dataset = read_npz(file, inputs=[IDS, MASK], how=HOW).calib
    samples = dataset.read(1, 3)
    np.testing.assert_array_equal(samples.inputs["ids"], ids[1:3])
    assert samples.inputs["ids"].dtype == np.int64 and samples.inputs["model/mask"].dtype == np.float32
    assert samples.labels is not None and samples.labels.tolist() == [1, 2]
    assert dataset.describe() == "npz, 4 samples of ids 5, model/mask 5, labels"


def test_input_called_y_is_not_taken_for_labels(tmp_path: Path) -> None:
    spec = InputSpec("y", (None, 5), np.dtype(np.int64))
    samples = read_npz(write(tmp_path, y=np.ones((2, 5), int)), inputs=[spec], how=HOW).calib.read(0, 2)
    assert samples.labels is None


def test_npy_holds_the_only_input(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", FLOATS)
    dataset = read_npy(tmp_path / "x.npy", inputs=[IMAGE], how=HOW).calib
    np.testing.assert_array_equal(dataset.read(9, 10).inputs["input"], FLOATS[9:])
    assert dataset.describe() == "npy, 10 samples of 3x8x8, no labels"
    with pytest.raises(UserError, match="the model has 'ids', 'model/mask'"):
        read_npy(tmp_path / "x.npy", inputs=[IDS, MASK], how=HOW)


def test_takes_the_first_samples(tmp_path: Path) -> None:
    dataset = read_npz(write(tmp_path, x=FLOATS, y=np.arange(10)), inputs=[IMAGE], how=HOW).calib.take(3)
    samples = dataset.read(0, len(dataset))
    assert len(dataset) == 3 and samples.labels is not None and samples.labels.tolist() == [0, 1, 2]


@pytest.mark.parametrize("compressed", [True, False])
def test_pickles_without_its_values_and_reads_again(tmp_path: Path, compressed: bool) -> None:
    large = np.random.default_rng(0).integers(0, 256, (400, 8, 8, 3), np.uint8)
    dataset = read_npz(write(tmp_path, compressed=compressed, x=large), inputs=[IMAGE], how=HOW).calib
    before = dataset.read(0, 400).inputs["input"]
    pickled = pickle.dumps(dataset)
    assert len(pickled) < 8000
    stored_array._load.cache_clear()
    np.testing.assert_array_equal(pickle.loads(pickled).read(0, 400).inputs["input"], before)


def test_decompresses_once_for_all_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = read_npz(write(tmp_path, x=PIXELS), inputs=[IMAGE], how=HOW).calib
    dataset.read(0, 1)
    monkeypatch.setattr(zipfile, "ZipFile", None)
    for copy in (dataset, pickle.loads(pickle.dumps(dataset))):
        copy.read(5, 10)


def test_file_written_anew_is_read_anew_or_refused(tmp_path: Path) -> None:
    dataset = read_npz(write(tmp_path, x=FLOATS), inputs=[IMAGE], how=HOW).calib
    dataset.read(0, 1)
    write(tmp_path, x=FLOATS + 1)
    np.testing.assert_array_equal(dataset.read(0, 1).inputs["input"], FLOATS[:1] + 1)
    write(tmp_path, x=FLOATS[:5])
    with pytest.raises(UserError, match=r"'x' in .*samples\.npz is no longer what it was"):
        dataset.read(0, 1)
    (tmp_path / "samples.npz").unlink()
    with pytest.raises(UserError, match=r"samples\.npz cannot be read"):
        dataset.read(0, 1)


def test_unknown_names_are_listed_with_the_known_ones(tmp_path: Path) -> None:
    message = refusal(write(tmp_path, images=PIXELS))
    assert "samples.npz holds images" in message and "calib_x" in message and "'input'" in message


def test_one_array_cannot_feed_two_inputs(tmp_path: Path) -> None:
    assert "the model has 'ids', 'model/mask'" in refusal(write(tmp_path, x=PIXELS), [IDS, MASK])


def test_labels_must_be_one_integer_for_each_sample(tmp_path: Path) -> None:
    assert "'y' in" in refusal(write(tmp_path, x=PIXELS, y=np.arange(9)))
    assert "the shape 9 for 10 samples" in refusal(write(tmp_path, x=PIXELS, y=np.arange(9)))
    assert "the shape 10x1000 for" in refusal(write(tmp_path, x=PIXELS, y=np.zeros((10, 1000), int)))
    assert "class indices" in refusal(write(tmp_path, x=PIXELS, y=np.arange(10.0)))


def test_arrays_must_have_as_many_samples(tmp_path: Path) -> None:
    file = write(tmp_path, ids=np.zeros((4, 5), int), model_mask=np.zeros((3, 5)))
    assert "'model_mask' in" in refusal(file, [IDS, MASK])


@pytest.mark.parametrize("compressed", [True, False])
def test_sample_with_nan_is_named(tmp_path: Path, compressed: bool) -> None:
    bad = FLOATS.copy()
    bad[7, 0, 0, 0] = np.nan
    message = refusal(write(tmp_path, compressed=compressed, x=bad))
    assert message.startswith("'x' in ") and "sample 7 has NaN or Inf for input 'input'" in message


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("kept", [0.0, 0.5, 0.99])
def test_cut_off_file_is_refused(tmp_path: Path, compressed: bool, kept: float) -> None:
    file = write(tmp_path, compressed=compressed, x=FLOATS)
    whole = file.read_bytes()
    file.write_bytes(whole[: int(kept * len(whole))])
    assert "samples.npz cannot be read" in refusal(file)


def test_damaged_values_are_refused_when_read(tmp_path: Path) -> None:
    file = write(tmp_path, x=FLOATS)
    damaged = bytearray(file.read_bytes())
    damaged[3000:3100] = bytes(100)
    file.write_bytes(damaged)
    assert "samples.npz cannot be read" in refusal(file)


def test_python_objects_are_refused(tmp_path: Path) -> None:
    assert "Python objects" in refusal(write(tmp_path, x=np.array([{}, []], dtype=object)))


HEADER = "{'descr': '<f4', 'fortran_order': False, 'shape': (%s), }"


@pytest.mark.parametrize("packing", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize(
    "header",
    [
        HEADER % "1 << 60, 3",
        HEADER % "1152921504606846976, 3",
        HEADER % "-4, 3",
        HEADER % "4, 4",
        "{'descr': ",
        "[" * 5000,
    ],
)
def test_headers_that_do_not_fit_their_data_are_refused(tmp_path: Path, header: str, packing: int) -> None:
    line = (header + "\n").encode()
    content = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(line)) + line + bytes(4 * 4 * 3)
    with zipfile.ZipFile(tmp_path / "x.npz", "w", packing) as archive:
        archive.writestr("x.npy", content)
    assert "cannot be read" in refusal(tmp_path / "x.npz")


def test_single_number_is_refused(tmp_path: Path) -> None:
    assert "single number" in refusal(write(tmp_path, x=np.float32(3)))
