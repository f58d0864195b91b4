"""The float and the quantized network side by side, unit after unit, over one worker's samples.

A worker holds what the units to come still read: of the float network numbers, of the quantized one integer codes.
Each unit is solved on the outputs of those before it, so that it sees their errors and makes up for them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch

from dipo.algo.captures import Batch, Capture, channel_sum
from dipo.algo.exchange import Exchange
from dipo.algo.program import fuse
from dipo.algo.reconstruct import Piece, UnitProblem, UnitSolution, reconstruct
from dipo.config import AlgoConfig
from dipo.graph.load import bias_of, layers_of, name_of, node_name, opset_of, weight_of
from dipo.graph.plan import Plan, QuantizedLayer, QuantizedModel
from dipo.graph.torch_module import GraphModule, Hook, channels_last
from dipo.graph.units import Unit
from dipo.quant.functional import TorchQParams, fake_quantize
from dipo.quant.kernels import Kernels
from dipo.quant.spec import QParams

CORRECTION_SAMPLES = 256
"""Samples that a bias correction between units looks at: channel means need no more."""


@dataclass(frozen=True)
class UnitResult:
    """What became of a unit."""

    layers: dict[str, QuantizedLayer]
    activations: dict[str, QParams]
    loss_first: float | None = None
    loss_last: float | None = None
    bias_corrected: bool = False
    """Whether correcting the biases after training lowered the error of the unit's outputs."""


