"""Workers that add up together, over torch.distributed: NCCL between GPUs, Gloo between CPUs."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from dipo.algo.exchange import add_in_order


@dataclass(frozen=True)
class Group:
    """A worker's place in a group."""

    rank: int
    size: int
    address: str
    """Of rank 0, `host:port`."""

    @staticmethod
    def free_address() -> str:
        """This node's address with a port that is free."""
        import ray

        host = ray.util.get_node_ip_address() if ray.is_initialized() else "127.0.0.1"
        with socket.socket() as probe:
            probe.bind(("", 0))
            return f"{host}:{probe.getsockname()[1]}"


class TorchExchange:
    """Sums over a group of processes: every part travels to every worker, and each adds them in their order."""

    def __init__(self, group: Group, device: torch.device) -> None:
        """Meets the other workers."""
        self.size = group.size
        if dist.is_initialized():
            dist.destroy_process_group()
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            init_method=f"tcp://{group.address}",
            rank=group.rank,
            world_size=group.size,
            timeout=timedelta(minutes=10),
        )

    def ordered_sum(self, parts: Mapping[int, torch.Tensor], *, owners: Sequence[int]) -> torch.Tensor:
        """The sum of all workers' parts, in the order of their numbers."""
        most = max(Counter(owners).values())
        mine = [parts[number] for number in sorted(parts)]
        padded = torch.stack([*mine, *(torch.zeros_like(mine[0]) for _ in range(most - len(mine)))])
        gathered = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(gathered, padded)
        taken = Counter[int]()
        ordered = []
        for owner in owners:
            ordered.append(gathered[owner][taken[owner]])
            taken[owner] += 1
        return add_in_order(ordered)
