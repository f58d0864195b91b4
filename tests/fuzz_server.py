"""A process that runs one command line of dipo after another; fuzz tests start it, and again where one ends it.

It says when it is ready, reads the arguments of `_run` as JSON, a line each, and answers each with a line of JSON. Its
own argument is the file for its standard error.
"""

from __future__ import annotations

import dataclasses
import faulthandler
import functools
import json
import logging
import os
import re
import resource
import signal
import sys
from pathlib import Path
from typing import IO, Any

MEMORY_BYTES = 16 << 30
"""Address space of the process: a network that wants all of the machine's gets an error instead."""
_LOG = re.compile(r"\((?:traceback|more) in (\S+)\)")


def serve(requests: IO[str], answers: IO[str], errors: IO[str]) -> None:
    """Answer requests until there are no more.

    Args:
        requests: Command lines.
        answers: Takes the answers.
        errors: The file that the process's standard error is.
    """
    import dipo.job  # noqa: F401 - what a job needs takes seconds the first time

    answers.write("{}\n")
    answers.flush()
    for line in requests:
        errors.seek(0)
        errors.truncate()
        found: dict[str, Any]
        try:
            found = {"status": _run(**json.loads(line))}
        except BaseException as error:  # noqa: BLE001 - told as what may not be
            found = {"status": None, "raised": f"{type(error).__name__}: {error}"}
        finally:
            _close_logs()
        sys.stderr.flush()
        sys.stdout.flush()
        errors.seek(0)
        found["stderr"] = errors.read()
        logs = [Path(path) for path in _LOG.findall(found["stderr"])]
        found["logs"] = [path.read_text() for path in logs if path.exists()]
        for path in logs:
            path.unlink(missing_ok=True)
        answers.write(json.dumps(found) + "\n")
        answers.flush()


def _run(words: list[str], *, anew: bool) -> int:
    """Run a command line, and return its exit status.

    Args:
        words: The words.
        anew: Put the configuration together from them all. Else the paths of the files are put into one that came
            before: most of the time that a small job takes is Hydra's.
    """
    from dipo.cli.guard import guarded
    from dipo.job import run_job
    from dipo.launch import main

    if anew:
        return main(words)
    paths = dict(word.split("=", 1) for word in words if word.startswith(_PATHS))
    config = _composed(tuple(word for word in words if not word.startswith(_PATHS)))
    places = {
        section: dataclasses.replace(getattr(config, section), **{option: paths[f"{section}.{option}"]})
        for section, option in (key.split(".") for key in _PATHS)
    }
    return guarded(lambda: run_job(dataclasses.replace(config, **places)))


_PATHS = ("model.path", "data.path", "run.dir")


@functools.lru_cache(maxsize=8)
def _composed(words: tuple[str, ...]) -> Any:
    from dipo.config import compose_config

    return compose_config([*words, "model.path=absent", "data.path=absent"], [])


def _close_logs() -> None:
    """End the log of a job, so that the next one's errors do not go there."""
    log = logging.getLogger("dipo")
    for handler in list(log.handlers):
        log.removeHandler(handler)
        handler.close()


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with (
        os.fdopen(os.dup(1), "w") as own_answers,
        Path(sys.argv[1]).open("a+", errors="replace") as own_errors,
        Path(os.devnull).open("w") as nothing,
    ):
        os.dup2(nothing.fileno(), 1)
        os.dup2(own_errors.fileno(), 2)
        faulthandler.enable(own_errors)
        faulthandler.register(signal.SIGUSR1, own_errors)
        sys.stderr.reconfigure(errors="replace", line_buffering=True)  # type: ignore[union-attr]
        serve(sys.stdin, own_answers, own_errors)
