"""Workers that add up together, over torch.distributed: NCCL between GPUs, Gloo between CPUs."""

from __future__ import annotations

import os
import socket
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from dipo.algo.exchange import add_in_order

TIMEOUT = timedelta(minutes=10)


class ExchangeError(RuntimeError):
    """The others cannot be reached: one of them died, or the network is gone."""


@dataclass(frozen=True)
class Group:
    """A worker's place in a group."""

    rank: int
    size: int
    host: str
    """Of rank 0."""
    port: int


class TorchExchange:
    """Sums over a group of processes: every part travels to every worker, and each adds them in their order."""

    def __init__(self, group: Group, device: torch.device, listener: socket.socket | None) -> None:
        """Meets the other workers.

        Args:
            group: This worker's place.
            device: Where tensors live.
            listener: Rank 0's socket, on which the others find it; nobody else can take its port, or hear of it on
                another interface.

        Raises:
            ExchangeError: They cannot be reached.
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
            dist.init_process_group(
                "nccl" if device.type == "cuda" else "gloo",
                store=store,
                rank=group.rank,
                world_size=group.size,
                timeout=TIMEOUT,
            )
        except RuntimeError as error:
            raise ExchangeError(str(error)) from error

    def ordered_sum(self, parts: Mapping[int, torch.Tensor], *, owners: Sequence[int]) -> torch.Tensor:
        """The sum of all workers' parts, in the order of their numbers.

        Raises:
            ExchangeError: A worker died.
        """
        most = max(Counter(owners).values())
        mine = [parts[number] for number in sorted(parts)]
        padded = torch.stack([*mine, *(torch.zeros_like(mine[0]) for _ in range(most - len(mine)))])
        gathered = [torch.empty_like(padded) for _ in range(self.size)]
        try:
            dist.all_gather(gathered, padded)
        except RuntimeError as error:
            raise ExchangeError(str(error)) from error
        taken = Counter[int]()
        ordered = []
        for owner in owners:
            ordered.append(gathered[owner][taken[owner]])
            taken[owner] += 1
        return add_in_order(ordered)


def listen() -> socket.socket:
    """A socket on a free port of this node's address in the cluster."""
    import ray

    host = ray.util.get_node_ip_address() if ray.is_initialized() else "127.0.0.1"
    return socket.create_server((host, 0))


def leave_group() -> None:
    """Leaves the group that this process is in, if it is in one."""
    if dist.is_initialized():
        dist.destroy_process_group()
