"""Samples from a function that is named, `package.module:function`: every node that needs them calls it for itself.

What the function returns is read once on each node, into a store that the node's processes share. The last of these
processes takes the store away; what a killed one left behind goes when another store is made.
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
    """A function that gives samples, and how they become the model's inputs; a node's processes share what it gave."""

    reference: str
    """`package.module:function`."""
    key: str
    """The option that names it."""
    folder: str
    """Where modules are looked for besides Python's own places: the folder in which the job was started."""
    num: int | None
    """Samples after which an iterable is left alone; None: never."""
    inputs: tuple[InputSpec, ...]
    how: Preprocessing
    token: str
    """Name of the store, another one for each job."""
    digest: str | None = None
    """SHA-256 of what the function gave where the job began; None: that is yet to come."""

    @property
    def title(self) -> str:
        """What messages call it."""
        return f"{self.key}={self.reference}"

    def parts(self) -> Parts:
        """Return the samples, from this node's store; the first of its processes makes it.

        Raises:
            UserError: The function cannot be imported or called, or what it gives is no samples, or others than it
                gave where the job began.
        """
        return _parts(self)


@dataclass(frozen=True)
class SourceDataset:
    """Samples that a function gives; it pickles without them."""

    source: Source
    part: Literal["calib", "eval"]
    num: int
    """The first so many samples."""

    def __len__(self) -> int:
        return self.num

    def take(self, num: int) -> SourceDataset:
        """Return the dataset of the first `num` samples."""
        assert num <= self.num
        return dataclasses.replace(self, num=num)

    def read(self, start: int, stop: int) -> Samples:
        """Return samples `start` to `stop` (not included).

        Raises:
            UserError: The function does not give what it gave where the job began, or a sample has NaN or Inf.
        """
        return self._stored().read(start, stop)

    def digest(self) -> str:
        """Return SHA-256 of the values: the same as that of a file that holds them."""
        return self._stored().digest()

    def describe(self) -> str:
        """Say what this is, for the log."""
        return f"{self._stored().describe()}, from {self.source.reference}"

    def _stored(self) -> SubsetDataset:
        parts = self.source.parts()
        stored = parts.calib if self.part == "calib" else parts.eval
        assert stored is not None
        return stored.take(self.num)


def open_source(reference: str, *, key: str, inputs: Sequence[InputSpec], how: Preprocessing, num: int | None) -> Parts:
    """Call the function here, and return its samples for whoever needs them.

    Args:
        reference: `package.module:function`; the function takes no arguments and returns arrays by name or an iterable,
            see `store`.
        key: The option that names it.
        inputs: The model's inputs.
        how: Layout and normalisation.
        num: Samples after which an iterable is left alone; None: never.

    Raises:
        UserError: It cannot be imported or called, or what it gives is no samples.
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
            raise UserError(f"{source.title}: calling it raised {_said(error)}") from error
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
        found: Any = importlib.import_module(module)
    except Exception as error:
        raise UserError(
            f"{source.title}: {module} cannot be imported, looked for in {source.folder} too ({_said(error)})"
        ) from error
    for part in name.split("."):
        if not hasattr(found, part):
            raise UserError(f"{source.title}: {module} has no '{name}', name a function without arguments in it")
        found = getattr(found, part)
    if not callable(found):
        raise UserError(f"{source.title} is {type(found).__name__}: name a function without arguments")
    function: Callable[[], Any] = found
    return function


def _digest(parts: Parts) -> str:
    return parts.calib.digest() + ("" if parts.eval is None else parts.eval.digest())


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), 'no more is known')}"


@contextlib.contextmanager
def _also_in(folder: str) -> Iterator[None]:
    """Look for modules in a folder, too; the function may import some as late as when it is called."""
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
    """Return a folder that this node's processes share, made by the first of them, and keep it while this one lives.

    A process that uses the folder has a shared lock on it, who makes it or takes it away an exclusive one: the kernel
    drops them with the process, whatever ends it.
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
            # Before it had the lock, another process may have made the store, or taken the folder away.
            if _is_there(folder, lock) and not (folder / _STORE).exists():
                make(folder)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        finally:
            os.close(lock)


def _is_there(folder: Path, lock: int) -> bool:
    """Tell whether a locked folder is still the one of its name."""
    try:
        return os.path.samestat(folder.stat(), os.fstat(lock))
    except FileNotFoundError:
        return False


def _leave(folder: Path, lock: int) -> None:
    """Take the folder away, if no other process uses it."""
    with contextlib.suppress(OSError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):
        os.close(lock)


def _sweep(own: Path) -> None:
    """Take away what processes left behind that were killed."""
    for folder in own.parent.glob(f"{_PREFIX}*"):
        if folder != own:
            with contextlib.suppress(OSError):
                _leave(folder, os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
