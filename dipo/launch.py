"""The command line: presets and overrides in, a checked `Config` out, then the job.

The only file that knows Hydra. Heavy imports wait until a job runs, so that `--help` answers at once.
"""

from __future__ import annotations

import gc
import logging
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

import dipo
from dipo.config import Config, to_plain
from dipo.errors import JobError, UserError
from dipo.export.targets import TARGETS
from dipo.manual import manual
from dipo.presets import PRIMARY, defaults, find_presets, own_folders, packaged_folder, refuse_shadowing
from dipo.section import all_options, choose, choose_option, from_plain

if TYPE_CHECKING:
    from omegaconf import DictConfig

_TERMINATED = threading.Event()
"""The interruption was a SIGTERM."""

FLAGS = ("--help", "--version", "--cfg", "--config-dir")


@dataclass(frozen=True)
class CommandLine:
    """What the user typed, sorted."""

    flags: frozenset[str]
    """--help, --version, --cfg."""
    config_dir: str | None
    overrides: tuple[str, ...]
    """All that has no leading dash, as typed."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv`, by default the process's own, and return the exit status.

    0: done. 1: the run broke. 2: the user's input is wrong. 130: interrupted. 143: terminated.
    """
    # OpenMP's threads spin for milliseconds before they sleep: where another process wants the core, everything stalls.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    return guarded(lambda: _run(sys.argv[1:] if argv is None else argv))


def guarded(run: Callable[[], int]) -> int:
    """What `run` returns, or the exit status of what went wrong in it, which the user is told in a sentence."""
    _TERMINATED.clear()
    signal.signal(signal.SIGTERM, _terminate)
    try:
        return run()
    except UserError as error:
        _complain(str(error))
        return 2
    except JobError as error:
        _complain(f"{error} (more in {path})" if (path := _log_traceback(quietly=True)) else str(error))
        return 1
    except KeyboardInterrupt:
        _complain("terminated" if _TERMINATED.is_set() else "interrupted")
        return 128 + (signal.SIGTERM if _TERMINATED.is_set() else signal.SIGINT)
    except Exception as error:  # noqa: BLE001 - whatever broke, the user reads a sentence and finds the rest in a log
        reason = next(iter(str(error).splitlines()), "no more is known")
        _complain(f"{type(error).__name__}: {reason} (traceback in {_log_traceback()})")
        return 1


def compose_config(overrides: Sequence[str], own: Sequence[Path] = ()) -> Config:
    """The configuration that the presets and the overrides make; overrides of options win over presets.

    With `run.resume` the configuration of that run takes the place of the presets' defaults.

    Args:
        overrides: `group=choice` and `option=value`, each with any number of leading `+` up to two.
        own: The user's folders of presets.

    Raises:
        UserError: An override or a preset is wrong.
    """
    resumed = _resumed(overrides)
    if resumed is None:
        return from_plain(Config, _compose([_translate(override, own) for override in overrides], own))
    from dipo.run import RunFolder

    stored = RunFolder.stored_config(resumed, whole=to_plain(Config()))
    from_plain(Config, stored)
    with tempfile.TemporaryDirectory() as folder:
        # The run's options stand for the presets that it was begun with; others may be named on top of them.
        groups = [entry if isinstance(entry, str) else dict.fromkeys(entry) for entry in defaults()]
        primary = {"defaults": groups, **_without(stored)}
        (Path(folder) / f"{PRIMARY}.yaml").write_text(yaml.safe_dump(primary), encoding="utf-8")
        words = [_translate(override, own) for override in overrides]
        return from_plain(Config, _compose(words, [*own, packaged_folder().resolve()], primary=Path(folder)))


def _run(argv: Sequence[str]) -> int:
    line = _sort(argv)
    if "--version" in line.flags:
        print(f"dipo {dipo.__version__}")
        return 0
    own = own_folders(line.config_dir)
    if "--help" in line.flags:
        print(manual(width=shutil.get_terminal_size().columns, own=own))
        return 0
    config = compose_config(line.overrides, own)
    if "--cfg" in line.flags:
        print(_to_yaml(config), end="")
        return 0
    _require_inputs(config, own)
    return _import_job()(config)


def _import_job() -> Callable[[Config], int]:
    """The job's recipe, and with it torch.

    An import makes millions of objects that live to the end. Without the garbage collector looking at them, again and
    again and once more at exit, a run is most of a second shorter.
    """
    gc.disable()
    try:
        from dipo.job import run_job
    finally:
        gc.freeze()
        gc.enable()
    return run_job


def _sort(argv: Sequence[str]) -> CommandLine:
    flags, overrides, config_dir = set(), [], None
    rest = iter(argv)
    for word in rest:
        name, equals, value = word.partition("=")
        if not word.startswith("-"):
            overrides.append(word)
        elif name == "--config-dir":
            config_dir = value if equals else next(rest, None)
            if not config_dir:
                raise UserError("--config-dir has no value: give a folder that holds model/, data/, ...")
        elif word in {"-h", "--help", "--version", "--cfg"}:
            flags.add("--help" if word == "-h" else word)
        elif word in {"-m", "--multirun"}:
            raise UserError(f"{word}: sweeps are not supported, start dipo once for each job")
        else:
            raise UserError(f"unknown flag '{word}': {choose(name, FLAGS)}")
    return CommandLine(frozenset(flags), config_dir, tuple(overrides))


def _resumed(overrides: Sequence[str]) -> Path | None:
    """The folder of `run.resume`, where it is asked for."""
    values = [word.partition("=")[2] for word in overrides if word.lstrip("+").startswith("run.resume=")]
    if not values or values[-1] in {"", "null"}:
        return None
    return Path(values[-1].strip("'\"")).expanduser()


