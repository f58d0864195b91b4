"""One Ray for several jobs: a private head that ends with its owner, or a cluster that runs already."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from dipo.errors import UserError

CLUSTERS = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Of Ray: `0` makes a node's address 127.0.0.1, and all its servers listen there alone, on every system; whoever joins
has to be told the same. `_node_ip_address="127.0.0.1"` does not: Ray puts the machine's own address in its place."""

KNOCK_SECONDS = 10


@dataclass(frozen=True)
class Head:
    """Where jobs join, and what is there for them."""

    address: str
    """For `cluster.address`."""
    cpus: int
    gpus: int


@contextlib.contextmanager
def start_head(*, address: str | None = None, cpus: int | None = None, gpus: int | None = None) -> Iterator[Head]:
    """Starts a Ray that is this process's own, or joins one; at the end it is ended, or left.

    Args:
        address: Ray to join; None or `local`: a private one is started, on the loopback interface
            alone where this process has not imported Ray before.
        cpus: CPUs of the private one; None: as many as the machine has.
        gpus: Its GPUs; None: as many as Ray finds.

    Raises:
        UserError: No Ray answers at the address.
    """
    private = address in (None, "local")
    if not private:
        _knock(str(address))
    if private and "ray" not in sys.modules:
        os.environ.setdefault(CLUSTERS, "0")  # read as Ray is imported, here and in the jobs
    # A night reports to nobody. Ray must not hide the GPUs from those that ask for none.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    common: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
    try:
        if private:
            ray.init(address="local", num_cpus=cpus, num_gpus=gpus, include_dashboard=False, **common)
        else:
            _join(ray, str(address), common)
        resources = ray.cluster_resources()
        yield Head(
            # A client's own address reaches its server; the server's inner address does not.
            address=str(address) if str(address).startswith("ray://") else ray.get_runtime_context().gcs_address,
            cpus=int(resources.get("CPU", 0)),
            gpus=int(resources.get("GPU", 0)),
        )
    finally:
        ray.shutdown()


def _join(ray: Any, address: str, common: dict[str, Any]) -> None:
    try:
        ray.init(address=address, **common)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UserError(
            f"cluster.address={address}: no Ray lets this process in there, start one (ray start --head), set "
            "RAY_AUTH_MODE=token where it asks for a token, or leave the option out"
        ) from error


def _knock(address: str) -> None:
    """Sees whether anyone listens at HOST:PORT: Ray itself would try for minutes.

    Raises:
        UserError: Nobody does.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdecimal():
        return  # `auto`, which Ray looks up
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=KNOCK_SECONDS).close()
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"cluster.address={address}: nothing answers there ({reason}), start Ray (ray start --head) or leave the "
            "option out"
        ) from error
