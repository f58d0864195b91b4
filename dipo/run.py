"""The folder of a run: every file in it is complete or absent."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from dipo.errors import UserError

CONFIG = "config.yaml"
"""The first file of a run."""


class RunFolder:
    """Writes a run's files, each under a temporary name that becomes the final one when it is complete."""

    def __init__(self, path: Path) -> None:
        """Makes the folder.

        Raises:
            UserError: It cannot be made or written, or holds another run.
        """
        self.path = path
        self.made = not path.exists()
        if (path / CONFIG).exists():
            raise UserError(f"run.dir={path}: the folder holds another run, choose another one or remove it")
        try:
            path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=path):
                pass
        except OSError as error:
            raise UserError(
                f"run.dir={path}: cannot be written ({error.strerror}), choose another folder with run.dir="
            ) from error

    def discard(self) -> None:
        """Removes the folder of a run that came to nothing, unless it was there before."""
        if self.made:
            shutil.rmtree(self.path, ignore_errors=True)

    @contextlib.contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """A path to write to, renamed to `name` at the end; removed where the writing fails.

        Args:
            name: The final name, `/` for folders within the run's.
        """
        final = self.path / name
        final.parent.mkdir(parents=True, exist_ok=True)
        temporary = final.with_name(f".{final.name}.{os.getpid()}.part")
        try:
            yield temporary
            temporary.replace(final)
        finally:
            temporary.unlink(missing_ok=True)

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Writes a JSON file.

        Raises:
            ValueError: A number is NaN or infinite, which JSON does not know.
        """
        with self.writing(name) as path:
            path.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")

    def write_yaml(self, name: str, content: Mapping[str, Any]) -> None:
        """Writes a YAML file."""
        with self.writing(name) as path:
            path.write_text(yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True), encoding="utf-8")

    def write_arrays(self, name: str, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Writes a safetensors file."""
        from safetensors.numpy import save_file

        with self.writing(name) as path:
            save_file({key: np.asarray(array, order="C") for key, array in arrays.items()}, path)
