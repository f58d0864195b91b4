"""Means of a value's channels over all samples, over those that a step is fitted to, and over the held-out ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from dipo.algo.activation_cache import Batch, channel_sum
from dipo.algo.held_out import places
from dipo.graph.sample_axis import FIRST, SampleAxis


@dataclass(frozen=True, eq=False)
class ChannelMeans:
    """Means [C] of a value's channels over samples and positions, float64."""

    every: NDArray[np.float64]
    """Over all samples."""
    fitted: NDArray[np.float64]
    """Over those that are not held out."""
    held_out: NDArray[np.float64] | None
    """Over those that are; None where none is."""

    @staticmethod
    def of(sums: NDArray[np.float64]) -> ChannelMeans:
        """Return the means that follow from `split_sums`, added up over all batches."""
        every, held = sums
        fitted = every - held
        return ChannelMeans(
            every[:-1] / every[-1], fitted[:-1] / fitted[-1], held[:-1] / held[-1] if held[-1] > 0 else None
        )

    def to_array(self) -> NDArray[np.float64]:
        """Return the means as they are stored, [2 or 3, C]."""
        return np.stack(
            [self.every, self.fitted] if self.held_out is None else [self.every, self.fitted, self.held_out]
        )

    @staticmethod
    def from_array(stored: NDArray[np.float64]) -> ChannelMeans:
        """Return the means that `to_array` gave."""
        every, fitted, *held = stored
        return ChannelMeans(every, fitted, held[0] if held else None)


def split_sums(
    value: torch.Tensor, batch: Batch, held_out: Sequence[int], *, axis: SampleAxis | None = FIRST
) -> torch.Tensor:
    """Return a batch's channel sums, each row followed by the number of elements in a channel; float64 [2, C + 1].

    Args:
        value: Value of the batch.
        batch: The batch.
        held_out: Indices of the held-out samples, rising.
        axis: The value's axis of samples; None: samples cannot be told apart in it, none is held out.

    Returns:
        In the first row those over all samples of the batch, in the second those over its held-out ones.
    """
    every, own = sum_and_count(value), places(batch, held_out)
    held = torch.zeros_like(every) if axis is None or not own else sum_and_count(axis.take(value, own))
    return torch.stack([every, held])


def sum_and_count(value: torch.Tensor) -> torch.Tensor:
    """Return the channel sums followed by the number of elements in a channel; float64 [C + 1]."""
    count = torch.tensor([value.numel() / value.shape[1]], dtype=torch.float64, device=value.device)
    return torch.cat([channel_sum(value), count])