class Sweep:
    """Goes through the units in order. Every worker makes the same calls at the same time."""

    def __init__(
        self,
        model: ir.Model,
        *,
        plan: Plan,
        units: Sequence[Unit],
        quantized: QuantizedModel,
        batches: Sequence[Batch],
        owners: Sequence[int],
        inputs: Callable[[Batch], Mapping[str, torch.Tensor]],
        with_float: bool,
        exchange: Exchange,
        device: torch.device,
    ) -> None:
        """Reads the samples.

        Args:
            model: The float network, normalised.
            plan: What is quantized.
            units: All units, in order.
            quantized: What calibration found for every layer and activation.
            batches: This worker's batches.
            owners: The worker that holds each of the run's batches.
            inputs: Reads a batch: the network's inputs by name.
            with_float: Whether the float network is carried along: reconstruction needs it, bias correction does not.
            exchange: Adds up over the workers.
            device: Where tensors live.
        """
        self.model, self.plan, self.units, self.exchange, self.device = model, plan, list(units), exchange, device
        self.batches, self.owners, self.with_float = list(batches), list(owners), with_float
        self.nodes = {node_name(node): node for node in model.graph}
        self.layer_layouts = {node_name(node): _parameters(node) for node in layers_of(model)}
        self.layers, self.activations = dict(quantized.layers), dict(quantized.activations)
        self.rows = _rows(batches)
        read = [inputs(batch) for batch in batches]
        names = [name_of(value) for value in model.graph.inputs]
        self.q = {name: self._gather(name, [channels_last(part[name]) for part in read], codes=True) for name in names}
        kept = names if with_float else []
        self.fp = {name: self._gather(name, [channels_last(part[name]) for part in read], codes=False) for name in kept}

    def solve(
        self,
        unit: Unit,
        *,
        cfg: AlgoConfig,
        pieces: Sequence[Piece],
        piece_owners: Sequence[int],
        seed: int,
        kernels: Kernels,
        progress: Callable[[int], None],
    ) -> UnitResult:
        """Reconstructs the next unit (one without layers is only passed through) and moves on behind it."""
        targets = self.targets(unit)
        result = UnitResult({}, {})
        if any(node in self.plan.layers for node in unit.layers):
            problem = self.problem(unit, targets)
            solution = reconstruct(
                problem, cfg=cfg, pieces=pieces, owners=piece_owners, exchange=self.exchange,
                seed=seed, kernels=kernels, progress=progress,
            )  # fmt: skip
            self._adopt(solution)
            corrected = cfg.correct_bias and self._correct_if_better(unit, targets)
            result = UnitResult(
                layers={name: self.layers[name] for name in solution.layers},
                activations=solution.activations,
                loss_first=solution.loss_first,
                loss_last=solution.loss_last,
                bias_corrected=corrected,
            )
        self._advance(unit)
        self.fp.update(targets)
        self._forget(unit)
        return result

    def correct(self, unit: Unit, fp_means: Mapping[str, np.ndarray]) -> UnitResult:
        """Shifts the bias of the unit's layer so that its output has the float network's channel means, and moves on.

        Empirical bias correction (DFQ, arXiv:1906.04721, section 4.2), each layer on the corrected ones before it.

        Args:
            unit: A unit of granularity `layer`.
            fp_means: Channel means of the layers' outputs in the float network, over all samples.
        """
        first, *others = (self.nodes[name] for name in unit.nodes)
        old = self.layers.get(node_name(first))
        if old is None or old.bias is None:
            self._advance(unit)
            self._forget(unit)
            return UnitResult({}, {})
        name, output = node_name(first), name_of(first.outputs[0])
        module = self._module([first], [output])
        outs = [
            module(self._read(self.q, module.inputs, rows), constants=self._weights([name]))[output]
            for rows in self.rows
        ]
        means = self._mean_of({batch.index: out for batch, out in zip(self.batches, outs, strict=True)})
        bias = (old.bias + (fp_means[name] - means)).astype(np.float32)
        self.layers[name] = QuantizedLayer(old.codes, old.qparams, bias)
        shift = torch.from_numpy(bias - old.bias).to(self.device)
        shift = shift.view(-1, *(1,) * (outs[0].ndim - 2))
        rest = self._module(others, unit.outputs)
        # Each batch is let go as soon as what follows has read it: floats of all samples are large.
        shifted = ({output: outs.pop(0).add_(shift)} for _ in self.rows)
        self.q.update(self._run(rest, shifted, constants={}, hook=self._hook([first, *others]), codes=True))
        self._forget(unit)
        return UnitResult({name: self.layers[name]}, {})

    def targets(self, unit: Unit) -> dict[str, Capture]:
        """What the float network gives as the next unit's outputs."""
        module = self._module([self.nodes[name] for name in unit.nodes], unit.outputs)
        return self._run(module, self._reads(self.fp, module), constants={}, hook=None, codes=False)

    def problem(self, unit: Unit, targets: Mapping[str, Capture]) -> UnitProblem:
        """The next unit as a problem to reconstruct."""
        nodes = [self.nodes[name] for name in unit.nodes]
        made = {name_of(value) for node in nodes for value in node.outputs if value.name}
        activations = _coarse({name: self.activations[name] for name in self.plan.activations if name in made})
        module = self._module(nodes, unit.outputs)
        constants = {name: module.constant(name) for name in module.constant_names}
        return UnitProblem(
            steps=fuse(nodes, set(activations), opset_of(self.model)),
            constants=constants,
            layers={
                name: (*self.layer_layouts[name], self.layers[name]) for name in unit.layers if name in self.plan.layers
            },
            activations=activations,
            fp_inputs={name: self.fp[name] for name in module.inputs},
            q_inputs={name: self.q[name] for name in module.inputs},
            targets=targets,
        )

    def _adopt(self, solution: UnitSolution) -> None:
        self.layers.update(solution.layers)
        self.activations.update(solution.activations)
        for value, source in self.plan.shared.items():
            if source in solution.activations:
                self.activations[value] = solution.activations[source]

    def _correct_if_better(self, unit: Unit, targets: Mapping[str, Capture]) -> bool:
        """Corrects the biases of the unit's layers, first to last; takes that back where the error does not fall."""
        before = {name: self.layers[name] for name in unit.layers if name in self.layers}
        chosen = self._correction_batches()
        error = self._output_error(unit, targets, chosen)
        nodes = [self.nodes[name] for name in unit.nodes]
        outputs = {
            name: name_of(self.nodes[name].outputs[0]) for name, layer in before.items() if layer.bias is not None
        }
        fp_module = self._module(nodes, list(outputs.values()))
        fp_means = self._means(fp_module, self.fp, chosen, constants={}, hook=None)
        for name, output in outputs.items():
            layer = self.layers[name]
            part = nodes[: nodes.index(self.nodes[name]) + 1]
            module = self._module(part, [output])
            means = self._means(module, self.q, chosen, constants=self._weights(unit.layers), hook=self._hook(part))
            bias = (layer.bias + (fp_means[output] - means[output])).astype(np.float32)
            self.layers[name] = QuantizedLayer(layer.codes, layer.qparams, bias)
        if self._output_error(unit, targets, chosen) < error:
            return True
        self.layers.update(before)
        return False

    def _correction_batches(self) -> list[tuple[Batch, slice]]:
        """Every k-th of the run's batches, so that the choice does not depend on who holds them."""
        wanted = max(1, CORRECTION_SAMPLES // max(1, len(self.batches[0]) if self.batches else 1))
        stride = max(1, len(self.owners) // wanted)
        return [(batch, rows) for batch, rows in zip(self.batches, self.rows, strict=True) if batch.index % stride == 0]

    def _output_error(self, unit: Unit, targets: Mapping[str, Capture], chosen: Sequence[tuple[Batch, slice]]) -> float:
        nodes = [self.nodes[name] for name in unit.nodes]
        module, hook = self._module(nodes, unit.outputs), self._hook(nodes)
        sums = {batch.index: torch.zeros(1, dtype=torch.float64, device=self.device) for batch in self.batches}
        for batch, rows in chosen:
            made = module(self._read(self.q, module.inputs, rows), hook=hook, constants=self._weights(unit.layers))
            for name, value in made.items():
                seen = hook(name, value)
                sums[batch.index] += (seen - targets[name].rows(rows.start, rows.stop)).square().sum().double()
        return float(self.exchange.ordered_sum(sums, owners=self.owners))

    def _means(
        self,
        module: GraphModule,
        captures: Mapping[str, Capture],
        chosen: Sequence[tuple[Batch, slice]],
        *,
        constants: Mapping[str, torch.Tensor],
        hook: Hook | None,
    ) -> dict[str, np.ndarray]:
        """Channel means of the module's outputs over the chosen batches of all workers; float64 [C] each."""
        collected: dict[str, dict[int, torch.Tensor]] = {name: {} for name in module.outputs}
        for batch, rows in chosen:
            for name, value in module(
                self._read(captures, module.inputs, rows), hook=hook, constants=constants
            ).items():
                collected[name][batch.index] = _sum_and_count(value)
        means = {}
        for name, parts in collected.items():
            nothing = (
                torch.zeros_like(next(iter(parts.values())))
                if parts
                else torch.zeros(self._num_channels(name) + 1, dtype=torch.float64, device=self.device)
            )
            every = {batch.index: parts.get(batch.index, nothing) for batch in self.batches}
            total = self.exchange.ordered_sum(every, owners=self.owners).cpu().numpy()
            means[name] = total[:-1] / total[-1]
        return means

    def _mean_of(self, outs: Mapping[int, torch.Tensor]) -> np.ndarray:
        """Channel means of one value over all batches of all workers; float64 [C]."""
        parts = {index: _sum_and_count(out) for index, out in outs.items()}
        total = self.exchange.ordered_sum(parts, owners=self.owners).cpu().numpy()
        return np.asarray(total[:-1] / total[-1])

    def _num_channels(self, output: str) -> int:
        return next(
            len(layer.bias)
            for name, layer in self.layers.items()
            if layer.bias is not None and name_of(self.nodes[name].outputs[0]) == output
        )

    def _advance(self, unit: Unit) -> None:
        """Runs the quantized unit, as it now is, over all samples."""
        nodes = [self.nodes[name] for name in unit.nodes]
        module = self._module(nodes, unit.outputs)
        self.q.update(
            self._run(
                module,
                self._reads(self.q, module),
                constants=self._weights(unit.layers),
                hook=self._hook(nodes),
                codes=True,
            )
        )

    def _run(
        self,
        module: GraphModule,
        inputs: Iterable[Mapping[str, torch.Tensor]],
        *,
        constants: Mapping[str, torch.Tensor],
        hook: Hook | None,
        codes: bool,
    ) -> dict[str, Capture]:
        parts: dict[str, list[torch.Tensor]] = {name: [] for name in module.outputs}
        for batch in inputs:
            for name, value in module(batch, hook=hook, constants=constants).items():
                parts[name].append(Capture.encode(value, self._code_qparams(name, codes=codes)))
        return {name: Capture.gather(values, self._code_qparams(name, codes=codes)) for name, values in parts.items()}

    def _gather(self, name: str, batches: Sequence[torch.Tensor], *, codes: bool) -> Capture:
        qparams = self._code_qparams(name, codes=codes)
        return Capture.gather([Capture.encode(batch, qparams) for batch in batches], qparams)

    def _code_qparams(self, name: str, *, codes: bool) -> TorchQParams | None:
        """The codes that a capture of the quantized network keeps; None where it keeps floats."""
        return self._torch_qparams(name) if codes and name in self.activations else None

    def _forget(self, unit: Unit) -> None:
        """Drops what no later unit reads."""
        needed = {name for later in self.units[unit.index + 1 :] for name in later.inputs}
        for captures in (self.q, self.fp):
            for name in [name for name in captures if name not in needed]:
                del captures[name]

    def _read(self, captures: Mapping[str, Capture], names: Sequence[str], rows: slice) -> dict[str, torch.Tensor]:
        return {name: captures[name].rows(rows.start, rows.stop) for name in names}

    def _reads(self, captures: Mapping[str, Capture], module: GraphModule) -> Iterator[dict[str, torch.Tensor]]:
        return (self._read(captures, module.inputs, rows) for rows in self.rows)

    def _module(self, nodes: Sequence[ir.Node], outputs: Sequence[str]) -> GraphModule:
        return (
            GraphModule(self.model, nodes=nodes, outputs=outputs)
            .to(self.device)
            .eval()
            .requires_grad_(requires_grad=False)
        )

    def _weights(self, layers: Sequence[str]) -> dict[str, torch.Tensor]:
        """Quantized weights and biases of those layers, by name of the constant."""
        result = {}
        for name in layers:
            if name not in self.layers:
                continue
            weight, bias = self.layer_layouts[name]
            result[weight] = channels_last(torch.as_tensor(self.layers[name].weight, device=self.device))
            if bias is not None and self.layers[name].bias is not None:
                result[bias] = torch.as_tensor(self.layers[name].bias, device=self.device)
        return result

    def _hook(self, nodes: Sequence[ir.Node]) -> Hook:
        """Fake-quantizes the values that the nodes make."""
        made = {name_of(value) for node in nodes for value in node.outputs if value.name}
        qparams = {
            name: self._torch_qparams(name)
            for name in made
            if name in self.activations and name not in self.plan.shared
        }
        return lambda name, value: fake_quantize(value, qparams[name]) if name in qparams else value

    def _torch_qparams(self, name: str) -> TorchQParams:
        return TorchQParams.of(self.activations[name], num_dims=0, device=self.device)


def _parameters(node: ir.Node) -> tuple[str, str | None]:
    weight, bias = weight_of(node), bias_of(node)
    assert weight is not None
    return name_of(weight), None if bias is None else name_of(bias)


def _coarse(activations: Mapping[str, QParams]) -> dict[str, QParams]:
    """The activations to train with: beside coarser ones, 8 bits add a noise 24 dB lower and cost as much time."""
    coarse = {name: qparams for name, qparams in activations.items() if qparams.qmax - qparams.qmin < 255}
    return coarse or dict(activations)


def _rows(batches: Sequence[Batch]) -> list[slice]:
    """Where each batch lies in the worker's captures."""
    stops = np.cumsum([len(batch) for batch in batches])
    return [slice(int(stop) - len(batch), int(stop)) for batch, stop in zip(batches, stops, strict=True)]


def _sum_and_count(value: torch.Tensor) -> torch.Tensor:
    """Channel sums and, behind them, the number of elements in a channel; float64 [C + 1]."""
    count = torch.tensor([value.numel() / value.shape[1]], dtype=torch.float64, device=value.device)
    return torch.cat([channel_sum(value), count])