def _without(stored: dict[str, Any]) -> dict[str, Any]:
    """A run's configuration less what belongs to the process that began it."""
    run = {key: value for key, value in stored.get("run", {}).items() if key not in {"dir", "resume"}}
    return {**stored, "run": run}


def _translate(override: str, own: Sequence[Path]) -> str:
    """The override in Hydra's words, once it is known to name a preset or an option."""
    match = re.fullmatch(r"\+{0,2}([^=+~]+)(?:=(.*))?", override, re.DOTALL)
    if match is None:
        raise UserError(f"'{override}': give group=choice or option=value, see --help")
    key, value = match.groups()
    presets = find_presets(own)
    if key == "platform" and value not in presets[key] and value in TARGETS:
        return f"++platform.name={value}"  # of another package, which brings no preset
    if key in presets:
        return f"{key}={_choice(key, value or '', presets[key], own)}"
    known = {option.key: option for option in all_options(Config)}
    if key not in known:
        raise UserError(f"unknown option '{key}': {choose_option(Config, key, groups=list(presets))}")
    option = known[key]
    if not value:
        raise UserError(f"{key} has no value: give {option.wanted()}")
    literal = option.type is str and not option.is_list and option.limit is None
    return f"++{key}={_value(key, value, literal=literal)}"


def _choice(group: str, choice: str, presets: dict[str, Path], own: Sequence[Path]) -> str:
    if choice not in presets:
        if "," in choice and all(part in presets for part in choice.split(",")):
            raise UserError(f"{group}={choice}: sweeps are not supported, start dipo once for each choice")
        if not choice:
            raise UserError(f"{group} has no value: {choose('', presets)}")
        is_file = group in {"model", "data"} and re.search(r"[./]", choice)
        hint = f", or give the file as {group}.path={choice}" if is_file else ""
        raise UserError(f"unknown {group} '{choice}': {choose(choice, presets)}{hint}")
    refuse_shadowing(own, group, choice)
    return choice


def _value(key: str, value: str, *, literal: bool) -> str:
    """The value in Hydra's grammar; `literal` text, such as a path, needs no quotes from the user."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import Quote, QuotedString
    from hydra.errors import HydraException

    if literal and value != "null" and not re.fullmatch(r"'.*'|\".*\"", value, re.DOTALL):
        return QuotedString(text=value, quote=Quote.single).with_quotes()
    try:
        parsed = OverridesParser.create().parse_override(f"++{key}={value}")
    except HydraException as error:
        raise UserError(f"{key}={value}: cannot be read, check its brackets and quotes") from error
    if parsed.is_sweep_override():
        raise UserError(f"{key}={value}: sweeps are not supported, start dipo once for each value; lists are [a,b]")
    return value


def _compose(overrides: Sequence[str], own: Sequence[Path], *, primary: Path | None = None) -> dict[str, Any]:
    from hydra import compose, initialize_config_dir
    from hydra.core.override_parser.types import Quote, QuotedString
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    urls = [QuotedString(text=f"file://{folder}", quote=Quote.single).with_quotes() for folder in own]
    try:
        with initialize_config_dir(config_dir=str(primary or packaged_folder().resolve()), version_base="1.3"):
            composed: DictConfig = compose(PRIMARY, overrides=[*overrides, f"hydra.searchpath=[{','.join(urls)}]"])
        plain = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    except (HydraException, OmegaConfBaseException) as error:
        key = getattr(error, "full_key", None)
        raise UserError(f"{key or 'presets'}: {str(error).splitlines()[0]}") from error
    except YAMLError as error:
        raise UserError(f"presets: {error}") from error
    assert isinstance(plain, dict), "a composed configuration is a mapping"
    return {str(key): value for key, value in plain.items()}


def _to_yaml(config: Config) -> str:
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.create(to_plain(config)))


def _require_inputs(config: Config, own: Sequence[Path]) -> None:
    if config.model.path is None:
        choices = ", ".join(find_presets(own)["model"])
        raise UserError(f"no model: give +model=<name> ({choices}) or model.path=<file.onnx>")
    if config.data.path is None and config.needs_samples:
        raise UserError(
            "no samples: give data.path=<file or folder>, +data=digits for those of dipo, or +algo=dfq that needs none"
        )


def _complain(sentence: str) -> None:
    print(f"dipo: {' '.join(sentence.split())}", file=sys.stderr)


def _terminate(number: int, frame: object) -> None:
    """SIGTERM's handler: the run ends as it does on Ctrl-C, what is finished stays."""
    del number, frame
    # Whoever asks twice means the same.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _TERMINATED.set()
    # Not an exception of our own: in the middle of a call Ray passes on this one, and breaks on others.
    raise KeyboardInterrupt


def _log_traceback(*, quietly: bool = False) -> str:
    """Write the traceback of the exception at hand to the run's log, or to a new file; return its path.

    Args:
        quietly: Write to the run's log or nowhere; the path is then empty where there is no such log.
    """
    log = logging.getLogger("dipo")
    for handler in log.handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handle(log.makeRecord(log.name, logging.ERROR, __file__, 0, "the run broke", (), sys.exc_info()))
            return handler.baseFilename
    if quietly:
        return ""
    with tempfile.NamedTemporaryFile("w", prefix="dipo-", suffix=".log", delete=False) as file:
        traceback.print_exc(file=file)
    return file.name


if __name__ == "__main__":
    sys.exit(main())
