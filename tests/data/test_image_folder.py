import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dipo.data.image_folder import is_image_folder, read_image_folder
from dipo.data.preprocess import Preprocessing
from dipo.data.samples import InputSpec, SubsetDataset
from dipo.errors import UserError

RGB = InputSpec("input", (None, 3, 8, 8), np.dtype(np.float32))
PIXELS = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), np.uint8)
NORMALISED = (PIXELS.transpose(0, 3, 1, 2) / 127.5 - 1).astype(np.float32)


def write(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, pixels in zip(names, PIXELS, strict=False):
        Image.fromarray(pixels).save(folder / name)
    return folder


def opened(path: Path, spec: InputSpec = RGB, size: int | None = None) -> SubsetDataset:
    how = Preprocessing(mean=(0.5,), std=(0.5, 0.5, 0.5)[: spec.shape[1]], scale=1 / 255, size=size, layout="auto")
    assert is_image_folder(path)
    return read_image_folder(path, inputs=[spec], how=how).calib


def labels_of(dataset: SubsetDataset) -> list[int] | None:
    labels = dataset.read(0, len(dataset)).labels
    return None if labels is None else labels.tolist()


def test_lossless_images_of_the_right_size_are_untouched(tmp_path: Path) -> None:
    dataset = opened(write(tmp_path, "0_5.png", "1_0.bmp", "2_7.PNG"), size=16)
    samples = dataset.read(0, 3)
    np.testing.assert_allclose(samples.inputs["input"], NORMALISED[:3], rtol=0, atol=1e-6)
    assert samples.labels is not None and samples.labels.dtype == np.int64 and samples.labels.tolist() == [5, 0, 7]
    assert dataset.describe() == "image files, 3 samples of 3x8x8, labels"


@pytest.mark.parametrize("suffix", ["jpg", "jpeg", "webp", "png", "bmp"])
def test_every_known_format_is_read(tmp_path: Path, suffix: str) -> None:
    assert opened(write(tmp_path, f"a.{suffix}")).read(0, 1).inputs["input"].shape == (1, 3, 8, 8)


@pytest.mark.parametrize("names", [("a_1.png", "b.png"), ("frame_0001.png", "frame_0002.png"), ("cat.png", "dog.png")])
def test_names_without_a_class_give_no_labels(tmp_path: Path, names: tuple[str, ...]) -> None:
    dataset = opened(write(tmp_path, *names))
    assert labels_of(dataset) is None
    assert dataset.describe().endswith("no labels")


def test_labels_file_goes_before_the_names(tmp_path: Path) -> None:
    path = write(tmp_path, "0_5.png", "a b_6.png")
    (path / "labels.txt").write_text("a b_6.png 1\n\n0_5.png\t2\nelsewhere.png 9\n")
    assert labels_of(opened(path)) == [2, 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0_5.png 2\n", r"labels\.txt labels 1 of 2 images, '1_6\.png' not among them"),
        ("0_5.png 2\n1_6.png cat\n", r"labels\.txt, line 2: '1_6\.png cat'"),
        ("0_5.png 2\n0_5.png 3\n1_6.png 1\n", r"line 2"),
        ("0_5.png\n", r"line 1"),
    ],
)
def test_labels_file_must_name_each_image_once(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, "0_5.png", "1_6.png")
    (path / "labels.txt").write_text(text)
    with pytest.raises(UserError, match=message):
        opened(path)


@pytest.mark.parametrize(("names", "labels"), [(("cat", "ant"), [0, 0, 1, 1]), (("10", "9"), [9, 9, 10, 10])])
def test_class_folders_give_labels(tmp_path: Path, names: tuple[str, ...], labels: list[int]) -> None:
    for name in names:
        write(tmp_path / name, "0.png", "1.png")
    assert labels_of(opened(tmp_path)) == labels


