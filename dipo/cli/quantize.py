"""`dipo quantize`, and `dipo` without a command: presets and options in, a job out."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from dipo.cli.command import Command
from dipo.cli.words import HELP, VERSION, Flag, Line
from dipo.config import Config, compose_config, to_yaml
from dipo.config.presets import find_presets, own_folders
from dipo.errors import UserError
from dipo.section import Option, all_options

CFG = Flag("--cfg", "Print the configuration that the command line makes, as YAML, and stop.")
CONFIG_DIR = Flag(
    "--config-dir",
    "Look for presets in DIR, too: model=mine is then DIR/model/mine.yaml. A folder named conf in the working "
    "directory is looked into without this flag.",
    value="DIR",
    wanted="a folder that holds model/, data/, ...",
)
VERBOSE = Flag("--verbose", "List every layer and activation, and all that stays float, in front of the work.")
MULTIRUN = Flag("--multirun", "", short="-m", refusal="sweeps are not supported, start dipo once for each job")


def run(line: Line) -> int:
    """Run the job, or print its configuration where `--cfg` asks for it."""
    own = presets_of(line)
    config = compose_config(line.words, own)
    if CFG.name in line.flags:
        sys.stdout.write(to_yaml(config))
        return 0
    _require_inputs(config, own)
    return _import_job()(config, verbose=VERBOSE.name in line.flags)


def presets_of(line: Line) -> list[Path]:
    """Return the user's folders of presets.

    Raises:
        UserError: `--config-dir` names none.
    """
    return own_folders(line.values.get(CONFIG_DIR.name))


def _options() -> Mapping[str, Option]:
    return {option.key: option for option in all_options(Config)}


def _groups(line: Line) -> Mapping[str, Sequence[str]]:
    return {group: list(presets) for group, presets in find_presets(presets_of(line)).items()}


def _require_inputs(config: Config, own: Sequence[Path]) -> None:
    if config.model.path is None:
        choices = ", ".join(find_presets(own)["model"])
        raise UserError(f"no model: give +model=<name> ({choices}) or model.path=<file.onnx>")
    if not config.data.is_given and config.needs_samples:
        raise UserError(
            "no samples: give data.path=<file or folder>, +data=digits for those of dipo, or +algo=dfq that needs none"
        )


def _import_job() -> Callable[..., int]:
    """Return the job's recipe, which brings torch.

    An import makes millions of objects that live to the end. Without the garbage collector looking at them, again and
    again and once more at exit, a run is most of a second shorter.
    """
    # OpenMP's threads spin for milliseconds before they sleep: where another process wants the core, everything stalls.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    gc.disable()
    try:
        from dipo.job import run_job
    finally:
        gc.freeze()
        gc.enable()
    return run_job


def _page(line: Line, width: int) -> str:
    from dipo.cli.help import manual

    return manual(width=width, flags=QUANTIZE.flags, own=presets_of(line))


QUANTIZE = Command(
    "quantize",
    "Quantize a model; so does dipo without a command.",
    _page,
    run,
    _options,
    flags=(HELP, VERSION, VERBOSE, CFG, CONFIG_DIR, MULTIRUN),
    groups=_groups,
)
main = QUANTIZE.main
