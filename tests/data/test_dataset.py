import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dipo.data.dataset import Datasets, InputSpec, open_datasets
from dipo.data.samples import Picked
from dipo.errors import UserError

DATA = Path(__file__).parents[2] / ".." / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.exists(), reason="the shared data is not here")
IMAGE = InputSpec("input", (None, 3, 8, 8), np.dtype(np.float32))
PIXELS = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), np.uint8)


def opened(path: Path, *, inputs: tuple[InputSpec, ...] = (IMAGE,), **given: Any) -> Datasets:
    keys = ("eval_path", "num", "eval_num", "mean", "std", "size")
    return open_datasets(
        path=path, inputs=inputs, **{**dict.fromkeys(keys), "scale": 1 / 255, "layout": "auto", **given}
    )


def npz(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)
    return path


def images(folder: Path, num: int) -> Path:
    folder.mkdir(parents=True)
    for number in range(num):
        Image.fromarray(PIXELS[number]).save(folder / f"{number:02}_{number}.png")
    return folder


def test_numbers_apply_to_their_parts(tmp_path: Path) -> None:
    path = npz(tmp_path / "a.npz", calib_x=PIXELS[:7], test_x=PIXELS[7:])
    datasets = opened(path, num=3, eval_num=2)
    assert len(datasets.calib) == 3
    assert datasets.eval is not None and len(datasets.eval) == 2


def test_pixels_without_mean_and_std_are_only_scaled(tmp_path: Path) -> None:
    result = opened(npz(tmp_path / "a.npz", x=PIXELS)).calib.read(0, 12).inputs["input"]
    np.testing.assert_allclose(result, PIXELS.transpose(0, 3, 1, 2) / 255, rtol=0, atol=1e-6)


def test_scale_mean_and_std_are_applied_in_this_order(tmp_path: Path) -> None:
    path = npz(tmp_path / "a.npz", x=PIXELS)
    result = opened(path, scale=1.0, mean=[100.0, 110.0, 120.0], std=[50.0]).calib.read(0, 12).inputs["input"]
    expected = ((PIXELS - np.array([100.0, 110.0, 120.0])) / 50).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-6)


def test_eval_path_goes_before_the_part_beside_the_calibration(tmp_path: Path) -> None:
    first = npz(tmp_path / "a.npz", calib_x=PIXELS, test_x=PIXELS)
    only = opened(first, eval_path=npz(tmp_path / "b.npz", x=PIXELS[:5])).eval
    both = opened(first, eval_path=npz(tmp_path / "c.npz", calib_x=PIXELS[:5], test_x=PIXELS[:4])).eval
    assert only is not None and len(only) == 5
    assert both is not None and len(both) == 4
    assert opened(tmp_path / "b.npz").eval is None


@pytest.mark.parametrize("calib", ["calib", "train"])
@pytest.mark.parametrize("evaluation", ["val", "eval", "test"])
def test_folders_of_parts(tmp_path: Path, calib: str, evaluation: str) -> None:
    images(tmp_path / calib, 4)
    images(tmp_path / evaluation / "cat", 2)
    images(tmp_path / evaluation / "dog", 1)
    datasets = opened(tmp_path)
    assert len(datasets.calib) == 4
    assert datasets.eval is not None
    labels = datasets.eval.read(0, 3).labels
    assert labels is not None and labels.tolist() == [0, 0, 1]


def test_calibration_folder_alone_is_a_part_and_no_class(tmp_path: Path) -> None:
    images(tmp_path / "calib", 4)
    datasets = opened(tmp_path)
    labels = datasets.calib.read(0, 4).labels
    assert labels is not None and labels.tolist() == [0, 1, 2, 3]
    assert datasets.eval is None


def test_class_called_train_is_a_class(tmp_path: Path) -> None:
    for name in ("car", "plane", "train"):
        images(tmp_path / name, 2)
    assert len(opened(tmp_path).calib) == 6


def test_evaluation_alone_is_refused(tmp_path: Path) -> None:
    images(tmp_path / "val", 2)
    with pytest.raises(UserError, match="only samples for evaluation"):
        opened(tmp_path)


