"""Values that one unit hands to the next, kept for all samples of a shard."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dipo.graph.sample_axis import FIRST, SampleAxis
from dipo.quant.functional import TorchQParams, dequantize, quantize

Rows = slice | list[int]
"""Places of samples among those that a worker has cached."""


@dataclass(frozen=True)
class Batch:
    """Samples that run together: cut at fixed sample indices, so that no result depends on the number of workers."""

    index: int
    """Its position among all batches of the run."""
    start: int
    """First sample of the data set."""
    stop: int
    """One past the last."""

    def __len__(self) -> int:
        return self.stop - self.start


def cut(num_samples: int, batch_size: int) -> list[Batch]:
    """Return all batches of a run; the last may be shorter."""
    starts = range(0, num_samples, batch_size)
    return [Batch(index, start, min(start + batch_size, num_samples)) for index, start in enumerate(starts)]


@dataclass(frozen=True, eq=False)
class StoredRows:
    """A value's numbers for some samples, as workers hand them to each other."""

    data: NDArray[Any]
    """Codes or floats [samples, elements], as in a `CachedActivation`."""
    shape: tuple[int, ...]
    """As in a `CachedActivation`."""

    @staticmethod
    def of(capture: CachedActivation) -> StoredRows:
        """Return all samples of a cached activation."""
        return StoredRows(capture.data.cpu().numpy(), capture.shape)


@dataclass(frozen=True, eq=False)
class CachedActivation:
    """A value's numbers for the samples of a shard."""

    data: torch.Tensor
    """[samples, elements], elements in the order of memory (images channels_last): integer codes, or float32."""
    shape: tuple[int, ...]
    """Shape of the value without the axis of its samples."""
    qparams: TorchQParams | None
    """Scale and zero point of the codes; None for floats."""
    axis: SampleAxis = FIRST
    """The axis of the samples."""

    @staticmethod
    def encode(batch: torch.Tensor, qparams: TorchQParams | None) -> torch.Tensor:
        """Return a batch of the value, quantized before or not, as it is stored: codes where `qparams` are given."""
        return batch if qparams is None else quantize(batch, qparams)

    @staticmethod
    def gather(
        parts: Sequence[torch.Tensor], qparams: TorchQParams | None, axis: SampleAxis = FIRST
    ) -> CachedActivation:
        """Concatenate encoded batches."""
        stored = [axis.to_rows(part) for part in parts]
        shape = parts[0].shape
        return CachedActivation(torch.cat(stored), (*shape[: axis.axis], *shape[axis.axis + 1 :]), qparams, axis)

    @staticmethod
    def restore(
        parts: Sequence[StoredRows], qparams: TorchQParams | None, axis: SampleAxis, device: torch.device
    ) -> CachedActivation:
        """Concatenate stored parts, and move them to `device`."""
        data = np.concatenate([part.data for part in parts])
        return CachedActivation(torch.from_numpy(data).to(device), parts[0].shape, qparams, axis)

    @property
    def positions(self) -> int:
        """Number of positions of one sample: rows, pixels, whatever a loss takes the mean of; channels come first."""
        return self.axis.rows * math.prod(self.shape[1:])

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """Return the value for samples start to stop, float32."""
        return self.at(slice(start, stop))

    def at(self, rows: Rows) -> torch.Tensor:
        """Return the value for some samples, float32."""
        part = self.data[rows]
        numbers = part if self.qparams is None else dequantize(part, self.qparams)
        return self.view(numbers)

    def view(self, numbers: torch.Tensor) -> torch.Tensor:
        """Return the value for numbers in the order of `data`, of any number of samples."""
        return self.axis.from_rows(numbers, self.shape)


def channel_sum(value: torch.Tensor) -> torch.Tensor:
    """Return the sum over all dimensions but the channels', 1; float64 [C]."""
    return value.sum(dim=[dim for dim in range(value.ndim) if dim != 1]).double()


def read_ahead(
    batches: Sequence[Batch], inputs: Callable[[Batch], Mapping[str, torch.Tensor]]
) -> Iterator[tuple[Batch, Mapping[str, torch.Tensor]]]:
    """Yield batches with their inputs; while one is worked on, a thread reads and decodes the next."""
    with ThreadPoolExecutor(1) as reader:
        coming = deque(reader.submit(inputs, batch) for batch in batches[:1])
        for index, batch in enumerate(batches):
            coming.extend(reader.submit(inputs, later) for later in batches[index + 1 : index + 2])
            yield batch, coming.popleft().result()
