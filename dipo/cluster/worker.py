"""One worker: a shard of the samples, a device, and the steps of the recipe that run there."""

from __future__ import annotations

import resource
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from dipo.algo.analyze import analyze
from dipo.algo.bias_correction import correct_layer
from dipo.algo.calibrate import Observed, observe
from dipo.algo.captures import Batch, StoredRows
from dipo.algo.exchange import Exchange, NoExchange
from dipo.algo.findings import Analysis
from dipo.algo.pair import Pair
from dipo.algo.simulate import Simulated, simulate
from dipo.algo.sparsity import prune_layer
from dipo.algo.sweep import Sweep, Training, UnitResult
from dipo.algo.trainer import Piece
from dipo.algo.update_bn import update_layer
from dipo.cluster.group import Group, TorchExchange, listen
from dipo.cluster.malloc import keep_freed_memory
from dipo.cluster.metrics import Metrics, NoMetrics
from dipo.cluster.work import AloneWork, Job, Shard, TimedResult, UnitCost, Work
from dipo.data.samples import Dataset
from dipo.graph.batch_norm import BatchNorm
from dipo.graph.load import node_name
from dipo.graph.plan import Plan, QuantizedLayer, QuantizedModel
from dipo.graph.target_spec import TargetSpec
from dipo.graph.torch_module import GraphModule, channels_last
from dipo.graph.units import Unit
from dipo.quant import kernels
from dipo.recipe import AlgoConfig, CalibConfig

COST_SAMPLES, COST_REPEATS = 16, 3


