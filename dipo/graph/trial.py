"""A trial, in a process of its own, of what may end the process that does it.

The libraries that read graphs are in part C++ that takes the numbers of a file at their word: there, an assertion that
fails or a loop without end is no exception. So an unknown file goes through them in a child first.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import logging
import os
import resource
import select
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

log = logging.getLogger("dipo")

_DONE = b"."


class HangError(Exception):
    """The error of a trial that did not end in its time."""


def fork_ends(action: Callable[[], object], *, seconds: float) -> int | None:
    """Do something in a child that is forked from this process; return what ended the child.

    What the child finds is lost: this process does the same once it is known to survive that. Exceptions end no
    process, so they are nothing here. The child is in the state of a worker of torch's DataLoader, with one thread.

    Args:
        action: What is done.
        seconds: Time that it may take.

    Returns:
        The signal's number; None: the child survived.

    Raises:
        HangError: It took longer, which may be for a lock that another thread of this process held.
    """
    reading, writing = os.pipe()
    try:
        child = _fork()
    except OSError as error:
        os.close(reading)
        os.close(writing)
        log.warning("no process can be made (%s), the model is read without a trial", error.strerror)
        return None
    if not child:
        _do(action, writing)
    os.close(writing)
    try:
        if not select.select([reading], [], [], seconds)[0]:
            raise HangError
        # A process that is ended closes its pipes and writes nothing.
        survived = os.read(reading, len(_DONE)) == _DONE
    finally:
        os.close(reading)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        status = _status(child)
    return None if survived else os.WTERMSIG(status)


def command_ends(code: str, *words: str, seconds: float) -> int | None:
    """Run Python code in a new process, which has no locks of this one; return what ended it, as `fork_ends` does.

    Args:
        code: What is run; it imports what it needs.
        words: Its arguments.
        seconds: Time that it may take.

    Raises:
        HangError: It took longer.
    """
    command: Sequence[str] = [sys.executable, "-c", code, *words]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    try:
        ran = subprocess.run(
            command, env=env, timeout=seconds, check=False, stdin=subprocess.DEVNULL, capture_output=True
        )
    except subprocess.TimeoutExpired as error:
        raise HangError from error
    return -ran.returncode if ran.returncode < 0 else None


def _fork() -> int:
    with warnings.catch_warnings():
        # Of a fork beside other threads: the child needs none of what they may hold, and `HangError` is told of.
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def _do(action: Callable[[], object], writing: int) -> None:
    """Do it, say so, and leave without what a process does at its end: that is the parent's."""
    try:
        faulthandler.disable()
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        logging.disable()
        nothing = Path(os.devnull).open("w")  # noqa: SIM115 - as long as the process
        os.dup2(nothing.fileno(), 1)
        os.dup2(nothing.fileno(), 2)
        sys.stdout = sys.stderr = nothing  # a notebook's go elsewhere
        gc.disable()
        torch.set_num_threads(1)  # threads of OpenMP are not there after a fork
        action()
    finally:
        # Whatever was raised, the parent meets it, too.
        os.write(writing, _DONE)
        os._exit(0)


def _status(child: int) -> int:
    try:
        return os.waitpid(child, 0)[1]
    except ChildProcessError:  # a program that lets its children go without a word
        return signal.SIGKILL
