"""What can become of a call to a Ray actor."""

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
"""The worker is gone; its work can be done by another."""


def failure(reference: Any) -> Exception | None:
    """Return the error that a finished call ended with; None where it went well."""
    try:
        ray.get(reference)
    except failures.RayError as error:
        return error
    return None


def answered(reference: Any) -> bool:
    """Return whether a call has finished, and well."""
    return bool(ray.wait([reference], timeout=0)[0]) and failure(reference) is None


def cause(error: BaseException) -> BaseException:
    """Return what a worker raised, or what became of the worker."""
    return error.cause if isinstance(error, failures.RayTaskError) else error


def reason(error: BaseException) -> str:
    """Return a line about it."""
    return next(iter(str(cause(error)).strip().splitlines()), type(error).__name__)


def reraise(error: BaseException) -> None:
    """Raises what a worker raised, as the driver would have."""
    first = cause(error)
    if isinstance(first, UserError | JobError):
        raise type(first)(str(first)) from error
    if isinstance(first, failures.OutOfDiskError | failures.ObjectStoreFullError):
        raise JobError(
            f"Ray's object store is full ({reason(error)}), give it room with cluster.spill_dir or "
            "cluster.object_store_gb, or keep less in it with cluster.captures_gb"
        ) from error
    raise error
