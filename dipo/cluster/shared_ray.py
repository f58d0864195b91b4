"""One Ray for several jobs: a private head that ends with its owner, or a cluster that runs already."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from dipo.cluster.address import QUIETLY, is_private, join, set_environment


@dataclass(frozen=True)
class Head:
    """Where jobs join, and what is there for them."""

    address: str
    """For `cluster.address`."""
    cpus: int
    gpus: int


@contextlib.contextmanager
def start_head(*, address: str | None = None, cpus: int | None = None, gpus: int | None = None) -> Iterator[Head]:
    """Start a Ray that is this process's own, or joins one; at the end it is ended, or left.

    Args:
        address: Ray to join; None or `local`: a private one is started, on the loopback interface
            alone where this process has not imported Ray before.
        cpus: CPUs of the private one; None: as many as the machine has.
        gpus: Its GPUs; None: as many as Ray finds.

    Raises:
        UserError: No Ray answers at the address.
    """
    set_environment(address)
    import ray

    try:
        if is_private(address):
            ray.init(address="local", num_cpus=cpus, num_gpus=gpus, include_dashboard=False, **QUIETLY)
        else:
            join(str(address))
        resources = ray.cluster_resources()
        yield Head(
            # A client's own address reaches its server; the server's inner address does not.
            address=str(address) if str(address).startswith("ray://") else ray.get_runtime_context().gcs_address,
            cpus=int(resources.get("CPU", 0)),
            gpus=int(resources.get("GPU", 0)),
        )
    finally:
        ray.shutdown()
