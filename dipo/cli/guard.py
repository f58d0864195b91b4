"""Handling of errors: a sentence for the user, the traceback in a log, and an exit status."""

from __future__ import annotations

import logging
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable

from dipo.errors import JobError, UserError

_TERMINATED = threading.Event()
"""The interruption was a SIGTERM."""


def guarded(run: Callable[[], int], *, program: str = "dipo") -> int:
    """Return what `run` returns, or the exit status of what went wrong in it, which the user is told in a sentence.

    0: done. 1: it broke. 2: the user's input is wrong. 130: interrupted. 143: terminated.

    Args:
        run: The work.
        program: The name that stands before the sentence.
    """
    _TERMINATED.clear()
    signal.signal(signal.SIGTERM, _terminate)
    try:
        return run()
    except UserError as error:
        _complain(program, str(error))
        return 2
    except JobError as error:
        _complain(program, f"{error} (more in {path})" if (path := _log_traceback(quietly=True)) else str(error))
        return 1
    except KeyboardInterrupt:
        _complain(program, "terminated" if _TERMINATED.is_set() else "interrupted")
        return 128 + (signal.SIGTERM if _TERMINATED.is_set() else signal.SIGINT)
    except Exception as error:  # noqa: BLE001 - whatever broke, the user reads a sentence and finds the rest in a log
        reason = next(iter(str(error).splitlines()), "no more is known")
        _complain(program, f"{type(error).__name__}: {reason} (traceback in {_log_traceback()})")
        return 1


def _complain(program: str, sentence: str) -> None:
    sys.stderr.write(f"{program}: {' '.join(sentence.split())}\n")


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
