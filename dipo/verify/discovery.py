"""The files that a run wrote: in its own folder, and in those of its other targets."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dipo.errors import UserError
from dipo.export.target import QUANTIZED
from dipo.export.targets import TARGETS
from dipo.run import CONFIG, FINGERPRINT, REPORT

_OWN = frozenset({CONFIG, REPORT, FINGERPRINT, "events.jsonl", "dipo.log", "export.json"})
"""Files that a run, and an export from it, write for dipo itself."""


@dataclass(frozen=True)
class TargetFolder:
    """A target's files in a folder."""

    platform: str | None
    """The target's name; None where it is not known."""
    folder: Path
    files: tuple[Path, ...]

    @property
    def quantized(self) -> Path | None:
        """The quantized model; None where there is none."""
        path = self.folder / QUANTIZED.name
        return path if path.is_file() else None


def targets_of(run: Path) -> list[TargetFolder]:
    """Return the targets of a run, its own first.

    Raises:
        UserError: The folder holds no run, or one that wrote nothing.
    """
    platform = (config_of(run).get("platform") or {}).get("name")
    own = _files(run)
    if not own:
        raise UserError(f"run={run}: the run has written no model yet, go on with run.resume={run}")
    below = [folder for folder in sorted(run.iterdir()) if folder.is_dir() and (folder / QUANTIZED.name).is_file()]
    return [TargetFolder(platform, run, own), *(TargetFolder(folder.name, folder, _files(folder)) for folder in below)]


def target_of(file: Path, platform: str | None) -> TargetFolder:
    """Return the target folder that holds one file alone.

    Raises:
        UserError: There is no such file.
    """
    if not file.is_file():
        raise UserError(f"file={file}: there is no such file, give one that a run has written")
    return TargetFolder(platform, file.parent, (file,))


def config_beside(file: Path) -> dict[str, Any]:
    """Read the configuration of the run that wrote a file, beside it or a folder above; nothing where none is there.

    Raises:
        UserError: The configuration cannot be read.
    """
    folder = file.absolute().parent
    run = next((each for each in (folder, folder.parent) if (each / CONFIG).is_file()), None)
    return {} if run is None else config_of(run)


def config_of(run: Path) -> dict[str, Any]:
    """Read a run's configuration.

    Raises:
        UserError: There is none, or it cannot be read.
    """
    try:
        content = yaml.safe_load((run / CONFIG).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"run={run}: no {CONFIG} is there, give the folder of a run") from error
    except (OSError, UnicodeError, yaml.YAMLError) as error:
        raise UserError(f"run={run}: its {CONFIG} is damaged, give the folder of another run") from error
    if not isinstance(content, dict):
        raise UserError(f"run={run}: its {CONFIG} is damaged, give the folder of another run")
    return content


def reported_sqnr(run: Path) -> float | None:
    """Read the SQNR in dB of the deployed model against the simulation from a run's report; None before its end.

    Raises:
        UserError: The report is damaged.
    """
    try:
        content = json.loads((run / REPORT).read_text(encoding="utf-8"))
        return float(content["error"]["deployed_vs_simulated"]["sqnr_db"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"run={run}: its {REPORT} is damaged, give the folder of another run") from error


def _files(folder: Path) -> tuple[Path, ...]:
    return tuple(_sorted(file for file in folder.iterdir() if file.is_file()))


def _sorted(files: Iterator[Path]) -> list[Path]:
    """Return the files written for the target's programs, told by their endings; models first."""
    endings = {".onnx", *(Path(declared.name).suffix for target in TARGETS.values() for declared in target.files)}
    written = [
        file for file in files
        if file.suffix in endings and file.name not in _OWN and not file.name.startswith(".")
    ]  # fmt: skip
    return sorted(written, key=lambda file: (file.suffix != ".onnx", file.name))
