"""Reader of image files: JPEG, PNG, BMP, WebP.

A folder holds the images directly, or one folder for each class. Images directly in it are read in the order of their
names; their labels come from `labels.txt` beside them (a line for each image: its name, white space, its class index),
else from the names if all are `<name>_<class>` with a unique `<name>` (so the counter of `frame_0001`, `frame_0002` is
no label). In class folders the label is the folder's name if all names are integers, else its index among the sorted
names.

An image is converted to RGB, or to grey if the model's input has one channel. An image of the model's height and width
is not resized; another one is resized bilinearly until its shorter side has `data.size` pixels, or more if the crop
needs them, and its centre is cropped.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dipo.data.preprocess import Fit, Preprocessing, fit, sample_shape_in
from dipo.data.samples import InputSpec, Parts, Samples, digest_files, shape_text
from dipo.errors import UserError

_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp"})
_LABELS_FILE = "labels.txt"
_NAME_WITH_CLASS = re.compile(r"(.*)_(\d+)", re.ASCII | re.DOTALL)
# What Pillow raises for a broken file depends on the format: a broken PNG is a SyntaxError.
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)


@dataclass(frozen=True)
class ImageDataset:
    """Samples in image files."""

    files: tuple[Path, ...]
    labels: tuple[int, ...] | None
    fit: Fit
    size: int | None
    """Length of the shorter side before the crop, in pixels; None: as long as the crop needs."""
    sorted_by_class: bool

    def __len__(self) -> int:
        return len(self.files)

    def take(self, num: int) -> ImageDataset:
        """Return the dataset of the first `num` images, or of evenly spaced ones if they are sorted by class."""
        assert num <= len(self)
        picks = [index * len(self) // num if self.sorted_by_class else index for index in range(num)]
        labels = None if self.labels is None else tuple(self.labels[pick] for pick in picks)
        return dataclasses.replace(self, files=tuple(self.files[pick] for pick in picks), labels=labels)

    def read(self, start: int, stop: int) -> Samples:
        """Return images `start` to `stop` (not included), decoded.

        Raises:
            UserError: An image is broken.
        """
        assert 0 <= start <= stop <= len(self)
        pixels = np.empty((stop - start, *self.fit.stored_shape), np.uint8)
        for out, file in zip(pixels, self.files[start:stop], strict=True):
            out[...] = _cached(file, shape=self.fit.stored_shape, size=self.size)
        inputs = {self.fit.spec.name: self.fit.apply(pixels, first=start, source=str(self.files[0].parent))}
        return Samples(inputs, None if self.labels is None else np.asarray(self.labels[start:stop], np.int64))

    def digest(self) -> str:
        """Return the SHA-256 of the files.

        Raises:
            UserError: A file cannot be read.
        """
        return digest_files(self.files)

    def describe(self) -> str:
        """Return a short description for the log."""
        shape = shape_text(self.fit.sample_shape)
        return f"image files, {len(self)} samples of {shape}, {'no labels' if self.labels is None else 'labels'}"

    def pixels(self) -> str | None:
        """Say how images become the network's numbers."""
        height, width, channels = self.fit.stored_shape
        side = f", the shorter side to {self.size}" if self.size is not None else ""
        kind = "grey" if channels == 1 else "RGB"
        shape = f"resized bilinearly{side} and cropped to the centre {height}x{width} where they have another size"
        return f"{kind}, {shape}; {self.fit.pixel_text()}"


def is_image_folder(path: Path) -> bool:
    """Return whether a folder has images, directly or in folders."""
    return bool(_images(path)) or any(_images(folder) for folder in _folders(path))


def read_image_folder(path: Path, *, inputs: Sequence[InputSpec], how: Preprocessing) -> Parts:
    """Open a folder for which `is_image_folder` holds.

    Raises:
        UserError: The model's input is not an image, or the labels do not fit the images.
    """
    spec = inputs[0]
    if len(inputs) > 1 or len(spec.shape) != 4:
        wanted = ", ".join(f"'{entry.name}' {shape_text(entry.shape)}" for entry in inputs)
        raise UserError(f"{path} holds images, but the model takes {wanted}: give a .npz or .bin files for such inputs")
    height, width, channels = sample_shape_in(spec, "nhwc")
    if channels not in (1, 3, None) or (None in (height, width) and how.size is None):
        raise UserError(
            f"{path} holds images, but input '{spec.name}' takes {shape_text(spec.sample_shape)}: images have 1 or 3 "
            "channels, so give a .npz or .bin files for others, and set data.size where height or width is open"
        )
    shape = (height or how.size or 0, width or how.size or 0, channels or 3)
    images = _images(path)
    classes = [folder for folder in _folders(path) if not images or _images(folder)]
    if images and classes:
        raise UserError(f"{path} has images both directly and in '{classes[0].name}': keep one of the two")
    files, labels = (images, _labels(path, images)) if images else _from_classes(classes)
    as_pixels = fit(
        spec, shape=shape, dtype=np.dtype(np.uint8), how=dataclasses.replace(how, layout="nhwc"), source=str(path)
    )
    return Parts(ImageDataset(tuple(files), labels, as_pixels, how.size, sorted_by_class=not images), None)


