"""One worker: a shard of the samples, a device, and the steps of the recipe that run there."""

from __future__ import annotations

import ctypes
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from dipo.algo.calibrate import Observed, observe
from dipo.algo.captures import Batch
from dipo.algo.exchange import Exchange, NoExchange
from dipo.algo.pair import Pair
from dipo.algo.reconstruct import Piece
from dipo.algo.simulate import Simulated, simulate
from dipo.algo.sweep import Sweep, UnitResult
from dipo.cluster.group import Group, TorchExchange
from dipo.config import AlgoConfig
from dipo.data.samples import Dataset
from dipo.graph.plan import Plan, QuantizedModel
from dipo.graph.rules import PlatformRules
from dipo.graph.torch_module import channels_last
from dipo.graph.units import Unit
from dipo.quant import kernels

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
"""Of glibc's malloc.h."""


@dataclass(frozen=True)
class Job:
    """What every worker is told at its start."""

    plan: Plan
    rules: PlatformRules
    calib: Dataset
    device: str
    """`cpu` or `cuda`."""
    threads: int
    """CPU threads."""
    compile: bool
    """Compiled kernels for reconstruction."""


@dataclass(frozen=True)
class Shard:
    """A worker's part in a sweep."""

    batches: Sequence[Batch]
    owners: Sequence[int]
    """The worker that holds each of the run's batches."""
    pieces: Sequence[Piece]
    piece_owners: Sequence[int]
    """The worker that holds each of the run's pieces."""


@dataclass(frozen=True)
class TimedResult:
    """A unit's result and what it cost."""

    result: UnitResult
    seconds: float


class Worker:
    """Runs on Ray or in this process; keeps its captures between calls."""

    def __init__(self, job: Job, model: ir.Model | bytes) -> None:
        """Takes the normalised float network, as it is or, from another process, as an ONNX protobuf."""
        self.job = job
        self.device = torch.device(job.device)
        torch.set_num_threads(job.threads)
        _keep_freed_memory()
        self.model = ir.from_proto(onnx.load_from_string(model)) if isinstance(model, bytes) else model
        self.done = 0
        self.on_progress: Callable[[int], None] | None = None
        self.exchange: Exchange = NoExchange()
        self.kernels = kernels.eager()
        self.sweep: Sweep | None = None
        self.shard: Shard | None = None

    def progress(self) -> int:
        """Samples or steps done in the call under way."""
        return self.done

    def peak_rss_mb(self) -> float:
        """Most memory that the process has held."""
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    def address(self) -> str:
        """Where the other workers can meet this one."""
        return Group.free_address()

    def join(self, group: Group | None) -> None:
        """Joins the workers that sweep together; None to work alone."""
        self.exchange = NoExchange() if group is None else TorchExchange(group, self.device)

    def observe(self, batches: Sequence[Batch]) -> Observed:
        """Calibration of these batches."""
        self.done = 0
        return observe(
            self.model,
            plan=self.job.plan,
            batches=batches,
            inputs=self._calib_inputs,
            device=self.device,
            progress=self._progress,
        )

    def start_sweep(self, units: Sequence[Unit], quantized: QuantizedModel, shard: Shard, *, with_float: bool) -> None:
        """Reads this worker's samples for a walk through the units."""
        self.shard = shard
        pair = Pair(
            self.model,
            plan=self.job.plan,
            units=units,
            quantized=quantized,
            batches=shard.batches,
            owners=shard.owners,
            inputs=self._calib_inputs,
            with_float=with_float,
            exchange=self.exchange,
            device=self.device,
        )
        self.sweep = Sweep(pair)

    def prepare_kernels(self) -> str | None:
        """Makes the kernels of reconstruction ready; says why they are not compiled, where that was wanted."""
        wanted = self.job.compile
        self.kernels = kernels.compiled(self.device.type, self.job.threads) if wanted else kernels.eager()
        return self.kernels.fallback

    def reconstruct(self, unit: Unit, cfg: AlgoConfig, seed: int) -> TimedResult:
        """Solves the next unit together with the other workers."""
        assert self.sweep is not None and self.shard is not None
        self.done = 0
        start = time.perf_counter()
        result = self.sweep.solve(
            unit, cfg=cfg, pieces=self.shard.pieces, piece_owners=self.shard.piece_owners,
            seed=seed, kernels=self.kernels, progress=self._progress,
        )  # fmt: skip
        return TimedResult(result, time.perf_counter() - start)

    def correct_bias(self, unit: Unit, fp_means: Mapping[str, NDArray[np.float64]]) -> TimedResult:
        """Corrects the bias of the next unit's layer together with the other workers."""
        assert self.sweep is not None
        start = time.perf_counter()
        return TimedResult(self.sweep.correct(unit, fp_means), time.perf_counter() - start)

    def end_sweep(self) -> None:
        """Lets the captures go."""
        self.sweep = self.shard = None

    def simulate(
        self, quantized: QuantizedModel, dataset: Dataset, batches: Sequence[Batch], profile_samples: int
    ) -> Simulated:
        """Both networks on these batches of a data set."""
        self.done = 0
        return simulate(
            self.model,
            plan=self.job.plan,
            quantized=quantized,
            rules=self.job.rules,
            batches=batches,
            inputs=lambda batch: self._inputs(dataset, batch),
            profile_samples=profile_samples,
            device=self.device,
            progress=self._progress,
        )

    def _calib_inputs(self, batch: Batch) -> dict[str, torch.Tensor]:
        return self._inputs(self.job.calib, batch)

    def _inputs(self, dataset: Dataset, batch: Batch) -> dict[str, torch.Tensor]:
        arrays = dataset.read(batch.start, batch.stop).inputs
        return {name: channels_last(torch.from_numpy(array).to(self.device)) for name, array in arrays.items()}

    def _progress(self, done: int) -> None:
        self.done = done
        if self.on_progress is not None:
            self.on_progress(done)


def _keep_freed_memory() -> None:
    """Tells glibc to keep what is freed: a network frees and asks for the same large blocks again and again.

    Faulting them in anew costs a calibration a tenth of its time. Elsewhere than on glibc nothing happens.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_TRIM_THRESHOLD, 1 << 30)
        mallopt(M_TOP_PAD, 64 << 20)
        mallopt(M_MMAP_THRESHOLD, 32 << 20)  # the most that glibc takes
