"""Reader of .npz and .npy files, and of other arrays by name.

A .npz holds `calib_x`, `calib_y`, `test_x`, `test_y` (or `val_`, `eval_` instead of `test_`), or `x` and `y`, or arrays
named like the model's inputs with `labels` or `y`. Names that end in `y`, and `labels`, are optional. A .npy holds the
samples of a model with one input.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dipo.data.preprocess import Fit, Preprocessing, fit
from dipo.data.samples import InputSpec, Parts, Samples, shape_text, stored_name
from dipo.data.stored_array import MovedArray, StoredArray, open_npy, open_npz
from dipo.errors import UserError

LABELS = ("labels", "label", "y")
"""Names of labels beside arrays that are named like the model's inputs."""
_EVAL_PREFIXES = ("test", "val", "eval")
_LISTED = 8
"""Largest number of names in a message."""


@dataclass(frozen=True)
class ArrayDataset:
    """Samples in arrays, one for each input."""

    arrays: tuple[StoredArray | MovedArray, ...]
    fits: tuple[Fit, ...]
    """Conversion of each array to an input."""
    labels: StoredArray | None
    num: int
    """Number of samples, the first ones of the arrays."""

    def __len__(self) -> int:
        return self.num

    def take(self, num: int) -> ArrayDataset:
        """Return the dataset of the first `num` samples."""
        assert num <= self.num
        return dataclasses.replace(self, num=num)

    def read(self, start: int, stop: int) -> Samples:
        """Return samples `start` to `stop` (not included).

        Raises:
            UserError: The file cannot be read, or a sample has NaN or Inf.
        """
        assert 0 <= start <= stop <= self.num
        inputs = {
            how.spec.name: how.apply(array.load()[start:stop], first=start, source=array.source)
            for array, how in zip(self.arrays, self.fits, strict=True)
        }
        return Samples(inputs, None if self.labels is None else _as_labels(self.labels.load()[start:stop]))

    def digest(self) -> str:
        """Return the SHA-256 of the values.

        Raises:
            UserError: The file cannot be read.
        """
        digest = hashlib.sha256()
        for array in self.arrays:
            values = np.ascontiguousarray(array.load()[: self.num])
            digest.update(f"{values.dtype.str} {values.shape}".encode())
            digest.update(values.data)
        return digest.hexdigest()

    def describe(self) -> str:
        """Return a short description for the log."""
        shapes = ", ".join(
            (f"{how.spec.name} " if len(self.fits) > 1 else "")
            + shape_text(how.sample_shape)
            + (" (pixels, normalised)" if how.pixels is not None else "")
            for how in self.fits
        )
        kind = self.arrays[0].kind
        return f"{kind}, {self.num} samples of {shapes}, {'labels' if self.labels else 'no labels'}"

    def pixels(self) -> str | None:
        """Say how pixels become the network's numbers; None where none are stored."""
        texts = dict.fromkeys(text for how in self.fits if (text := how.pixel_text()) is not None)
        return "; ".join(texts) or None


def read_npy(path: Path, *, inputs: Sequence[InputSpec], how: Preprocessing) -> Parts:
    """Open a .npy file: the samples of the model's only input, without labels.

    Raises:
        UserError: The file is broken, does not fit the input, or the model has several inputs.
    """
    return Parts(_dataset([open_npy(path)], None, inputs=_only_input(str(path), inputs), how=how), None)


def read_npz(path: Path, *, inputs: Sequence[InputSpec], how: Preprocessing) -> Parts:
    """Open a .npz file of any of the forms above.

    Raises:
        UserError: The file is broken, no known names are in it, or the arrays do not fit the inputs or each other.
    """
    return read_named(open_npz(path), source=str(path), inputs=inputs, how=how)


