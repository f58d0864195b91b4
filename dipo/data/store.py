"""A store of samples: a folder with one .npy file for each of the network's inputs, and one for labels.

Processes that share the folder read the files through memory maps. The files are written element by element, with no
more samples in memory than those of one element, and the folder gets its name when it is complete. Its files are named
like the arrays of a .npz file, see `npz`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dipo.data.elements import Rows, as_array, rows_of
from dipo.data.npz import LABELS, read_named
from dipo.data.preprocess import Preprocessing, fit
from dipo.data.samples import InputSpec, Parts, shape_text
from dipo.data.stored_array import open_npy
from dipo.errors import UserError


def is_store(path: Path) -> bool:
    """Return whether a folder has .npy files."""
    return any(path.glob("*.npy"))


def read_store(path: Path, *, inputs: Sequence[InputSpec], how: Preprocessing, title: str | None = None) -> Parts:
    """Open the samples of a store.

    Args:
        path: The store's folder.
        inputs: The model's inputs.
        how: Layout and normalisation.
        title: Name of the samples in messages; None: their paths.

    Raises:
        UserError: A file is broken, no known names are there, or the arrays do not fit the inputs or each other.
    """
    files = {file.stem: file for file in sorted(path.glob("*.npy"))}
    arrays = {
        name: open_npy(file, title=None if title is None else f"'{name}' of {title}") for name, file in files.items()
    }
    return read_named(arrays, source=title or str(path), inputs=inputs, how=how)


def write_store(
    path: Path, data: Any, *, inputs: Sequence[InputSpec], how: Preprocessing, num: int | None, title: str
) -> None:
    """Write samples from memory into a new store.

    Args:
        path: The store's folder, which must not exist.
        data: Arrays by name, or an iterable, read once, of elements that `elements` knows.
        inputs: The model's inputs.
        how: Layout and normalisation for reading the samples.
        num: Number of samples after which reading of an iterable stops; None: at its end.
        title: Name of the samples in messages.

    Raises:
        UserError: The samples are not numbers, do not fit the inputs or each other, or cannot be read.
    """
    whole = _whole(data, inputs)
    with _writing(path) as folder:
        if whole is not None:
            _write_whole(folder, whole, title)
            read_store(folder, inputs=inputs, how=how, title=title)  # refuses what does not fit
        elif hasattr(data, "__iter__") or hasattr(data, "__getitem__"):
            _write_elements(folder, _elements(data, title), inputs=inputs, how=how, num=num, title=title)
        else:
            raise UserError(
                f"{title} is {type(data).__name__}: give arrays by name, or an iterable of arrays, dicts or tuples"
            )


def _whole(data: Any, inputs: Sequence[InputSpec]) -> Mapping[str, Any] | None:
    """Return arrays by name if `data` holds all samples at once; else None."""
    if isinstance(data, Mapping):
        return data
    if len(inputs) == 1 and hasattr(data, "__array__") and np.ndim(data) == len(inputs[0].shape):
        return {"x": data}
    return None


def _write_whole(folder: Path, arrays: Mapping[str, Any], title: str) -> None:
    for name, value in arrays.items():
        source = f"'{name}' of {title}"
        array = as_array(value, source=source)
        file = folder / _file_name(str(name))
        if file.exists():
            raise UserError(f"{source}: another array has the name {file.stem}, name them like the model's inputs")
        if array.ndim and not len(array):
            raise UserError(f"{source}: it has no samples, give one at least")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise UserError(f"{source}: a sample has NaN or Inf, repair or remove it")
        np.save(file, array)


def _write_elements(
    folder: Path,
    elements: Iterable[Any],
    *,
    inputs: Sequence[InputSpec],
    how: Preprocessing,
    num: int | None,
    title: str,
) -> None:
    writer: _Writer | None = None
    written = 0
    with contextlib.ExitStack() as stack:
        for index, element in enumerate(elements):
            source = f"element {index} of {title}"
            rows = rows_of(element, inputs, source=source)
            if len(rows) == 0:
                continue
            if num is not None:
                rows = rows.first(num - written)
            if writer is None:
                for spec in inputs:
                    array = rows.inputs[spec.name]
                    fit(spec, shape=array.shape[1:], dtype=array.dtype, how=how, source=source)
                writer = _Writer(folder, rows)
                stack.callback(writer.close)
            writer.append(rows, source)
            written += len(rows)
            if written == num:
                break
    if not written:
        raise UserError(f"{title} gives no samples: an iterable is read once, give one that is not at its end")


def _elements(data: Any, title: str) -> Iterator[Any]:
    """Iterate over the elements; turn exceptions into `UserError`."""
    index = 0
    try:
        # A torch Dataset need not raise IndexError at its end, so its length counts.
        plain = not hasattr(data, "__iter__") and hasattr(data, "__len__")
        for element in (data[number] for number in range(len(data))) if plain else data:
            yield element
            index += 1
    except UserError:
        raise
    except Exception as error:
        reason = next(iter(str(error).splitlines()), "no more is known")
        raise UserError(
            f"{title}: element {index} cannot be read ({type(error).__name__}: {reason}), mend what gives it"
        ) from error


class _Writer:
    """A writer of one file for each input, and one for labels."""

    def __init__(self, folder: Path, like: Rows) -> None:
        self.labelled = like.labels is not None
        names = [*like.inputs, *([self._labels_name(like)] if self.labelled else [])]
        files = {name: folder / _file_name(name) for name in names}
        assert len(set(files.values())) == len(files), "names of inputs differ in more than slashes"
        self.files = {name: _GrowingArray(files[name], array) for name, array in self._arrays(like).items()}

    def append(self, rows: Rows, source: str) -> None:
        """Add samples."""
        if (rows.labels is not None) != self.labelled:
            raise UserError(
                f"{source} has {'no ' * self.labelled}labels, unlike those before: give labels with all or with none"
            )
        for name, array in self._arrays(rows).items():
            self.files[name].append(array, f"{source}, '{name}'")

    def close(self) -> None:
        """Complete the files."""
        for file in self.files.values():
            file.close()

    def _arrays(self, rows: Rows) -> dict[str, NDArray[Any]]:
        labels = {} if rows.labels is None else {self._labels_name(rows): rows.labels.astype(np.int64)}
        return {**rows.inputs, **labels}

    @staticmethod
    def _labels_name(rows: Rows) -> str:
        return next(name for name in LABELS if name not in rows.inputs)


class _GrowingArray:
    """A .npy file whose first axis grows."""

    def __init__(self, path: Path, like: NDArray[Any]) -> None:
        self.shape, self.dtype, self.num = like.shape[1:], like.dtype, 0
        self.file = path.open("wb")
        self._write_header()
        self.start = self.file.tell()

    def append(self, rows: NDArray[Any], source: str) -> None:
        """Add rows of the same shape and type as the first ones."""
        if rows.shape[1:] != self.shape or rows.dtype != self.dtype:
            raise UserError(
                f"{source}: a sample of {shape_text(rows.shape[1:])} ({rows.dtype}), unlike those before, which are "
                f"{shape_text(self.shape)} ({self.dtype}): give all in one shape and type"
            )
        if rows.dtype.kind == "f" and not np.isfinite(rows).all():
            raise UserError(f"{source}: a sample has NaN or Inf, repair or remove it")
        self.file.write(np.ascontiguousarray(rows).data)
        self.num += len(rows)

    def close(self) -> None:
        """Write the number of rows into the header, and flush the file to disk."""
        self.file.seek(0)
        self._write_header()
        assert self.file.tell() == self.start, "numpy leaves room for the first axis to grow"
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()

    def _write_header(self) -> None:
        header = {
            "descr": np.lib.format.dtype_to_descr(self.dtype),
            "fortran_order": False,
            "shape": (self.num, *self.shape),
        }
        np.lib.format.write_array_header_1_0(self.file, header)


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[Path]:
    """Yield a temporary folder that is renamed to `path` if the block succeeds, and else removed."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    temporary.mkdir(parents=True)
    try:
        yield temporary
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _file_name(name: str) -> str:
    return f"{name.replace('/', '_')}.npy"
