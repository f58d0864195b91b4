import re
import tracemalloc
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, TensorDataset

from dipo.data.dataset import open_datasets
from dipo.data.preprocess import Preprocessing
from dipo.data.samples import InputSpec, Parts
from dipo.data.store import read_store, write_store
from dipo.errors import UserError

HOW = Preprocessing(mean=(0.0,), std=(1.0,), scale=1 / 255, size=None, layout="auto")
IMAGE = InputSpec("input", (None, 3, 8, 8), np.dtype(np.float32))
IDS = InputSpec("model/ids", (None, 5), np.dtype(np.int64))
MASK = InputSpec("mask", (None, 5), np.dtype(np.float32))
FLOATS = np.random.default_rng(0).normal(size=(10, 3, 8, 8)).astype(np.float32)
LABELS = np.arange(10) % 3
TOKENS, MASKS = np.arange(50).reshape(10, 5), np.ones((10, 5), np.float32)
PIXELS = np.random.default_rng(0).integers(0, 256, (10, 8, 8, 3), np.uint8)


def stored(path: Path, data: Any, inputs: Sequence[InputSpec] = (IMAGE,), num: int | None = None) -> Parts:
    write_store(path / "store", data, inputs=inputs, how=HOW, num=num, title="data")
    return read_store(path / "store", inputs=inputs, how=HOW, title="data")


def refusal(path: Path, data: Any, inputs: Sequence[InputSpec] = (IMAGE,)) -> str:
    with pytest.raises(UserError) as caught:
        stored(path, data, inputs)
    assert not list(path.iterdir()), "nothing half-written stays"
    return str(caught.value)


