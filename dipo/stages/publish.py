"""Publication of targets' files in a run's folder: those of all targets or none, and no older ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from dipo.config import PlatformConfig
from dipo.errors import UserError
from dipo.export.formats import OnnxFormat
from dipo.run import FULL, REPORT, DamagedFileError, RunFolder
from dipo.stages.retarget import QuantizedRun, Retargeted, target_of, write

WRITTEN = "written.list"
"""List of the files written for targets and not removed since: paths within the run's folder, one a line."""
EXPORT = "export.json"
"""The export command's record of the files in a target's folder."""
RUN_TARGET = "."
"""Folder of the run's own target, within the run's folder."""


def publish(
    folder: RunFolder, source: QuantizedRun, places: Mapping[str, str], *, cfg: PlatformConfig, form: OnnxFormat
) -> dict[Retargeted, list[Path]]:
    """Write the files of some targets, and remove older files of theirs that are not written again.

    Args:
        folder: Folder of the run.
        source: Network of the run.
        places: Folder of each target's files within the run's, `RUN_TARGET` or a name; by target.
        cfg: Options of the targets' writers.
        form: Format of `quantized.onnx`, where a target takes it.

    Returns:
        The files of each target, by target.

    Raises:
        UserError: A target refuses the network, or the files cannot be put in place; then nothing is changed.
    """
    check_places(folder, places.values())
    with folder.staging() as staged:
        made = {}
        for name in places:
            target = target_of(name, source)
            made[target] = write(target, source, staged / name, cfg=cfg, form=form)
        return _place(folder, {target: (places[target.name], files) for target, files in made.items()})


def check_places(folder: RunFolder, places: Iterable[str]) -> None:
    """Check that no file is where a folder of a target's files is to be.

    Raises:
        UserError: There is one.
    """
    for place in places:
        path = folder.path / place
        if path.exists() and not path.is_dir():
            raise UserError(
                f"{folder.option}={folder.path}: {place} in it is a file, where the target's files get a folder of "
                "that name, move it away"
            )


def _place(folder: RunFolder, made: Mapping[Retargeted, tuple[str, list[Path]]]) -> dict[Retargeted, list[Path]]:
    """Move complete files to their places."""
    placed = {target: [folder.path / place / file.name for file in files] for target, (place, files) in made.items()}
    for path in (path for paths in placed.values() for path in paths):
        if path.is_dir():
            raise UserError(
                f"{folder.option}={folder.path}: {path.relative_to(folder.path)} in it is a folder, where a file of "
                "that name is to be, move it away"
            )
    known = _known(folder)
    former = {path for path in known if str(path.parent) in {place for place, _ in made.values()}}
    now = {PurePosixPath(path.relative_to(folder.path)) for paths in placed.values() for path in paths}
    # If the process is killed between two files, the list names all that may be there.
    _write_list(folder, known | now)
    if RUN_TARGET in {place for place, _ in made.values()}:
        (folder.path / REPORT).unlink(missing_ok=True)  # of files that go now: the run is not finished any more
    try:
        for target, (_, files) in made.items():
            # The quantized network last: it is what shows that the files are there.
            for file, final in reversed(list(zip(files, placed[target], strict=True))):
                final.parent.mkdir(exist_ok=True)
                file.replace(final)
        for left in former - now:
            if (folder.path / left).is_file():
                (folder.path / left).unlink()
    except OSError as error:
        if error.errno in FULL:
            raise
        raise UserError(
            f"{folder.option}={folder.path}: {error.filename} cannot be written ({error.strerror}), make its folder "
            "writable and write the files again"
        ) from error
    _write_list(folder, known - former | now)
    return placed


def _write_list(folder: RunFolder, paths: Iterable[PurePosixPath]) -> None:
    with folder.writing(WRITTEN) as path:
        path.write_text("".join(f"{line}\n" for line in sorted(map(str, paths))), encoding="utf-8")


def _known(folder: RunFolder) -> set[PurePosixPath]:
    """Return the files written for targets, from the list, or from the reports of runs without one."""
    lines = set[str]()
    if folder.has(WRITTEN):
        lines |= set((folder.path / WRITTEN).read_text(encoding="utf-8").splitlines())
    report = _report(folder, REPORT)
    lines |= report.get("files", {}).keys() - {"float"}
    for row in report.get("targets", []):
        lines |= {f"{row['name']}/{file}" for file in row["files"]}
    for path in folder.path.glob(f"*/{EXPORT}"):
        place = path.parent.name
        lines |= {f"{place}/{file}" for file in [EXPORT, *_report(folder, f"{place}/{EXPORT}").get("files", {})]}
    paths = {PurePosixPath(line) for line in lines if line}
    return {path for path in paths if len(path.parts) <= 2 and not path.is_absolute() and ".." not in path.parts}


def _report(folder: RunFolder, name: str) -> dict[str, Any]:
    try:
        return folder.read_json(name)
    except DamagedFileError:
        # A report says what else was written; where it cannot be read, the list above alone does.
        return {}
