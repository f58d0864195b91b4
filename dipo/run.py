"""The folder of a run: every file in it is complete or absent."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from dipo.errors import JobError, UserError

log = logging.getLogger("dipo")

CONFIG = "config.yaml"
"""The first file of a run."""
UNITS = "units"
FINGERPRINT = "fingerprint.json"
REPORT = "report.json"
"""The last file of a run."""
ABOUT = "dipo"
"""The entry in the header of an array file: a digest, and the plain values that go with the arrays."""
FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_BEGIN = {"run.resume": "give the folder of one or begin with run.dir=", "run": "give the folder of a finished run"}
"""Advice where a folder has no run, by the option that names the folder."""
_ANEW = {"run.resume": "begin the run again with run.dir=", "run": "do the run again"}
"""What to do where a run is damaged."""
_WRITABLE = {
    "run.dir": "choose another folder with run.dir=",
    "run.resume": "make it writable, or copy the run and go on with the copy",
    "run": "make it writable, or copy the run and name the copy",
}
"""What to do where a folder cannot be written."""


class DamagedFileError(Exception):
    """The error of a run's file that is missing or differs from what was written."""


class RunFolder:
    """The files of a run, each written under a temporary name that becomes the final one when it is complete."""

    def __init__(self, path: Path, *, resume: bool = False, option: str | None = None) -> None:
        """Make the folder, or open that of an earlier run, and lock it against other processes.

        Args:
            path: The folder.
            resume: Whether a run was begun in it.
            option: The option by which the user named it; None: `run.resume` or `run.dir`.

        Raises:
            UserError: It cannot be made or written, holds another run or, to `resume`, none, or is in use.
        """
        self.path = path
        self.made = not path.exists()
        self.option = option or ("run.resume" if resume else "run.dir")
        if resume and not (path / CONFIG).is_file():
            raise _no_run(path, self.option)
        if not resume and (path / CONFIG).exists():
            raise UserError(
                f"run.dir={path}: the folder holds another run, choose another one, or go on with it: run.resume={path}"
            )
        try:
            path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=path):
                pass
            self.lock: int | None = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise UserError(
                f"{self.option}={path}: cannot be written ({error.strerror}), {_WRITABLE[self.option]}"
            ) from error
        self._take_lock()
        for left in list(path.rglob(".*.part")):  # of a process that was killed
            if left.is_dir():
                shutil.rmtree(left)
            else:
                left.unlink(missing_ok=True)

    def _take_lock(self) -> None:
        try:
            assert self.lock is not None
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"{self.option}={self.path}: another process is at work on this run, wait for it or end it"
            ) from error
        except OSError as error:
            # Some network file systems know no locks; then nothing keeps two processes apart but their user.
            log.warning("%s cannot be locked (%s)", self.path, error.strerror)

    @staticmethod
    def stored_config(
        path: Path, *, whole: Mapping[str, Any] | None = None, option: str = "run.resume"
    ) -> dict[str, Any]:
        """Read the configuration that a run was begun with.

        Args:
            path: The run's folder.
            whole: A configuration with every section and option, all of which have to be there.
            option: The option by which the user named the folder.

        Raises:
            UserError: There is none, it cannot be read, or part of it is missing.
        """
        if not (path / CONFIG).is_file():
            raise _no_run(path, option)
        damaged = f"{option}={path}: its {CONFIG} is damaged"
        try:
            content = yaml.safe_load((path / CONFIG).read_text(encoding="utf-8"))
        except (OSError, UnicodeError, yaml.YAMLError) as error:
            raise UserError(f"{damaged}, {_ANEW[option]}") from error
        if not isinstance(content, dict):
            raise UserError(f"{damaged}, {_ANEW[option]}")
        missing = _missing(whole or {}, content)
        if missing:
            others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise UserError(f"{damaged} or another version's ({missing[0]}{others} is not in it), {_ANEW[option]}")
        return content

    @property
    def finished(self) -> bool:
        """Whether the run finished."""
        return (self.path / REPORT).is_file()

    def has(self, name: str) -> bool:
        """Return whether a file was written."""
        return (self.path / name).is_file()

    def close(self) -> None:
        """Unlock the folder for other processes."""
        if self.lock is not None:
            os.close(self.lock)
            self.lock = None

    def discard(self) -> None:
        """Remove the folder of a run that wrote nothing, unless it was there before."""
        if self.made:
            shutil.rmtree(self.path, ignore_errors=True)

    def forget_results(self) -> None:
        """Remove the files that depend on the statistics, the report first: without it the run is unfinished."""
        (self.path / REPORT).unlink(missing_ok=True)
        shutil.rmtree(self.path / UNITS, ignore_errors=True)

    @contextlib.contextmanager
    def staging(self) -> Iterator[Path]:
        """Yield a temporary folder whose files are moved to their final place when all are complete."""
        path = self.path / f".staging.{os.getpid()}.part"
        with explain_full_disk(self.path, self._go_on):
            path.mkdir()
            try:
                yield path
            finally:
                shutil.rmtree(path)

    @property
    def _go_on(self) -> str:
        return "export again" if self.option == "run" else f"go on with run.resume={self.path}"

    @contextlib.contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """Yield a path to write to, renamed to `name` at the end; removed where the writing fails.

        Args:
            name: The final name, `/` for folders within the run's.

        Raises:
            JobError: The disk is full.
        """
        final = self.path / name
        temporary = final.with_name(f".{final.name}.{os.getpid()}.part")
        try:
            with explain_full_disk(self.path, self._go_on):
                final.parent.mkdir(parents=True, exist_ok=True)
                yield temporary
                with temporary.open("rb") as written:
                    os.fsync(written)  # the content is on the disk before the name is
                temporary.replace(final)
        finally:
            temporary.unlink(missing_ok=True)

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a JSON file.

        Raises:
            ValueError: A number is NaN or infinite, which JSON does not know.
        """
        with self.writing(name) as path:
            path.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")

    def read_json(self, name: str) -> dict[str, Any]:
        """Read a JSON file of the run.

        Raises:
            DamagedFileError: It is missing or damaged.
        """
        try:
            content = json.loads((self.path / name).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DamagedFileError(name) from error
        if not isinstance(content, dict):
            raise DamagedFileError(name)
        return content

    def write_yaml(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a YAML file."""
        with self.writing(name) as path:
            path.write_text(yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True), encoding="utf-8")

    def write_arrays(
        self, name: str, arrays: Mapping[str, NDArray[Any]], about: Mapping[str, Any] | None = None
    ) -> None:
        """Write a safetensors file, with a digest of its content.

        Args:
            name: The final name.
            arrays: The arrays to write.
            about: Plain values to store with them.
        """
        from safetensors.numpy import save

        stored = {key: np.asarray(array, order="C") for key, array in arrays.items()}
        text = json.dumps(about or {}, allow_nan=False)
        # One entry: several would be written in an order of their own each time.
        metadata = {ABOUT: json.dumps({"about": text, "sha256": _digest(stored, text)})}
        with self.writing(name) as path:
            path.write_bytes(save(stored, metadata=metadata))

    def read_arrays(self, name: str) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Read the arrays of a file, and the plain values stored with them.

        Raises:
            DamagedFileError: It is missing or damaged.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.path / name, framework="numpy") as file:
                arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - it has no iterator
                entry = json.loads((file.metadata() or {})[ABOUT])
            about, digest = entry["about"], entry["sha256"]
        except (OSError, SafetensorError, ValueError, KeyError) as error:
            raise DamagedFileError(name) from error
        if digest != _digest(arrays, about):
            raise DamagedFileError(name)
        plain: dict[str, Any] = json.loads(about)
        return arrays, plain


