"""A worker's equipment, and the tasks that it is handed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

import onnx_ir as ir
import torch

from dipo.algo.activation_cache import Batch, StoredRows
from dipo.data.samples import Dataset
from dipo.graph.plan import Plan
from dipo.graph.sample_axis import SampleAxes
from dipo.graph.target_spec import TargetSpec
from dipo.graph.torch_module import channels_last
from dipo.quant import kernels as kernels_of
from dipo.quant.kernels import Kernels

ResultT_co = TypeVar("ResultT_co", covariant=True)
T_co = TypeVar("T_co", covariant=True)
T = TypeVar("T")


class Shared(Protocol[T_co]):
    """A handle to a value that every worker can read."""

    def get(self) -> T_co:
        """Return the value; it must not be changed."""
        ...


@dataclass(frozen=True, eq=False)
class InPlace(Generic[T]):
    """A handle to a value of this process."""

    value: T

    def get(self) -> T:
        """Return the value."""
        return self.value


@dataclass
class Bench:
    """A worker's device, its networks and its samples."""

    model: ir.Model
    """The float network, normalised."""
    plan: Plan
    """The layers and activations that are quantized."""
    samples: SampleAxes
    """Where the samples lie in each of the network's values."""
    rules: TargetSpec
    """Constraints of the target."""
    calib: Dataset
    """The calibration samples."""
    device: torch.device
    threads: int
    """CPU threads."""
    compile: bool
    """Compiled kernels for reconstruction."""
    progress: Callable[[int], None]
    """Called with the number of samples or steps done in the call at hand."""
    _kernels: Kernels | None = field(default=None, init=False)

    @property
    def kernels(self) -> Kernels:
        """Elementwise arithmetic of reconstruction; compiled at the first use, with `compile`."""
        if self._kernels is None:
            compiled = kernels_of.compiled(self.device.type, self.threads) if self.compile else kernels_of.eager()
            self._kernels = compiled
        return self._kernels

    def calib_inputs(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Read a batch of the calibration samples: the network's inputs by name, on the worker's device."""
        return self.inputs_of(self.calib, batch)

    def inputs_of(self, dataset: Dataset, batch: Batch) -> dict[str, torch.Tensor]:
        """Read a batch of a data set: the network's inputs by name, on the worker's device."""
        arrays = dataset.read(batch.start, batch.stop).inputs
        return {name: channels_last(torch.from_numpy(array).to(self.device)) for name, array in arrays.items()}


class Task(Protocol[ResultT_co]):
    """Work that one worker does by itself; a task is pickled to the worker."""

    @property
    def name(self) -> str:
        """Its name in messages and events."""
        ...

    def run(self, bench: Bench, *stored: StoredRows) -> ResultT_co:
        """Do the work.

        Args:
            bench: The worker's networks, samples and device.
            stored: Values that other tasks left with the workers, where the driver hands some on.
        """
        ...