def _images(path: Path) -> list[Path]:
    entries = (e for e in path.iterdir() if e.suffix.lower() in _SUFFIXES and not e.name.startswith("."))
    return sorted(entry for entry in entries if entry.is_file())


def _folders(path: Path) -> list[Path]:
    return sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _from_classes(folders: Sequence[Path]) -> tuple[list[Path], tuple[int, ...]]:
    if all(folder.name.isascii() and folder.name.isdigit() for folder in folders):
        numbered = sorted((int(folder.name), folder) for folder in folders)
    else:
        numbered = list(enumerate(folders))
    labelled = [(file, label) for label, folder in numbered for file in _images(folder)]
    return [file for file, _ in labelled], tuple(label for _, label in labelled)


def _labels(path: Path, images: Sequence[Path]) -> tuple[int, ...] | None:
    if (path / _LABELS_FILE).exists():
        by_name = _read_labels(path / _LABELS_FILE)
        lacking = [image.name for image in images if image.name not in by_name]
        if lacking:
            raise UserError(
                f"{path / _LABELS_FILE} labels {len(images) - len(lacking)} of {len(images)} images, "
                f"'{lacking[0]}' not among them: give each image a line"
            )
        return tuple(by_name[image.name] for image in images)
    matches = [_NAME_WITH_CLASS.fullmatch(image.stem) for image in images]
    labelled = [match for match in matches if match is not None]
    if len(labelled) < len(images) or len({match[1] for match in labelled}) < len(images):
        return None
    return tuple(int(match[2]) for match in labelled)


def _read_labels(path: Path) -> dict[str, int]:
    try:
        lines = path.read_text("utf-8").splitlines()
    except ValueError as error:
        raise UserError(
            f"{path} is no UTF-8 text ({error}): write a line for each image, its name and class index"
        ) from error
    labels: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        name, _, label = line.strip().replace("\t", " ").rpartition(" ")
        if not label.isdecimal() or not name or name.strip() in labels:
            raise UserError(
                f"{path}, line {number}: '{line.strip()}' is not an image's name and its class index: "
                "give each image one such line"
            )
        labels[name.strip()] = int(label)
    return labels


_CACHE_BYTES = 128 << 20
_cache: dict[tuple[Path, tuple[int, ...], int | None], NDArray[Any]] = {}
"""Pixels of the first images that this process decoded, since a run reads its samples two or three times."""


def _cached(file: Path, *, shape: tuple[int, ...], size: int | None) -> NDArray[Any]:
    key = (file, shape, size)
    if key not in _cache:
        pixels = _decode(file, shape=shape, size=size)
        if (len(_cache) + 1) * pixels.nbytes > _CACHE_BYTES:
            return pixels
        _cache[key] = pixels
    return _cache[key]


def _decode(file: Path, *, shape: tuple[int, ...], size: int | None) -> NDArray[Any]:
    """Return an image's pixels, [height, width, channels]."""
    height, width, channels = shape
    try:
        with Image.open(file) as image:
            stored_mode = image.mode
            converted = image.convert("L" if channels == 1 else "RGB")
    except _BROKEN as error:
        raise UserError(f"{file} cannot be read as an image ({error}): repair or remove it") from error
    if stored_mode.startswith(("I", "F")):  # Pillow would clip them to 255
        raise UserError(f"{file} has more than 8 bits for each pixel: convert it to 8 bits, or give a .npz")
    if converted.size != (width, height):
        converted = _resize_and_crop(converted, height=height, width=width, size=size)
    return np.asarray(converted).reshape(shape)


def _resize_and_crop(image: Image.Image, *, height: int, width: int, size: int | None) -> Image.Image:
    scale = max(width / image.width, height / image.height, (size or 0) / min(image.size))
    resized = (max(width, round(image.width * scale)), max(height, round(image.height * scale)))
    left, top = (resized[0] - width) // 2, (resized[1] - height) // 2
    return image.resize(resized, Image.Resampling.BILINEAR).crop((left, top, left + width, top + height))