def test_raw_files_are_known_by_the_inputs_name(tmp_path: Path) -> None:
    (tmp_path / "input").mkdir()
    np.ones((3, 8, 8), np.float32).tofile(tmp_path / "input" / "0.bin")
    assert opened(tmp_path).calib.describe() == "raw files, 1 samples of 3x8x8, no labels"
    with pytest.raises(UserError, match=r"nothing that dipo knows .* 'data'"):
        opened(tmp_path, inputs=(InputSpec("data", IMAGE.shape, IMAGE.dtype),))


def test_relative_path_is_found_from_another_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    npz(tmp_path / "a.npz", x=PIXELS)
    images(tmp_path / "images", 2)
    monkeypatch.chdir(tmp_path)
    datasets = [opened(Path("a.npz")).calib, opened(Path("images")).calib]
    monkeypatch.chdir("/")
    assert all(len(dataset.read(0, 2).inputs["input"]) == 2 for dataset in datasets)


def test_missing_path_is_told_with_its_key(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.path=.*nowhere does not exist"):
        opened(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"data\.eval_path=.*nowhere does not exist"):
        opened(npz(tmp_path / "a.npz", x=PIXELS), eval_path=tmp_path / "nowhere")


def test_unknown_forms_are_told_with_the_known_ones(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("1,2")
    for path in (tmp_path, tmp_path / "a.csv"):
        with pytest.raises(UserError, match=r"knows.*: give a \.npz .*folder of images"):
            opened(path)


def test_no_samples_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no samples"):
        opened(tmp_path / "empty")
    with pytest.raises(UserError, match="no samples"):
        opened(npz(tmp_path / "a.npz", x=PIXELS[:0]))


@pytest.mark.parametrize("num", [0, -1, 13])
def test_number_must_be_there(tmp_path: Path, num: int) -> None:
    path = npz(tmp_path / "a.npz", calib_x=PIXELS, test_x=PIXELS)
    with pytest.raises(UserError, match=rf"data\.num={num}, but .*a\.npz has 12 samples: ask for 1 to 12"):
        opened(path, num=num)
    with pytest.raises(UserError, match=rf"data\.eval_num={num}, but "):
        opened(path, eval_num=num)


def test_eval_num_without_evaluation_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.eval_num=5, but .*give data\.eval_path"):
        opened(npz(tmp_path / "a.npz", x=PIXELS), eval_num=5)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"layout": "hwc"}, r"data\.layout=hwc: choose from auto, nchw, nhwc"),
        ({"std": [0.2, 0.0, 0.2]}, r"data\.std=.*other than 0"),
        ({"mean": [float("nan")]}, r"data\.mean=.*finite"),
        ({"scale": 0.0}, r"data\.scale=.*other than 0"),
        ({"size": 0}, r"data\.size=0"),
        ({"mean": []}, r"data\.mean has 0 values"),
    ],
)
def test_settings_are_checked(tmp_path: Path, setting: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        opened(npz(tmp_path / "a.npz", x=PIXELS), **setting)


def test_an_input_without_a_batch_is_the_same_for_all_samples(tmp_path: Path) -> None:
    image = InputSpec("image", (None, 3, 8, 8), np.dtype(np.float32))
    rate = InputSpec("rate", (None,), np.dtype(np.int64), axis=None)
    mask = InputSpec("mask", (None, 5, 5), np.dtype(np.float32), axis=None)
    rng = np.random.default_rng(0)
    arrays = {"image": rng.normal(size=(4, 3, 8, 8)).astype(np.float32), "mask": rng.normal(size=(5, 5))}
    path = npz(tmp_path / "a.npz", rate=np.array(16000), **arrays)
    found = opened(path, inputs=(image, rate, mask)).calib.read(1, 3).inputs
    assert found["rate"].tolist() == [16000, 16000]
    np.testing.assert_array_equal(found["mask"], np.stack([arrays["mask"].astype(np.float32)] * 2))


def test_an_input_may_have_a_fixed_value(tmp_path: Path) -> None:
    image = InputSpec("image", (None, 3, 8, 8), np.dtype(np.float32))
    rate = InputSpec("rate", (None,), np.dtype(np.int64), axis=None)
    scales = InputSpec("scales", (None, 2), np.dtype(np.float32))
    path = npz(tmp_path / "a.npz", image=np.zeros((4, 3, 8, 8), np.float32))
    inputs = (image, rate, scales)
    found = opened(path, inputs=inputs, fixed={"rate": 16000, "scales": [0.5, 2]})
    assert found.calib.describe().endswith("; rate = 16000, scales = 2")
    samples = found.calib.read(1, 3).inputs
    assert samples["rate"].tolist() == [16000, 16000]
    assert samples["scales"].tolist() == [[0.5, 2], [0.5, 2]]
    assert opened(path, inputs=inputs, fixed={"rate": 8000, "scales": 1}).calib.digest() != found.calib.digest()
    with pytest.raises(UserError, match=r"no array for 'rate'.* data\.fixed\.rate=VALUE"):
        opened(path, inputs=inputs, fixed={"scales": 1})
    with pytest.raises(UserError, match=r"data\.fixed\.scales=\[1, 2, 3\]: the input takes 2"):
        opened(path, inputs=inputs, fixed={"rate": 1, "scales": [1, 2, 3]})
    with pytest.raises(UserError, match=r"data\.fixed\.ratio: the model has no such input"):
        opened(path, inputs=inputs, fixed={"ratio": 1})


def test_a_state_with_the_samples_on_another_axis_is_taken_as_the_file_has_it(tmp_path: Path) -> None:
    image = InputSpec("image", (None, 3, 8, 8), np.dtype(np.float32))
    state = InputSpec("state", (None, 2, 6), np.dtype(np.float32), axis=1)
    rng = np.random.default_rng(0)
    arrays = {"image": rng.normal(size=(4, 3, 8, 8)).astype(np.float32), "state": rng.normal(size=(2, 4, 6))}
    by_sample = np.moveaxis(arrays["state"], 1, 0).astype(np.float32)
    for stored in (arrays["state"], by_sample):
        path = npz(tmp_path / f"{stored.shape[0]}.npz", image=arrays["image"], state=stored)
        np.testing.assert_array_equal(
            opened(path, inputs=(image, state)).calib.read(1, 3).inputs["state"], by_sample[1:3]
        )


@needs_data
def test_cifar_agrees_with_the_reference() -> None:
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    spec = InputSpec("input", (None, 3, 32, 32), np.dtype(np.float32))
    datasets = opened(DATA / "cifar10_subset.npz", inputs=(spec,), mean=mean, std=std)
    assert datasets.calib.describe() == "npz, 1024 samples of 3x32x32 (pixels, normalised), labels"
    assert datasets.eval is not None and len(datasets.eval) == 2000
    with np.load(DATA / "cifar10_subset.npz") as file:
        stored, labels = file["test_x"], file["test_y"]
    samples = datasets.eval.read(500, 2000)
    expected = ((stored[500:] / 255 - mean) / std).transpose(0, 3, 1, 2).astype(np.float32)
    np.testing.assert_allclose(samples.inputs["input"], expected, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(samples.labels, labels[500:])


@needs_data
def test_imagenet_photographs_are_read_fast_and_whole() -> None:
    spec = InputSpec("input", (None, 3, 224, 224), np.dtype(np.float32))
    datasets = opened(DATA / "imagenet_subset", inputs=(spec,), mean=(0.5,), std=(0.5,))
    assert datasets.eval is not None and len(datasets.eval) == 256
    start = time.process_time()
    samples = datasets.calib.read(0, 256)
    assert time.process_time() - start < 3  # about 0.5 s; a slip into float64 or per-pixel work takes far longer
    assert samples.labels is not None and samples.labels[:3].tolist() == [459, 206, 222]
    pixels = np.asarray(Image.open(DATA / "imagenet_subset" / "calib" / "0002_222.jpg"))
    np.testing.assert_allclose(samples.inputs["input"][2], pixels.transpose(2, 0, 1) / 127.5 - 1, rtol=0, atol=1e-6)


def test_picked_samples_are_a_dataset_of_their_own(tmp_path: Path) -> None:
    whole = opened(npz(tmp_path / "samples.npz", calib_x=PIXELS, calib_y=np.arange(12))).calib
    some = Picked(whole, (2, 3, 7))
    assert len(some) == 3
    expected = whole.read(0, 12)
    found = some.read(1, 3)
    assert np.array_equal(found.inputs["input"], expected.inputs["input"][[3, 7]])
    assert found.labels is not None
    assert found.labels.tolist() == [3, 7]
    assert some.digest() not in (whole.digest(), Picked(whole, (2, 3)).digest())
    assert some.describe().startswith("3 of ")
