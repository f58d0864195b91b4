"""A target's files, written into any folder."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dipo.api.settings import options_of, with_options
from dipo.config import PlatformConfig
from dipo.errors import UserError
from dipo.export.formats import QDQ, OnnxFormat
from dipo.export.targets import TARGETS, check_options
from dipo.section import choose
from dipo.stages.export_run import platform_config
from dipo.stages.load import form_of
from dipo.stages.retarget import QuantizedRun, target_of, write


@dataclasses.dataclass(frozen=True)
class Wanted:
    """Which files are to be written."""

    target: str
    cfg: PlatformConfig
    form: OnnxFormat


def wanted(source: QuantizedRun, target: str | None, options: Mapping[str, Any] | None) -> Wanted:
    """Check what is asked for.

    Args:
        source: The network.
        target: Whose files; None: those of the network's own target.
        options: Of `platform` and `export`, by the names of the command line.

    Raises:
        UserError: The target or an option is unknown, or the target does not take the option.
    """
    name = target or source.config.platform.name
    if name not in TARGETS:
        raise UserError(f"unknown target '{name}': {choose(str(name), TARGETS)}")
    given = options_of(options)
    for key in given:
        if not key.startswith(("platform.", "export.")) or key in ("platform.name", "export.also"):
            raise UserError(f"options: {key} says nothing about the files of a target, leave it out")
    platform = {key.removeprefix("platform."): value for key, value in given.items() if key.startswith("platform.")}
    export = {key: value for key, value in given.items() if key.startswith("export.")}
    cfg, form = platform_config([name], source.config.platform, platform), form_of(with_options(source.config, export))
    check_options([name], cfg.given, form=form if "export.format" in export else QDQ, all_take_form=True)
    return Wanted(name, cfg, form)


def write_files(
    source: QuantizedRun, folder: Path, *, target: str | None = None, options: Mapping[str, Any] | None = None
) -> list[Path]:
    """Write a target's files: all of them or none.

    Args:
        source: The network.
        folder: Where they go; it is made where it is missing.
        target: Whose files; None: those of the network's own target.
        options: Of `platform` and `export`, by the names of the command line.

    Returns:
        The files, `quantized.onnx` first.

    Raises:
        UserError: The target is unknown or refuses the network, or the folder cannot be written.
    """
    asked = wanted(source, target, options)
    folder = folder.expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        staged = Path(tempfile.mkdtemp(prefix=".", suffix=".part", dir=folder))
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}), choose another folder") from error
    try:
        files = write(target_of(asked.target, source), source, staged, cfg=asked.cfg, form=asked.form)
        for file in reversed(files):  # the quantized network last: it shows that the others are there
            file.replace(folder / file.name)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return [folder / file.name for file in files]