def generator(size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for start in range(0, 10, size):
        yield FLOATS[start : start + size], LABELS[start : start + size]


class MapStyle(Dataset):
    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.from_numpy(FLOATS[index % 10]), int(LABELS[index % 10])


LABELLED = {
    "dict": {"input": FLOATS, "labels": LABELS},
    "dict like a npz": {"x": FLOATS, "y": LABELS},
    "dict of lists": {"x": FLOATS.tolist(), "y": LABELS.tolist()},
    "generator of batches of 3": generator(3),
    "generator of batches of 10": generator(10),
    "tuples of single samples": list(zip(FLOATS, LABELS, strict=True)),
    "DataLoader": DataLoader(TensorDataset(torch.from_numpy(FLOATS), torch.from_numpy(LABELS)), batch_size=4),
    "torch Dataset": MapStyle(),
    "DataLoader of a torch Dataset": DataLoader(MapStyle(), batch_size=7),
    "dicts": [{"input": x, "label": y} for x, y in generator(4)],
    "tensors with gradients": [(torch.tensor(x, requires_grad=True), y) for x, y in generator(5)],
}


@pytest.mark.parametrize("name", LABELLED)
def test_samples_are_the_same_however_they_are_held(tmp_path: Path, name: str) -> None:
    parts = stored(tmp_path, LABELLED[name])
    samples = parts.calib.read(0, len(parts.calib))
    assert parts.eval is None
    np.testing.assert_array_equal(samples.inputs["input"], FLOATS)
    np.testing.assert_array_equal(samples.labels, LABELS)


@pytest.mark.parametrize("data", [FLOATS, list(FLOATS), torch.from_numpy(FLOATS), [FLOATS[:4], FLOATS[4:]]])
def test_arrays_need_no_labels(tmp_path: Path, data: Any) -> None:
    samples = stored(tmp_path, data).calib.read(0, 10)
    np.testing.assert_array_equal(samples.inputs["input"], FLOATS)
    assert samples.labels is None


@pytest.mark.parametrize(
    "data",
    [
        {"model/ids": TOKENS, "mask": MASKS},
        zip(TOKENS, MASKS, strict=True),
        [(TOKENS[:4], MASKS[:4]), (TOKENS[4:], MASKS[4:])],
        [{"model_ids": TOKENS, "mask": MASKS, "token_type_ids": TOKENS}],
        ([torch.from_numpy(ids), torch.from_numpy(mask), 1] for ids, mask in zip(TOKENS, MASKS, strict=True)),
    ],
    ids=["dict", "single samples", "batches", "a dict with more in it", "lists of tensors with a label"],
)
def test_several_inputs(tmp_path: Path, data: Any) -> None:
    samples = stored(tmp_path, data, [IDS, MASK]).calib.read(2, 10)
    np.testing.assert_array_equal(samples.inputs["model/ids"], TOKENS[2:])
    np.testing.assert_array_equal(samples.inputs["mask"], MASKS[2:])


def test_pixels_are_normalised_when_they_are_read(tmp_path: Path) -> None:
    images = ((Image.fromarray(pixels), 1) for pixels in PIXELS)
    samples = stored(tmp_path, images).calib.read(0, 10)
    np.testing.assert_allclose(samples.inputs["input"], PIXELS.transpose(0, 3, 1, 2) / 255, rtol=1e-6)


def test_one_mapping_may_hold_both_parts(tmp_path: Path) -> None:
    parts = stored(tmp_path, {"calib_x": FLOATS[:6], "test_x": FLOATS[6:], "test_y": LABELS[6:]})
    assert parts.eval is not None
    assert (len(parts.calib), len(parts.eval)) == (6, 4)


def test_digest_is_that_of_the_content(tmp_path: Path) -> None:
    np.savez(tmp_path / "file.npz", x=FLOATS, y=LABELS)
    own = open_datasets(path=tmp_path / "file.npz", **OPEN).calib.digest()
    digests = {own}
    for number, name in enumerate(("dict", "tuples of single samples", "dicts", "torch Dataset")):
        (tmp_path / str(number)).mkdir()
        digests.add(stored(tmp_path / str(number), LABELLED[name]).calib.digest())
    assert digests == {own}
    (tmp_path / "other").mkdir()
    assert stored(tmp_path / "other", FLOATS[:9]).calib.digest() != own


OPEN: dict[str, Any] = {
    **dict.fromkeys(("eval_path", "num", "eval_num", "mean", "std", "size")),
    "inputs": [IMAGE],
    "scale": 1 / 255,
    "layout": "auto",
}


def test_a_store_is_a_layout_of_its_own(tmp_path: Path) -> None:
    stored(tmp_path, generator(3))
    calib = open_datasets(path=tmp_path / "store", **OPEN).calib
    np.testing.assert_array_equal(calib.read(0, 10).inputs["input"], FLOATS)
    assert calib.describe() == "npy, 10 samples of 3x8x8, labels"
    only = open_datasets(path=tmp_path / "store", **{**OPEN, "num": 3}).calib
    assert len(only) == 3


def test_no_more_is_read_than_is_asked_for(tmp_path: Path) -> None:
    def endless() -> Iterator[np.ndarray]:
        while True:
            yield FLOATS[:4]

    assert len(stored(tmp_path, endless(), num=6).calib) == 6


def test_memory_is_that_of_a_batch(tmp_path: Path) -> None:
    big = InputSpec("input", (None, 3, 64, 64), np.dtype(np.float32))
    batches = (np.full((8, 3, 64, 64), number, np.float32) for number in range(60))
    tracemalloc.start()
    stored(tmp_path, batches, [big])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 * 8 * 3 * 64 * 64 * 4


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ([], "data gives no samples"),
        (iter([FLOATS[:0]]), "data gives no samples"),
        (3, "data is int: give arrays by name, or an iterable"),
        ([FLOATS, FLOATS[:, :, :5]], r"element 1 of data, 'input': a sample of 3x5x8 \(float32\), unlike those before"),
        ([FLOATS, FLOATS.astype(np.float64)], r"element 1 .*\(float64\), unlike those before"),
        ([FLOATS[:, :, :5]], "element 0 of data holds samples of 3x5x8, but input 'input' takes 3x8x8"),
        ([FLOATS[0, 0]], "element 0 of data has the shape 8x8 for input 'input': give batches of .x3x8x8 or single"),
        ([FLOATS, FLOATS * np.inf], "element 1 of data, 'input': a sample has NaN or Inf"),
        ([{"imges": FLOATS}], "element 0 of data has imges, but the model's inputs are 'input'"),
        ([(FLOATS, LABELS, LABELS)], "element 0 of data has 3 parts"),
        ([(FLOATS, LABELS / 2)], "element 0 of data has float64 behind the model's inputs: labels are class indices"),
        ([(FLOATS, LABELS[:4])], "element 0 of data has labels of the shape 4 for 10"),
        ([(FLOATS, LABELS), FLOATS], "element 1 of data has no labels, unlike those before"),
        ([FLOATS, (FLOATS, LABELS)], "element 1 of data has labels, unlike those before"),
        (["text"], "element 0 of data, input 'input' is str of .*: give arrays of numbers"),
        ([[[1, 2], [3]]], "element 0 of data, input 'input' cannot be made a numpy array"),
        ([torch.ones(2, 3, 8, 8).to_sparse()], "element 0 of data, input 'input' cannot be made a numpy"),
        ((1 / (2 - number) * FLOATS for number in range(3)), r"data: element 2 cannot be read \(ZeroDivisionError"),
        ({"x": FLOATS * np.nan}, "'x' of data: a sample has NaN or Inf"),
        ({"foo": FLOATS}, "data holds foo: name the samples x"),
        ({"x": FLOATS, "y": LABELS[:3]}, "'y' of data has the shape 3 for 10 samples"),
        ({"x": FLOATS, "y": "abc"}, "'y' of data is str of .*: give arrays of numbers"),
    ],
)
def test_what_is_no_samples_is_refused_in_a_sentence(tmp_path: Path, data: Any, said: str) -> None:
    message = refusal(tmp_path, data)
    assert re.search(said, message), message
    assert "\n" not in message


def test_several_inputs_come_together(tmp_path: Path) -> None:
    assert "parts, but the model's inputs are 'model/ids', 'mask'" in refusal(tmp_path, [TOKENS], [IDS, MASK])
    assert "10 samples for input 'model/ids', but 3 for" in refusal(tmp_path, [(TOKENS, MASKS[:3])], [IDS, MASK])
    assert "a batch of one input and a single" in refusal(tmp_path, [(TOKENS, MASKS[0])], [IDS, MASK])
