"""Failures of calls to Ray actors."""

from __future__ import annotations

from typing import Any

import ray
from ray import exceptions as failures

from dipo.errors import JobError, UserError

DEATHS = (
    failures.RayActorError,
    failures.ActorUnschedulableError,
    failures.NodeDiedError,
    failures.WorkerCrashedError,
    failures.OutOfMemoryError,
)
"""Errors of a dead worker, whose work can be done by another."""


def failure(reference: Any) -> Exception | None:
    """Return the error that a finished call ended with; None where it succeeded."""
    try:
        ray.get(reference)
    except failures.RayError as error:
        return error
    return None


def answered(reference: Any) -> bool:
    """Return whether a call has finished and succeeded."""
    return bool(ray.wait([reference], timeout=0)[0]) and failure(reference) is None


def cause(error: BaseException) -> BaseException:
    """Return the error that a worker raised, or the one that says how the worker died."""
    return error.cause if isinstance(error, failures.RayTaskError) else error


def reason(error: BaseException) -> str:
    """Return the error as one line."""
    return next(iter(str(cause(error)).strip().splitlines()), type(error).__name__)


def reraise(error: BaseException) -> None:
    """Raise a worker's error as if the driver had raised it."""
    first = cause(error)
    if isinstance(first, UserError | JobError):
        raise type(first)(str(first)) from error
    if isinstance(first, failures.OutOfDiskError | failures.ObjectStoreFullError):
        raise JobError(
            f"Ray's object store is full ({reason(error)}), give it room with cluster.spill_dir or "
            "cluster.object_store_gb, or keep less in it with cluster.captures_gb"
        ) from error
    raise error
