"""The presets: YAML files in one folder for each group, dipo's own and the user's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml

from dipo.config.job import Config
from dipo.errors import UserError
from dipo.section import parts

PRIMARY = "config"


def packaged_folder() -> Path:
    """Return the folder of dipo's own presets: in the installed package, or beside it in a checkout."""
    package = Path(__file__).parents[1]
    installed = package / "conf"
    return installed if installed.is_dir() else package.parent / "conf"


def own_folders(config_dir: str | None) -> list[Path]:
    """Return the user's folders of presets: `config_dir`, and `conf` in the working directory where there is one.

    Raises:
        UserError: `config_dir` is no folder.
    """
    folders = [Path("conf").resolve()]
    if config_dir is not None:
        folders.insert(0, Path(config_dir).expanduser().resolve())
        if not folders[0].is_dir():
            raise UserError(f"--config-dir {config_dir}: no such folder, give one that holds model/, data/, ...")
    packaged = packaged_folder().resolve()
    return [folder for folder in dict.fromkeys(folders) if folder.is_dir() and folder != packaged]


def find_presets(own: Sequence[Path]) -> dict[str, dict[str, Path]]:
    """Return the file of every choice, by group and name; of two with one name, dipo's."""
    folders = [*own, packaged_folder()]
    return {
        group: {file.stem: file for folder in folders for file in sorted((folder / group).glob("*.yaml"))}
        for group in default_choices()
    }


def refuse_shadowing(own: Sequence[Path], group: str, choice: str) -> None:
    """Refuse a user's preset that one of dipo's with the same name would hide.

    Raises:
        UserError: It is.
    """
    hiding = packaged_folder() / group / f"{choice}.yaml"
    for folder in own:
        hidden = folder / group / f"{choice}.yaml"
        if hiding.is_file() and hidden.is_file() and hidden.read_bytes() != hiding.read_bytes():
            raise UserError(f"{group}={choice}: {hidden} has the name of a preset that comes with dipo, rename it")


def default_choices() -> dict[str, str | None]:
    """Return the default choice of each group, in the order of the configuration."""
    choices = {group: choice for entry in defaults() if isinstance(entry, dict) for group, choice in entry.items()}
    order = [*parts(Config), *choices]
    return dict(sorted(choices.items(), key=lambda item: order.index(item[0])))


def defaults() -> list[str | dict[str, str | None]]:
    """Return Hydra's list of the groups, overridden ones before those that override them, and `_self_`."""
    found: list[str | dict[str, str | None]] = yaml.safe_load((packaged_folder() / f"{PRIMARY}.yaml").read_text())[
        "defaults"
    ]
    return found


def summary(preset: Path) -> str:
    """Summarize a preset in a line: its first comment that is no directive to Hydra."""
    lines = (line.removeprefix("#").strip() for line in preset.read_text().splitlines() if line.startswith("#"))
    return next((line for line in lines if not line.startswith("@")), "")
