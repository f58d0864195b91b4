"""Reader of folders in Dipoorlet's layout: `<input>/<n>.bin`, each file the raw values of one sample.

The values are little-endian: float32 for a float input (or the input's own type, if only that agrees with the file's
length), else the input's own type. A folder has the input's name; one with a `/` is a folder in a folder, as Dipoorlet
writes it, or has `_` in its place. The files are read in the order of their numbers.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dipo.data.preprocess import Fit, Preprocessing, fit, sample_shape_in
from dipo.data.samples import InputSpec, Parts, Samples, digest_files, shape_text, stored_name
from dipo.errors import UserError


@dataclass(frozen=True)
class BinInput:
    """The files of one input."""

    fit: Fit
    files: tuple[Path, ...]
    dtype: np.dtype[Any]

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Return the input's samples `start` to `stop` (not included)."""
        stored = np.empty((stop - start, math.prod(self.fit.stored_shape)), self.dtype)
        for row, file in zip(stored, self.files[start:stop], strict=True):
            try:
                raw = file.read_bytes()
            except OSError as error:
                raise UserError(f"{file} cannot be read ({error}): restore it, and start the run again") from error
            if len(raw) != row.nbytes:
                raise _wrong_length(file, len(raw), self.fit.spec, self.dtype)
            row[:] = np.frombuffer(raw, self.dtype)
        return self.fit.apply(stored, first=start, source=str(self.files[0].parent))


@dataclass(frozen=True)
class BinDataset:
    """Samples in raw files, one for each sample and input."""

    inputs: tuple[BinInput, ...]

    def __len__(self) -> int:
        return len(self.inputs[0].files)

    def take(self, num: int) -> BinDataset:
        """Return the dataset of the first `num` samples."""
        assert num <= len(self)
        return BinDataset(tuple(dataclasses.replace(entry, files=entry.files[:num]) for entry in self.inputs))

    def read(self, start: int, stop: int) -> Samples:
        """Return samples `start` to `stop` (not included).

        Raises:
            UserError: A file cannot be read or has changed its length, or a sample has NaN or Inf.
        """
        assert 0 <= start <= stop <= len(self)
        return Samples({entry.fit.spec.name: entry.read(start, stop) for entry in self.inputs}, None)

    def digest(self) -> str:
        """Return the SHA-256 of the files.

        Raises:
            UserError: A file cannot be read.
        """
        return digest_files(file for entry in self.inputs for file in entry.files)

    def describe(self) -> str:
        """Return a short description for the log."""
        shapes = ", ".join(
            (f"{entry.fit.spec.name} " if len(self.inputs) > 1 else "") + shape_text(entry.fit.sample_shape)
            for entry in self.inputs
        )
        return f"raw files, {len(self)} samples of {shapes}, no labels"

    def pixels(self) -> str | None:
        """Return None: raw files hold the network's own numbers."""
        return None


def is_bin_dir(path: Path, inputs: Sequence[InputSpec]) -> bool:
    """Return whether a folder has a folder with .bin files for at least one of the inputs."""
    folders = (_folder(path, spec) for spec in inputs)
    return any(folder is not None and any(folder.glob("[!.]*.bin")) for folder in folders)


def read_bin_dir(path: Path, *, inputs: Sequence[InputSpec], how: Preprocessing) -> Parts:
    """Open a folder for which `is_bin_dir` holds.

    Raises:
        UserError: An input has no folder, the folders' numbers differ, or a file's length is not that of a sample.
    """
    numbered = {spec.name: _numbered_files(path, spec) for spec in inputs}
    first, *others = numbered
    for other in others:
        lacking = sorted(numbered[first].keys() ^ numbered[other].keys())
        if lacking:
            raise UserError(
                f"{path} has {lacking[0]}.bin for only one of the inputs '{first}' and '{other}': "
                "add the other, every sample needs a file of the same number in each input's folder"
            )
    return Parts(BinDataset(tuple(_input(spec, tuple(numbered[spec.name].values()), how) for spec in inputs)), None)


def _folder(path: Path, spec: InputSpec) -> Path | None:
    """Return the input's folder; None if there is none."""
    name = stored_name(spec.name, {entry.name for entry in path.iterdir() if entry.is_dir()})
    if name is not None:
        return path / name
    parts = [part for part in spec.name.split("/") if part]
    nested = path.joinpath(*parts)
    return nested if parts and ".." not in parts and nested.is_dir() else None


def _numbered_files(path: Path, spec: InputSpec) -> dict[int, Path]:
    folder = _folder(path, spec)
    if folder is None:
        raise UserError(
            f"{path} has no folder for input '{spec.name}': add one of that name ('_' for '/') with its .bin files"
        )
    files: dict[int, Path] = {}
    for file in folder.glob("[!.]*.bin"):
        if not (file.stem.isascii() and file.stem.isdigit()) or int(file.stem) in files:
            raise UserError(
                f"{file}: name the files of a folder by their sample's number, 0.bin, 1.bin, ..., each once"
            )
        files[int(file.stem)] = file
    if not files:
        raise UserError(f"{folder} has no .bin files: add one for each sample, 0.bin, 1.bin, ...")
    return dict(sorted(files.items()))


def _input(spec: InputSpec, files: tuple[Path, ...], how: Preprocessing) -> BinInput:
    lengths = [file.stat().st_size for file in files]
    wanted = sample_shape_in(spec, how.layout)
    own = spec.stored.newbyteorder("<")
    for dtype in (np.dtype("<f4"), own) if spec.dtype.kind == "f" else (own,):
        shape = _shape_of(lengths[0], dtype, wanted, files[0])
        if shape is not None:
            break
    else:
        raise _wrong_length(files[0], lengths[0], spec, dtype)
    for file, length in zip(files, lengths, strict=True):
        if length != lengths[0]:
            raise _wrong_length(file, length, spec, dtype)
    return BinInput(fit(spec, shape=shape, dtype=dtype, how=how, source=str(files[0].parent)), files, dtype)


def _shape_of(length: int, dtype: np.dtype[Any], wanted: tuple[int | None, ...], file: Path) -> tuple[int, ...] | None:
    """Return the shape of a sample of `length` bytes; None if `wanted` cannot have that length."""
    if wanted.count(None) > 1:
        raise UserError(
            f"{file}: raw values cannot tell the shape of a sample of {shape_text(wanted)}, of which more than one "
            "dimension is open: give a .npz instead, or a model of fixed shape"
        )
    known = math.prod(dim for dim in wanted if dim is not None) * dtype.itemsize
    if None not in wanted:
        return tuple(dim for dim in wanted if dim is not None) if length == known else None
    return tuple(length // known if dim is None else dim for dim in wanted) if length and length % known == 0 else None


def _wrong_length(file: Path, length: int, spec: InputSpec, dtype: np.dtype[Any]) -> UserError:
    one_open = "the same length as all others, a multiple of " if None in spec.sample_shape else ""
    known = math.prod(dim for dim in spec.sample_shape if dim is not None) * dtype.itemsize
    return UserError(
        f"{file} has {length} bytes, but a {dtype.name} sample of input '{spec.name}' "
        f"({shape_text(spec.sample_shape)}) has {one_open}{known}: write one sample into each file"
    )
