"""One Ray for several jobs: a private one that ends with its owner, or a cluster that runs already."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from dipo.cluster.address import QUIETLY, is_private, join, set_environment


@dataclass(frozen=True)
class Head:
    """A Ray that jobs can join, and its resources."""

    address: str
    """Its address, for `cluster.address`."""
    cpus: int
    gpus: int


@contextlib.contextmanager
def start_head(*, address: str | None = None, cpus: int | None = None, gpus: int | None = None) -> Iterator[Head]:
    """Start a private Ray, or join one, for the context; at its end the private one is ended, the other left.

    Args:
        address: Ray to join; None or `local`: a private one is started, on the loopback interface
            alone where this process has not imported Ray before.
        cpus: Number of CPUs of the private one; None: as many as the machine has.
        gpus: Number of its GPUs; None: as many as Ray finds.

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