@contextlib.contextmanager
def explain_full_disk(path: Path, go_on: str | None = None) -> Iterator[None]:
    """Turn the error of a full disk into a sentence that says how to go on.

    Args:
        path: The run's folder.
        go_on: What to do once there is space; null: go on with the run.

    Raises:
        JobError: The disk is full.
    """
    try:
        yield
    except Exception as error:
        # Writers in C++ and Rust report a full disk in their own words.
        in_words = os.strerror(errno.ENOSPC).lower() in str(error).lower()
        if not (error.errno in FULL if isinstance(error, OSError) else in_words):
            raise
        remedy = go_on or f"go on with run.resume={path}"
        raise JobError(f"{path}: no space is left on the disk, free some and {remedy}") from error


def _no_run(path: Path, option: str) -> UserError:
    return UserError(f"{option}={path}: no run was begun there, {_BEGIN[option]}")


def _missing(whole: Mapping[str, Any], content: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return the sections and options of `whole` that `content` lacks."""
    found = []
    for name, value in whole.items():
        if name not in content:
            found.append(prefix + name)
        elif isinstance(value, Mapping) and isinstance(content[name], Mapping):
            found += _missing(value, content[name], f"{prefix}{name}.")
    return found


def _digest(arrays: Mapping[str, NDArray[Any]], about: str) -> str:
    digest = hashlib.sha256(about.encode())
    for key in sorted(arrays):
        array = arrays[key]
        digest.update(f"\n{key} {array.dtype.str} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
