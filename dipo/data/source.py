"""Samples from a function `package.module:function`, which each machine that needs them calls.

The function's result is read once on each machine, into a store that its processes share. The last of these processes
removes the store; stores left by killed processes are removed when another one is created.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import fcntl
import functools
import importlib
import os
import secrets
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dipo.data.preprocess import Preprocessing
from dipo.data.samples import InputSpec, Parts, Samples, SubsetDataset
from dipo.data.store import read_store, write_store
from dipo.errors import UserError

_PREFIX = "dipo-samples-"
_STORE = "store"


@dataclass(frozen=True)
class Source:
    """A function that returns samples, with their preprocessing; a machine's processes share the samples."""

    reference: str
    """The function, as `package.module:function`."""
    key: str
    """The option that names it."""
    folder: str
    """Folder in which the job was started, where modules are searched besides Python's path."""
    num: int | None
    """Number of samples after which reading of an iterable stops; None: at its end."""
    inputs: tuple[InputSpec, ...]
    how: Preprocessing
    token: str
    """Name of the store, unique to the job."""
    digest: str | None = None
    """SHA-256 of the function's samples where the job began; None: not known yet."""

    @property
    def title(self) -> str:
        """Name of the source in messages."""
        return f"{self.key}={self.reference}"

    def parts(self) -> Parts:
        """Return the samples, from this machine's store, which the first of its processes creates.

        Raises:
            UserError: The function cannot be imported or called, or its result is not samples, or not those that it
                returned where the job began.
        """
        return _parts(self)


@dataclass(frozen=True)
class SourceDataset:
    """Samples that a function returns; it pickles without them."""

    source: Source
    part: Literal["calib", "eval"]
    num: int
    """Number of samples, the first ones of the function's."""

    def __len__(self) -> int:
        return self.num

    def take(self, num: int) -> SourceDataset:
        """Return the dataset of the first `num` samples."""
        assert num <= self.num
        return dataclasses.replace(self, num=num)

    def read(self, start: int, stop: int) -> Samples:
        """Return samples `start` to `stop` (not included).

        Raises:
            UserError: The function does not return the samples of the job's start, or a sample has NaN or Inf.
        """
        return self._stored().read(start, stop)

    def digest(self) -> str:
        """Return the SHA-256 of the values, equal to that of a file with the same values."""
        return self._stored().digest()

    def describe(self) -> str:
        """Return a short description for the log."""
        return f"{self._stored().describe()}, from {self.source.reference}"

    def pixels(self) -> str | None:
        """Say how pixels become the network's numbers; None where none are read."""
        return self._stored().pixels()

    def _stored(self) -> SubsetDataset:
        parts = self.source.parts()
        stored = parts.calib if self.part == "calib" else parts.eval
        assert stored is not None
        return stored.take(self.num)


def open_source(reference: str, *, key: str, inputs: Sequence[InputSpec], how: Preprocessing, num: int | None) -> Parts:
    """Call the function here, and return its samples, which other machines can read too.

    Args:
        reference: `package.module:function`; the function takes no arguments and returns arrays by name or an iterable,
            see `store`.
        key: The option that names it.
        inputs: The model's inputs.
        how: Layout and normalisation.
        num: Number of samples after which reading of an iterable stops; None: at its end.

    Raises:
        UserError: It cannot be imported or called, or its result is not samples.
    """
    first = Source(reference, key, str(Path.cwd()), num, tuple(inputs), how, token=secrets.token_hex(16))
    parts = first.parts()
    source = dataclasses.replace(first, digest=_digest(parts))
    calib = SourceDataset(source, "calib", len(parts.calib))
    return Parts(calib, None if parts.eval is None else SourceDataset(source, "eval", len(parts.eval)))


@functools.lru_cache(maxsize=8)
def _parts(source: Source) -> Parts:
    store = _shared_folder(source.token, functools.partial(_make, source)) / _STORE
    return read_store(store, inputs=source.inputs, how=source.how, title=source.title)


def _make(source: Source, folder: Path) -> None:
    with _also_in(source.folder):
        try:
            given = _function(source)()
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"{source.title}: calling it raised {_said(error)}: mend it there") from error
        if given is None:
            raise UserError(f"{source.title} returned nothing: return an iterable of samples, or arrays by name")
        store = folder / _STORE
        title = source.title
        write_store(store, given, inputs=source.inputs, how=source.how, num=source.num, title=title)
    if source.digest is None:
        return
    if _digest(read_store(store, inputs=source.inputs, how=source.how, title=title)) != source.digest:
        raise UserError(
            f"{title} gives other samples on {socket.gethostname()} than where the job began: make it give the same "
            "each time, with a seed of its own"
        )


def _function(source: Source) -> Callable[[], Any]:
    module, _, name = source.reference.partition(":")
    try:
        target: Any = importlib.import_module(module)
    except Exception as error:
        raise UserError(
            f"{source.title}: {module} cannot be imported, looked for in {source.folder} too ({_said(error)}): start "
            "dipo where it lies, or name its folder in PYTHONPATH"
        ) from error
    for part in name.split("."):
        if not hasattr(target, part):
            raise UserError(f"{source.title}: {module} has no '{name}', name a function without arguments in it")
        target = getattr(target, part)
    if not callable(target):
        raise UserError(f"{source.title} is {type(target).__name__}: name a function without arguments")
    function: Callable[[], Any] = target
    return function


def _digest(parts: Parts) -> str:
    return parts.calib.digest() + ("" if parts.eval is None else parts.eval.digest())


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), 'no more is known')}"


@contextlib.contextmanager
def _also_in(folder: str) -> Iterator[None]:
    """Search modules in a folder too, within the block; the function may import some only when it is called."""
    if folder in sys.path:
        yield
        return
    sys.path.append(folder)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(folder)


def _shared_folder(token: str, make: Callable[[Path], None]) -> Path:
    """Return a folder shared by this machine's processes, created by the first, and keep it until this one exits.

    A process holds a shared lock on the folder while it uses it, and an exclusive one while it creates or removes it.
    The kernel releases its locks when it ends, for whatever reason.
    """
    folder = Path(tempfile.gettempdir()) / f"{_PREFIX}{token}"
    while True:
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
            _sweep(folder)
        try:
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        fcntl.flock(lock, fcntl.LOCK_SH)
        if _is_there(folder, lock) and (folder / _STORE).exists():
            atexit.register(_leave, folder, lock)
            return folder
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            # Before this process had the lock, another may have created the store or removed the folder.
            if _is_there(folder, lock) and not (folder / _STORE).exists():
                make(folder)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        finally:
            os.close(lock)


def _is_there(folder: Path, lock: int) -> bool:
    """Return whether a locked folder is still the one at its path."""
    try:
        return os.path.samestat(folder.stat(), os.fstat(lock))
    except FileNotFoundError:
        return False


def _leave(folder: Path, lock: int) -> None:
    """Remove the folder if no other process uses it."""
    with contextlib.suppress(OSError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):
        os.close(lock)


def _sweep(own: Path) -> None:
    """Remove the folders that killed processes have left."""
    for folder in own.parent.glob(f"{_PREFIX}*"):
        if folder != own:
            with contextlib.suppress(OSError):
                _leave(folder, os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