class Worker:
    """Runs on Ray or in this process; keeps its captures between calls."""

    def __init__(self, job: Job, model: ir.Model | bytes) -> None:
        """Takes the normalised float network, as it is or, from another process, as an ONNX protobuf."""
        self.job = job
        self.device = torch.device(job.device)
        torch.set_num_threads(job.threads)
        keep_freed_memory()
        self.model = ir.from_proto(onnx.load_from_string(model)) if isinstance(model, bytes) else model
        self.done = 0
        self.on_progress: Callable[[int], None] | None = None
        self.metrics: Metrics = NoMetrics()
        self.exchange: Exchange = NoExchange()
        self.kernels: kernels.Kernels | None = None
        self.listener: socket.socket | None = None
        self.sweep: Sweep | None = None
        self.shard: Shard | None = None

    def peak_rss_mb(self) -> float:
        """Most memory that the process has held."""
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    def listen(self) -> tuple[str, int]:
        """Where the other workers can meet this one: host and port."""
        self.listener = listen()
        host, port = self.listener.getsockname()[:2]
        return host, port

    def join(self, group: Group | None) -> None:
        """Joins the workers that sweep together; None to work alone.

        Raises:
            ExchangeError: They cannot be reached.
        """
        if isinstance(self.exchange, TorchExchange):
            self.exchange.close()
        listener, self.listener = self.listener, None
        self.exchange = NoExchange() if group is None else TorchExchange(group, self.device, listener)

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

    def capture(self, batches: Sequence[Batch], names: Sequence[str], *, quantized: QuantizedModel) -> tuple[Any, ...]:
        """Values of both networks for these batches.

        Returns:
            The number of samples, then for each name what the float network gives, then what the quantized one does.
        """
        self.done = 0
        pair = self._pair([], quantized, batches, owners=[0] * len(batches), exchange=NoExchange())
        pair.read_samples(self._calib_inputs, with_float=True)
        fp, q = pair.capture(names)
        self._progress(sum(len(batch) for batch in batches))
        return (self.done, *(StoredRows.of(captures[name]) for captures in (fp, q) for name in names))

    def unit_costs(self, units: Sequence[Unit]) -> list[UnitCost]:
        """What a forward pass of each unit costs, on the first batch, and what it reads."""
        batch = Batch(0, 0, min(COST_SAMPLES, len(self.job.calib)))
        names = list(dict.fromkeys(name for unit in units for name in unit.inputs))
        by_name = {node_name(node): node for node in self.model.graph}
        with torch.inference_mode():
            values = GraphModule(self.model, outputs=names).to(self.device).eval()(self._calib_inputs(batch))
            costs = []
            for unit in units:
                nodes = [by_name[name] for name in unit.nodes]
                module = GraphModule(self.model, nodes=nodes, outputs=unit.outputs).to(self.device).eval()
                seconds = min(self._seconds(module, values) for _ in range(COST_REPEATS))
                costs.append(UnitCost(seconds, {name: self._capture_bytes(name, values[name]) for name in unit.inputs}))
        return costs

    def _capture_bytes(self, name: str, value: torch.Tensor) -> int:
        """Of a sample, in both networks."""
        spec = self.job.plan.activations.get(self.job.plan.shared.get(name, name))
        own = value.element_size()
        return value[0].numel() * (own + (own if spec is None else 1 if spec.bits <= 8 else 2))

    def _seconds(self, module: GraphModule, values: Mapping[str, torch.Tensor]) -> float:
        start = time.perf_counter()
        module(values)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter() - start

    def solve_alone(self, work: AloneWork, *stored: StoredRows, quantized: QuantizedModel) -> TimedResult:
        """Solves a unit behind captured inputs.

        Args:
            work: The unit.
            stored: What it reads of the float network, input after input and each in as many parts as samples were
                captured in, then the same of the quantized one.
            quantized: The network that was captured.
        """
        self.done = 0
        start = time.perf_counter()
        unit = work.unit
        pair = self._pair([unit], quantized, work.batches, owners=[0] * len(work.batches), exchange=NoExchange())
        count = len(stored) // (2 * len(unit.inputs))
        parts = [stored[index : index + count] for index in range(0, len(stored), count)]
        fp, q = parts[: len(unit.inputs)], parts[len(unit.inputs) :]
        pair.take_inputs(dict(zip(unit.inputs, fp, strict=True)), dict(zip(unit.inputs, q, strict=True)))
        if work.begun is not None:
            pair.adopt(work.begun.layers, work.begun.activations)
        rows = sum(len(batch) for batch in work.batches)
        how = self._training(work.work, [Piece(0, 0, rows, work.work.cfg.batch_size)], [0])
        rounding = None if work.begun is None else work.begun.rounding
        result = Sweep(pair, self._calib_inputs).train(unit, pair.targets(unit), how, rounding=rounding)
        self.metrics.unit_done()
        return TimedResult(result, time.perf_counter() - start)

    def start_sweep(self, units: Sequence[Unit], quantized: QuantizedModel, shard: Shard, *, with_float: bool) -> None:
        """Reads this worker's samples for a walk through the units."""
        self.shard = shard
        pair = self._pair(units, quantized, shard.batches, owners=shard.owners, exchange=self.exchange)
        pair.read_samples(self._calib_inputs, with_float=with_float)
        self.sweep = Sweep(pair, self._calib_inputs)

    def prepare_kernels(self) -> str | None:
        """Makes the kernels of reconstruction ready; says why they are not compiled, where that was wanted."""
        if self.kernels is None:
            wanted = self.job.compile
            self.kernels = kernels.compiled(self.device.type, self.job.threads) if wanted else kernels.eager()
        return self.kernels.fallback

    def reconstruct(self, unit: Unit, work: Work, begun: UnitResult | None) -> TimedResult:
        """Solves the next unit together with the other workers."""
        assert self.sweep is not None and self.shard is not None
        self.done = 0
        start = time.perf_counter()
        how = self._training(work, self.shard.pieces, self.shard.piece_owners)
        result = self.sweep.solve(unit, how, begun=begun)
        self.metrics.unit_done()
        return TimedResult(result, time.perf_counter() - start)

    def correct_bias(self, unit: Unit, fp_means: Mapping[str, NDArray[np.float64]]) -> TimedResult:
        """Corrects the bias of the next unit's layer together with the other workers."""
        return self._changed(lambda pair: correct_layer(pair, unit, fp_means), corrects=True)

    def update_bn(self, unit: Unit, norm: BatchNorm | None, calib: CalibConfig) -> TimedResult:
        """Estimates the BatchNorm of the next unit's layer again together with the other workers."""
        return self._changed(lambda pair: update_layer(pair, unit, norm, calib=calib))

    def prune(self, unit: Unit, algo: AlgoConfig | None, calib: CalibConfig) -> TimedResult:
        """Prunes the next unit's layer together with the other workers; leaves it alone where `algo` is None."""
        return self._changed(lambda pair: prune_layer(pair, unit, cfg=algo, calib=calib))

    def _changed(self, change: Callable[[Pair], dict[str, QuantizedLayer]], *, corrects: bool = False) -> TimedResult:
        assert self.sweep is not None
        start = time.perf_counter()
        layers = change(self.sweep.pair)
        self.metrics.unit_done()
        return TimedResult(UnitResult(layers, {}, bias_corrected=corrects), time.perf_counter() - start)

    def replay(self, units: Sequence[Unit], results: Sequence[UnitResult], *, step: str) -> None:
        """Takes what a step found for the next units before."""
        assert self.sweep is not None
        for unit, result in zip(units, results, strict=True):
            if step == "bias_correction":
                known = next(iter(result.layers.values()), None)
                correct_layer(self.sweep.pair, unit, {}, known=known)
            else:
                self.sweep.replay(unit, result)

    def end_sweep(self) -> None:
        """Lets the captures go."""
        self.sweep = self.shard = None

    def simulate(
        self,
        batches: Sequence[Batch],
        *,
        quantized: QuantizedModel,
        dataset: Dataset,
        profile_samples: int,
        plan: Plan | None = None,
        rules: TargetSpec | None = None,
    ) -> Simulated:
        """Both networks on these batches of a data set, by the job's plan and rules or by those of another target."""
        self.done = 0
        return simulate(
            self.model,
            plan=plan or self.job.plan,
            quantized=quantized,
            rules=rules or self.job.rules,
            batches=batches,
            inputs=lambda batch: self._inputs(dataset, batch),
            profile_samples=profile_samples,
            device=self.device,
            progress=self._progress,
        )

    def analyze(self, batches: Sequence[Batch], *, quantized: QuantizedModel, sensitivity_samples: int) -> Analysis:
        """What the layers lose on these batches."""
        self.done = 0
        return analyze(
            self.model,
            plan=self.job.plan,
            quantized=quantized,
            rules=self.job.rules,
            batches=batches,
            inputs=self._calib_inputs,
            sensitivity_samples=sensitivity_samples,
            device=self.device,
            progress=self._progress,
        )

    def _pair(
        self,
        units: Sequence[Unit],
        quantized: QuantizedModel,
        batches: Sequence[Batch],
        *,
        owners: Sequence[int],
        exchange: Exchange,
    ) -> Pair:
        return Pair(
            self.model, plan=self.job.plan, units=units, quantized=quantized, batches=batches, owners=owners,
            exchange=exchange, device=self.device,
        )  # fmt: skip

    def _training(self, work: Work, pieces: Sequence[Piece], piece_owners: Sequence[int]) -> Training:
        # A worker that stands in for one that died has not been told to prepare.
        self.prepare_kernels()
        assert self.kernels is not None
        return Training(
            work.cfg, work.phase, work.correct_bias, pieces, piece_owners, work.seed, self.kernels, self._progress,
            tunes=work.tunes,
        )  # fmt: skip

    def _calib_inputs(self, batch: Batch) -> dict[str, torch.Tensor]:
        return self._inputs(self.job.calib, batch)

    def _inputs(self, dataset: Dataset, batch: Batch) -> dict[str, torch.Tensor]:
        arrays = dataset.read(batch.start, batch.stop).inputs
        return {name: channels_last(torch.from_numpy(array).to(self.device)) for name, array in arrays.items()}

    def _progress(self, done: int) -> None:
        self.done = done
        self.metrics.progress(done)
        if self.on_progress is not None:
            self.on_progress(done)