def read_named(
    arrays: Mapping[str, StoredArray], *, source: str, inputs: Sequence[InputSpec], how: Preprocessing
) -> Parts:
    """Return the samples of arrays that are named like those of a .npz file.

    Args:
        arrays: Arrays by name.
        source: Name of their file or origin in messages.
        inputs: The model's inputs.
        how: Layout and normalisation.

    Raises:
        UserError: An array is broken, no known names are there, or the arrays do not fit the inputs or each other.
    """
    names = [stored_name(spec.name, set(arrays)) for spec in inputs]
    by_input = [arrays[name] for name in names if name is not None]
    if len(by_input) == len(inputs):
        labels = next((arrays[key] for key in LABELS if key in arrays and key not in names), None)
        return Parts(_dataset(by_input, labels, inputs=inputs, how=how), None)
    missing = [spec.name for spec, name in zip(inputs, names, strict=True) if name is None]
    if by_input:
        raise UserError(
            f"{source} has no array for {', '.join(map(repr, missing))}: add it, or give what is the same for all "
            f"samples as data.fixed.{missing[0]}=VALUE"
        )
    if "calib_x" not in arrays and "x" not in arrays:
        wanted = ", ".join(f"'{spec.name}'" for spec in inputs)
        raise UserError(
            f"{source} holds {_listed(arrays)}: name the samples x (labels y), "
            f"or calib_x and test_x (labels calib_y, test_y), or like the model's inputs, {wanted}"
        )
    only = _only_input(source, inputs)
    if "calib_x" not in arrays:
        return Parts(_dataset([arrays["x"]], arrays.get("y"), inputs=only, how=how), None)
    calib = _dataset([arrays["calib_x"]], arrays.get("calib_y"), inputs=only, how=how)
    prefix = next((prefix for prefix in _EVAL_PREFIXES if f"{prefix}_x" in arrays), None)
    if prefix is None:
        return Parts(calib, None)
    return Parts(calib, _dataset([arrays[f"{prefix}_x"]], arrays.get(f"{prefix}_y"), inputs=only, how=how))


def _listed(names: Iterable[str]) -> str:
    ordered = sorted(names)
    if len(ordered) > _LISTED:
        return f"{', '.join(ordered[:_LISTED])} and {len(ordered) - _LISTED} more"
    return ", ".join(ordered) or "no arrays"


def _only_input(source: str, inputs: Sequence[InputSpec]) -> Sequence[InputSpec]:
    if len(inputs) > 1:
        names = ", ".join(f"'{spec.name}'" for spec in inputs)
        raise UserError(f"{source} feeds one input, but the model has {names}: give arrays of these names")
    return inputs


def _dataset(
    stored: Sequence[StoredArray], labels: StoredArray | None, *, inputs: Sequence[InputSpec], how: Preprocessing
) -> ArrayDataset:
    arrays = _samples_first(stored, inputs)
    for array in arrays:
        if not array.shape:
            raise UserError(f"{array.source} is a single number: give an array of samples along its first axis")
    num = arrays[0].shape[0]
    for array in arrays[1:]:
        if array.shape[0] != num:
            raise UserError(
                f"{array.source} holds {array.shape[0]} samples, but {arrays[0].source} {num}: give as many of each"
            )
    if labels is not None:
        _check_labels(labels, num)
    fits = [
        fit(spec, shape=array.shape[1:], dtype=array.dtype, how=how, source=array.source)
        for spec, array in zip(inputs, arrays, strict=True)
    ]
    return ArrayDataset(tuple(arrays), tuple(fits), labels, num)


def _samples_first(stored: Sequence[StoredArray], inputs: Sequence[InputSpec]) -> list[StoredArray | MovedArray]:
    """Return the arrays [samples, ...], moved or repeated where they are stored as the model's file takes them."""
    pairs = list(zip(stored, inputs, strict=True))
    plain = [array.shape[0] for array, spec in pairs if array.shape and not spec.is_in_file_form(array.shape)]
    moved = [array.shape[spec.axis] for array, spec in pairs if spec.axis and spec.is_in_file_form(array.shape)]
    num = next(iter((*plain, *moved)), 1)
    found: list[StoredArray | MovedArray] = []
    for array, spec in pairs:
        # [samples, ...] where both readings would do.
        by_rows = array.shape[1:] == spec.sample_shape and array.shape[:1] == (num,)
        is_moved = spec.is_in_file_form(array.shape) and not by_rows
        found.append(MovedArray(array, spec.axis, num) if is_moved else array)
    return found


def _check_labels(labels: StoredArray, num: int) -> None:
    if labels.shape not in ((num,), (num, 1)):
        raise UserError(
            f"{labels.source} has the shape {shape_text(labels.shape)} for {num} samples: give each sample one label"
        )
    if labels.dtype.kind not in "iu":
        raise UserError(f"{labels.source} holds {labels.dtype}: labels are class indices, store them as integers")


def _as_labels(stored: NDArray[np.integer]) -> NDArray[np.int64]:
    return np.array(stored, dtype=np.int64).reshape(-1)
