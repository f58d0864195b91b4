"""Sums over workers by torch.distributed: NCCL between GPUs, Gloo between CPUs."""

from __future__ import annotations

import os
import socket
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from dipo.algo.collectives import add_in_order

TIMEOUT = timedelta(minutes=10)


class CollectiveError(RuntimeError):
    """The other workers cannot be reached: one of them died, or the network is down."""


@dataclass(frozen=True)
class Group:
    """A worker's place in a group."""

    rank: int
    size: int
    host: str
    """Address of rank 0."""
    port: int


class TorchCollectives:
    """Sums over a group of processes: every part travels to every worker, and each adds them in their order.

    It has a process group of its own, not torch's global one: that keeps a count of the groups there were, by which
    survivors of a broken group and the workers that replace the dead would never meet.
    """

    def __init__(self, group: Group, device: torch.device, listener: socket.socket | None) -> None:
        """Connect to the other workers.

        Args:
            group: This worker's place in the group.
            device: Device of the tensors.
            listener: Rank 0's socket, on which the others find it; no other process can take its port, or connect on
                another interface.

        Raises:
            CollectiveError: They cannot be reached.
        """
        self.size = group.size
        if group.host.startswith("127."):
            # By itself Gloo takes the interface of the host's name.
            os.environ["GLOO_SOCKET_IFNAME"] = os.environ["NCCL_SOCKET_IFNAME"] = "lo"
        try:
            store = dist.TCPStore(  # type: ignore[attr-defined]
                group.host,
                group.port,
                group.size,
                is_master=listener is not None,
                timeout=TIMEOUT,
                master_listen_fd=None if listener is None else listener.detach(),
            )
            self.processes = _process_group(store, group, device)
        except RuntimeError as error:
            raise CollectiveError(str(error)) from error

    def all_reduce_ordered(self, parts: Mapping[int, torch.Tensor], *, owners: Sequence[int]) -> torch.Tensor:
        """Return the sum of all workers' parts, in the order of their numbers.

        Raises:
            CollectiveError: A worker died.
        """
        most = max(Counter(owners).values())
        mine = [parts[number] for number in sorted(parts)]
        padded = torch.stack([*mine, *(torch.zeros_like(mine[0]) for _ in range(most - len(mine)))])
        gathered = [torch.empty_like(padded) for _ in range(self.size)]
        try:
            self.processes.allgather([gathered], [padded]).wait()
        except RuntimeError as error:
            raise CollectiveError(str(error)) from error
        taken = Counter[int]()
        ordered = []
        for owner in owners:
            ordered.append(gathered[owner][taken[owner]])
            taken[owner] += 1
        return add_in_order(ordered)

    def close(self) -> None:
        """Leave the group."""
        self.processes.shutdown()


def _process_group(store: Any, group: Group, device: torch.device) -> Any:
    if device.type == "cuda":
        options = dist.ProcessGroupNCCL.Options()
        options._timeout = TIMEOUT
        return dist.ProcessGroupNCCL(store, group.rank, group.size, options)
    return dist.ProcessGroupGloo(store, group.rank, group.size, timeout=TIMEOUT)


def listen() -> socket.socket:
    """Return a socket on a free port of this node's address in the cluster."""
    import ray

    host = ray.util.get_node_ip_address() if ray.is_initialized() else "127.0.0.1"
    return socket.create_server((host, 0))
