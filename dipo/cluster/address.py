"""Addresses of Ray: a private one, on the loopback interface, or one that runs already."""

from __future__ import annotations

import os
import socket
from typing import Any

from dipo.errors import UserError

CLUSTERS = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Ray's variable: `0` makes a node's address 127.0.0.1, and all its servers listen there alone, on every system; a
process that joins needs the same. `_node_ip_address="127.0.0.1"` does not: Ray puts the machine's own address in its
place."""
KNOCK_SECONDS = 10
QUIETLY: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
"""Arguments of `ray.init` that keep it quiet: workers' output is read through dipo's own logs."""


def is_private(address: str | None) -> bool:
    """Return whether `cluster.address` asks for a private Ray."""
    return address in (None, "local")


def set_environment(address: str | None) -> None:
    """Set the variables that Ray reads as it is imported; call this before, here and in each process that joins."""
    # A run reports to nobody. Ray must not hide the GPUs from those that ask for none.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if is_private(address):
        os.environ.setdefault(CLUSTERS, "0")


def join(address: str) -> None:
    """Join a Ray that runs already.

    Raises:
        UserError: No Ray answers there, or it does not let this process in.
    """
    _knock(address)
    import ray

    try:
        ray.init(address=address, **QUIETLY)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UserError(
            f"cluster.address={address}: no Ray lets this process in there, start one (ray start --head), set "
            "RAY_AUTH_MODE=token where it asks for a token, or leave the option out"
        ) from error


def _knock(address: str) -> None:
    """Check that a server listens at HOST:PORT: Ray itself would try for minutes.

    Raises:
        UserError: None does.
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
