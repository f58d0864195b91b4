"""The command line: presets and overrides in, a checked `Config` out, then the job.

Heavy imports wait until a job runs, so that `--help` answers at once.
"""

from __future__ import annotations

import gc
import logging
import os
import shutil
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import dipo
from dipo.config import Config, compose_config, to_yaml
from dipo.config.presets import find_presets, own_folders
from dipo.errors import JobError, UserError
from dipo.manual import manual
from dipo.section import choose

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
        print(to_yaml(config), end="")
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