def test_some_of_class_sorted_images_are_spread_over_the_classes(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        write(tmp_path / name, *(f"{n}.png" for n in range(4)))
    dataset = opened(tmp_path)
    assert labels_of(dataset.take(3)) == [0, 1, 2]
    assert labels_of(dataset.take(5)) == [0, 0, 1, 1, 2]
    assert labels_of(dataset.take(12)) == labels_of(dataset)


def test_some_of_unsorted_images_are_the_first(tmp_path: Path) -> None:
    assert labels_of(opened(write(tmp_path, *(f"{n}_{n + 3}.png" for n in range(6)))).take(3)) == [3, 4, 5]


def test_images_beside_class_folders_are_refused(tmp_path: Path) -> None:
    write(tmp_path, "0.png")
    (tmp_path / "empty").mkdir()
    assert len(opened(tmp_path)) == 1
    write(tmp_path / "cat", "1.png")
    with pytest.raises(UserError, match="both directly and in 'cat'"):
        opened(tmp_path)


def test_larger_image_is_resized_and_its_centre_cropped(tmp_path: Path) -> None:
    ramp = np.tile(np.arange(0, 240, 5, dtype=np.uint8), (16, 1))  # 48 wide, 16 high
    Image.fromarray(ramp).save(tmp_path / "a.png")
    result = opened(tmp_path).read(0, 1).inputs["input"][0] * 127.5 + 127.5
    columns = ramp[0].astype(float).reshape(24, 2).mean(axis=1)[8:16]
    np.testing.assert_allclose(result[1, 4], columns, atol=1)
    assert (result[0] == result[2]).all()


def test_size_is_the_shorter_side_before_the_crop(tmp_path: Path) -> None:
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[4:12, 12:20] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    np.testing.assert_allclose(opened(tmp_path, size=16).read(0, 1).inputs["input"], 1, atol=1e-6)
    assert opened(tmp_path).read(0, 1).inputs["input"].mean() < 0


def test_open_height_and_width_need_a_size(tmp_path: Path) -> None:
    path, spec = write(tmp_path, "a.png"), InputSpec("input", (None, 3, None, None), np.dtype(np.float32))
    assert opened(path, spec, size=6).read(0, 1).inputs["input"].shape == (1, 3, 6, 6)
    with pytest.raises(UserError, match=r"takes 3x\?x\?: .*data\.size"):
        opened(path, spec)


@pytest.mark.parametrize("shape", [(24, 8), (8, 24), (5, 3), (9, 8)])
def test_oblong_crops_are_always_filled(tmp_path: Path, shape: tuple[int, int]) -> None:
    Image.fromarray(np.full((*shape, 3), 255, np.uint8)).save(tmp_path / "a.png")
    for wanted in ((6, 12), (12, 6)):
        spec = InputSpec("input", (None, 3, *wanted), np.dtype(np.float32))
        np.testing.assert_allclose(opened(tmp_path, spec, size=4).read(0, 1).inputs["input"], 1, atol=1e-6)


def test_grey_input_and_grey_images(tmp_path: Path) -> None:
    Image.fromarray(PIXELS[0, ..., 0]).save(tmp_path / "a.png")
    grey = opened(tmp_path, InputSpec("input", (1, 1, 8, 8), np.dtype(np.float32))).read(0, 1).inputs["input"]
    np.testing.assert_allclose(grey[0, 0], NORMALISED[0, 0], atol=1e-6)
    colour = opened(tmp_path).read(0, 1).inputs["input"]
    np.testing.assert_array_equal(colour, np.repeat(grey, 3, axis=1))


def test_channels_last_and_uint8_inputs(tmp_path: Path) -> None:
    path = write(tmp_path, "a.png")
    result = opened(path, InputSpec("input", (1, 8, 8, 3), np.dtype(np.uint8))).read(0, 1).inputs["input"]
    assert result.dtype == np.uint8
    np.testing.assert_array_equal(result[0], PIXELS[0])


def test_palette_and_transparent_images_become_rgb(tmp_path: Path) -> None:
    image = Image.fromarray(np.full((8, 8, 3), (255, 0, 255), np.uint8))
    image.convert("P").save(tmp_path / "a.png")
    image.convert("RGBA").save(tmp_path / "b.png")
    result = opened(tmp_path).read(0, 2).inputs["input"]
    np.testing.assert_allclose(result[:, :, 0, 0], [[1, -1, 1], [1, -1, 1]], atol=1e-6)


def test_pickles_and_reads_again(tmp_path: Path) -> None:
    dataset = opened(write(tmp_path, "0_5.png", "1_6.png"))
    copy = pickle.loads(pickle.dumps(dataset))
    np.testing.assert_array_equal(copy.read(0, 2).inputs["input"], dataset.read(0, 2).inputs["input"])


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "webp"])
@pytest.mark.parametrize("kept", [0.0, 0.6])
def test_broken_image_is_named(tmp_path: Path, suffix: str, kept: float) -> None:
    path = write(tmp_path, f"a.{suffix}", f"b.{suffix}")
    broken = path / f"b.{suffix}"
    broken.write_bytes(broken.read_bytes()[: int(kept * broken.stat().st_size)])
    dataset = opened(path)
    with pytest.raises(UserError, match=rf"b\.{suffix} cannot be read as an image"):
        dataset.read(0, 2)


def test_deep_images_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 8), 40000, np.uint16)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"a\.png has more than 8 bits"):
        opened(tmp_path).read(0, 1)


@pytest.mark.parametrize("shape", [(None, 8), (None, 6, 8, 8)])
def test_inputs_that_take_no_images_are_refused(tmp_path: Path, shape: tuple[int | None, ...]) -> None:
    with pytest.raises(UserError, match="holds images, but"):
        opened(write(tmp_path, "a.png"), InputSpec("input", shape, np.dtype(np.float32)))
