"""Fingerprints of runs: all that a run's results depend on. A run is resumed with the same, or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

import dipo
from dipo.config import ClusterConfig, Config, to_plain
from dipo.data.samples import digest_files
from dipo.errors import UserError
from dipo.graph.load import model_files
from dipo.run import FINGERPRINT, DamagedFileError, RunFolder
from dipo.section import show
from dipo.stages.load import JobInputs

SECTIONS = ("algo", "calib", "precision")
"""Sections whose options all decide results."""
SINGLE = {
    "data": ("batch_size", "mean", "std", "scale", "size", "layout"),
    "platform": ("name",),
    "export": (),
    "cluster": ClusterConfig.DECISIVE,
}
"""Options that decide results in other sections: not paths, whose contents count, and not the workers."""


def fingerprint(config: Config, loaded: JobInputs, *, device: str) -> dict[str, Any]:
    """Return the fingerprint: values of options and digests of files, by name.

    Raises:
        UserError: The samples cannot be read.
    """
    return {
        "model": digest_files(model_files(loaded.path)),
        "data": loaded.data.calib.digest(),
        "seed": config.seed,
        "device": device,
        "dipo": dipo.__version__,
        "torch": torch.__version__,
        **decisive_options(config),
    }


def decisive_options(config: Config) -> dict[str, Any]:
    """Return the values of the options that decide results, by name."""
    plain = to_plain(config)
    options = {f"{section}.{name}": value for section in SECTIONS for name, value in plain[section].items()}
    return options | {f"{section}.{name}": plain[section][name] for section, names in SINGLE.items() for name in names}


def write_fingerprint(folder: RunFolder, own: Mapping[str, Any]) -> None:
    """Write the fingerprint into the folder of a new run."""
    folder.write_json(FINGERPRINT, own)


@dataclass(frozen=True)
class ResumeState:
    """The state of a run that is resumed."""

    other_ranges: bool
    """Whether options of `calib` differ from the run's: its statistics remain valid, all results after them do not."""


def same_options(config: Config, folder: RunFolder) -> bool:
    """Return whether all options but those of the process are the run's."""
    plain, stored = to_plain(config), RunFolder.stored_config(folder.path)
    return all(plain[section] == stored.get(section) for section in (*SECTIONS, *SINGLE, "seed"))


def compare(folder: RunFolder, own: Mapping[str, Any]) -> ResumeState | None:
    """Compare the fingerprint with that of the run in the folder.

    Returns:
        The run's state; None where it was ended before it had a fingerprint.

    Raises:
        UserError: The run is another's: of another model, other samples, or other options than those of `calib`.
    """
    if not folder.has(FINGERPRINT):
        return None
    try:
        stored = folder.read_json(FINGERPRINT)
    except DamagedFileError as error:
        raise UserError(
            f"run.resume={folder.path}: its {FINGERPRINT} is damaged, begin the run again with run.dir="
        ) from error
    different = [key for key in {**stored, **own} if stored.get(key) != own.get(key)]
    others = [key for key in different if not key.startswith("calib.")]
    if others:
        named = "; ".join(_difference(key, stored, own) for key in others)
        raise UserError(
            f"run.resume={folder.path}: that run was begun with {named}: resume it as it was begun, or begin another "
            "one with run.dir="
        )
    return ResumeState(other_ranges=bool(different))


def _difference(key: str, stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    if key in {"model", "data"}:
        return f"another {key} (its content differs)"
    return f"{key}={show(stored.get(key))}, not {show(wanted.get(key))}"
