"""Sums over the workers that share a computation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch


class Collectives(Protocol):
    """Sums over all workers that do not depend on how many there are."""

    def all_reduce_ordered(self, parts: Mapping[int, torch.Tensor], *, owners: Sequence[int]) -> torch.Tensor:
        """Add the parts of all workers in the order of their numbers: floats add differently in another order.

        Args:
            parts: This worker's parts, by number; one or more.
            owners: For each number the rank of the worker that holds that part.

        Returns:
            The sum, the same on every worker.
        """
        ...


class SingleWorker:
    """Sums of a single worker, which needs no others."""

    def all_reduce_ordered(self, parts: Mapping[int, torch.Tensor], *, owners: Sequence[int]) -> torch.Tensor:
        """Add the parts in the order of their numbers."""
        return add_in_order([parts[number] for number in range(len(owners))])


def add_in_order(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the sum of one or more parts, added first to last."""
    total = parts[0].clone() if len(parts) > 1 else parts[0]
    for part in parts[1:]:
        total += part
    return total
