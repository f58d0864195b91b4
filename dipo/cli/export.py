"""`dipo export`: files for other targets from a finished run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from dipo.cli.command import Command
from dipo.cli.page import docs_of, option_block, page, paragraphs, table, wrap
from dipo.cli.words import Line, read_values, texts
from dipo.config import ExportConfig, ModelConfig, PlatformConfig
from dipo.errors import UserError
from dipo.section import Called, Option, Section, options

if TYPE_CHECKING:
    from dipo.stages.export_run import Request

DESCRIPTION = """
Writes the files of a target, or of several ([snpe,rk]), from what a finished run left in its folder, each into a \
folder of its name there. Weights and ranges are those of the run; where the target's grids differ they are rounded \
once more, and FOLDER/TARGET/export.json says how much that lost. It needs the model file of the run, and no samples.

An option that is not given is as in the run.
"""


@dataclass(frozen=True)
class ExportWords(Section, prefix=""):
    """The options of the command that no section of a job has."""

    run: Annotated[str | None, Called("the folder of a finished run")] = None
    """The folder of a finished run."""


def run(line: Line) -> int:
    """Write the files."""
    request = parse(line.words)
    from dipo.stages.export_run import export_run

    return export_run(request)


def parse(words: Sequence[str]) -> Request:
    """Return what the words of a command line ask for.

    Raises:
        UserError: One of them is wrong, or one is missing.
    """
    known = _options()
    given = read_values(words, known)
    for key in ("run", "platform"):
        if not given.get(key):
            raise UserError(f"{key} is missing: give {key}={known[key].wanted()}, see --help")
    platform, export_ = (
        {key.partition(".")[2]: value for key, value in given.items() if key.startswith(f"{section}.")}
        for section in ("platform", "export")
    )
    from dipo.stages.export_run import Request

    return Request(
        run=Path(given["run"]).expanduser(),
        targets=list(dict.fromkeys(given["platform"])),
        platform=platform,
        export=export_,
        model_path=given.get("model.path"),
    )


def _options() -> Mapping[str, Option]:
    (run, *_), (name, *platform) = options(ExportWords), options(PlatformConfig)
    targets = dataclasses.replace(name, key="platform", is_list=True, default=None)
    export_ = [option for option in options(ExportConfig) if option.name != "also"]
    path = next(option for option in options(ModelConfig) if option.name == "path")
    run = dataclasses.replace(run, optional=False)
    return {option.key: option for option in (run, targets, *platform, *export_, path)}


def _page(line: Line, width: int) -> str:
    del line
    sections: tuple[type[Section], ...] = (ExportWords, PlatformConfig, ExportConfig)
    docs = {f"{section.prefix()}{name}": doc for section in sections for name, doc in docs_of(section).items()}
    docs |= {
        "platform": "The target, or several.",
        "model.path": "Where the model file of the run is now, if it has moved.",
    }
    return page(
        {
            "NAME": [wrap("dipo export - files for other targets from a finished run", width)],
            "SYNOPSIS": [wrap("dipo export run=FOLDER platform=TARGET [OPTION=VALUE ...]", width)],
            "DESCRIPTION": paragraphs(DESCRIPTION, width),
            "FLAGS": [table(texts(EXPORT.flags), width)],
            "OPTIONS": [option_block(option, docs[key], width) for key, option in _options().items()],
        }
    )


EXPORT = Command("export", "Write files for other targets from a finished run.", _page, run, _options)
main = EXPORT.main
