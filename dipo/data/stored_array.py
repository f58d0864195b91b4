"""Arrays in .npy and .npz files, with headers read at once and values on demand."""

from __future__ import annotations

import functools
import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from dipo.errors import UserError

_LOCAL_HEADER = struct.Struct("<26xHH")  # of a zip member: lengths of its name and of its extra field, then both
_BROKEN = (
    OSError,
    ValueError,
    EOFError,
    zipfile.BadZipFile,
    zlib.error,
    NotImplementedError,
    # What Python's own parser says of a header that is not one, and numpy of one that wants more than there is.
    SyntaxError,
    tokenize.TokenError,
    RecursionError,
    MemoryError,
)


@dataclass(frozen=True)
class StoredArray:
    """An array in a file, described by its header; it pickles without its values."""

    path: Path
    member: str | None
    """Name of the array in the .npz; None for a .npy."""
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    title: str | None = None
    """Name in messages, for files that the user does not know; None: by path."""

    @property
    def source(self) -> str:
        """Name of the array in messages."""
        if self.title is not None:
            return self.title
        return str(self.path) if self.member is None else f"'{self.member}' in {self.path}"

    @property
    def kind(self) -> str:
        """Kind of the array in the log: `npz`, `npy` or `arrays`."""
        return "arrays" if self.title is not None else self.path.suffix.removeprefix(".").lower()

    def load(self) -> NDArray[Any]:
        """Return the values, read-only: memory-mapped, or decompressed once for the process.

        Raises:
            UserError: The file is missing, broken, or not the one that was opened.
        """
        with _explained(self.path):
            values = _load(self.path, self.member, self.path.stat().st_mtime_ns)
        if values.shape != self.shape or values.dtype != self.dtype:
            raise UserError(f"{self.source} is no longer what it was when the run began: start the run again")
        return values


@dataclass(frozen=True)
class MovedArray:
    """A stored array with the samples moved to the first axis, or repeated where it has one value for all of them."""

    array: StoredArray
    axis: int | None
    """Axis of the samples in the array; None: it has none."""
    num: int
    """Number of samples."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape with the samples first."""
        own = self.array.shape
        return (self.num, *own) if self.axis is None else (self.num, *own[: self.axis], *own[self.axis + 1 :])

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of its elements."""
        return self.array.dtype

    @property
    def source(self) -> str:
        """Name of the array in messages."""
        return self.array.source

    @property
    def kind(self) -> str:
        """Kind of the array in the log."""
        return self.array.kind

    def load(self) -> NDArray[Any]:
        """Return a view of the values, see `StoredArray.load`."""
        values = self.array.load()
        return np.broadcast_to(values, self.shape) if self.axis is None else np.moveaxis(values, self.axis, 0)


@dataclass(frozen=True)
class _Header:
    shape: tuple[int, ...]
    fortran_order: bool
    dtype: np.dtype[Any]


def open_npy(path: Path, *, title: str | None = None) -> StoredArray:
    """Read the header of a .npy file.

    Args:
        path: The file.
        title: Name of the array in messages; None: its path.

    Raises:
        UserError: The file is broken or holds Python objects.
    """
    with _explained(path), path.open("rb") as file:
        header = _read_header(file, path.stat().st_size)
    return StoredArray(path, None, header.shape, header.dtype, title)


def open_npz(path: Path) -> dict[str, StoredArray]:
    """Read the headers of all arrays of a .npz file, by name.

    Raises:
        UserError: The file is broken or holds Python objects.
    """
    arrays = {}
    with _explained(path), zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if info.filename.endswith(".npy"):
                with archive.open(info) as file:
                    header = _read_header(file, info.file_size)
                name = info.filename.removesuffix(".npy")
                arrays[name] = StoredArray(path, name, header.shape, header.dtype)
    return arrays


# Small enough for a worker's memory, large enough for a model with many inputs; all copies of a dataset in a process
# share it, however often unpickled. The time of modification distinguishes an overwritten file.
@functools.lru_cache(maxsize=16)
def _load(path: Path, member: str | None, modified_ns: int) -> NDArray[Any]:  # noqa: ARG001
    if member is None:
        return _map(path, 0)
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo(f"{member}.npy")
        if info.compress_type == zipfile.ZIP_STORED:
            return _map(path, info.header_offset, in_zip=True)
        with archive.open(info) as file:
            values: NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
    values.flags.writeable = False
    return values


def _map(path: Path, offset: int, *, in_zip: bool = False) -> NDArray[Any]:
    with path.open("rb") as file:
        file.seek(offset)
        if in_zip:
            file.seek(sum(_LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))), 1)
        header = _read_header(file, path.stat().st_size)
        start = file.tell()
    return np.memmap(
        path,
        dtype=header.dtype,
        mode="r",
        offset=start,
        shape=header.shape,
        order="F" if header.fortran_order else "C",
    )


def _read_header(file: IO[bytes], size: int) -> _Header:
    """Read a header, and check that the file can hold what it says.

    Args:
        file: At the beginning of the header.
        size: Where it ends, in bytes from its beginning.
    """
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    header = _Header(*read(file))
    if header.dtype.hasobject:
        raise ValueError("it holds Python objects instead of numbers")
    if any(length < 0 for length in header.shape):
        raise ValueError(f"its header says that its shape is {header.shape}")
    if math.prod(header.shape) * header.dtype.itemsize > size - file.tell():
        raise ValueError(f"it ends before the {header.dtype} of shape {header.shape} that its header says")
    return header


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except _BROKEN as error:
        raise UserError(f"{path} cannot be read ({error}): write it again with numpy") from error
