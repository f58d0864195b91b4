"""Training of a unit: parameters, gradients and Adam's moments, each kind in one flat vector."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from dipo.algo.activation_cache import CachedActivation
from dipo.algo.fused_unit import FusedFakeQuant, FusedUnit, Operation, Quantizer
from dipo.algo.losses import ErrorLoss
from dipo.algo.steps.reconstruction import ReconstructionOptions
from dipo.algo.weight_quantizer import FIXED, LayerInit, WeightQuantizer
from dipo.graph.plan import QuantizedLayer
from dipo.graph.sample_axis import CountedValue
from dipo.quant.kernels import Kernels
from dipo.quant.rounding import random_words
from dipo.quant.spec import QParams


@dataclass(frozen=True)
class GradShard:
    """A shard of the gradient: a fixed part of the samples, and of every step's batch."""

    index: int
    start: int
    """First row in this worker's cached values."""
    stop: int
    batch_size: int
    """Number of its samples in each step."""
    held_out: tuple[int, ...] = ()
    """Rows that are never drawn: those of held-out samples."""


@dataclass(frozen=True, eq=False)
class UnitProblem:
    """A unit to be trained: its operations, inputs and the outputs that it is fitted to."""

    steps: Sequence[Operation | FusedFakeQuant]
    constants: Mapping[str, torch.Tensor]
    """Constants by name, the layers' float weights and biases among them."""
    layers: Mapping[str, tuple[str, str | None, QuantizedLayer]]
    """By name of the node: names of weight and bias, and the layer as it is before the training."""
    activations: Mapping[str, QParams]
    """Scales and zero points of the values that the unit quantizes, by name."""
    fp_inputs: Mapping[str, CachedActivation]
    q_inputs: Mapping[str, CachedActivation]
    """Inputs of the quantized unit; the same as `fp_inputs` where it is to read the float network's values."""
    targets: Mapping[str, CachedActivation]
    weights: Mapping[str, CachedActivation] | None = None
    """By name of the output: weights of each element's error; None: all alike."""
    rounding: Mapping[str, NDArray[np.float32]] | None = None
    """By name of the node: state after an earlier phase, see `WeightQuantizer.begun`; None: start at float weights."""
    sizes: Mapping[str, CountedValue] = field(default_factory=dict)
    """Inputs that follow from the number of samples."""
    freeze_rounding: bool = False
    """Keep the codes as they are: biases and scales alone are trained."""


class Trainer:
    """Parameters, gradients and moments of one unit, each kind in one flat vector: one kernel updates them all."""

    def __init__(
        self,
        problem: UnitProblem,
        *,
        cfg: ReconstructionOptions,
        num_steps: int,
        pieces: Sequence[GradShard],
        seed: int,
        kernels: Kernels,
    ) -> None:
        self.problem, self.cfg, self.kernels = problem, cfg, kernels
        self.device = next(iter(problem.constants.values())).device
        self.fp_input_prob = cfg.fp_input_prob or 0.0
        self.weights = WeightQuantizer(
            {node: LayerInit(problem.constants[name], layer) for node, (name, _, layer) in problem.layers.items()},
            rounding=FIXED if problem.freeze_rounding else cfg.rounding,
            train_scale=cfg.train_scale,
            begun=problem.rounding,
            kernels=kernels,
        )
        self._make_others()
        self.generators = {piece.index: _generator(self.device, seed, piece.index) for piece in pieces}
        self.batches = {piece.index: _sample(piece, num_steps, seed).to(self.device) for piece in pieces}
        self.targets = problem.targets
        self.losses = {name: self._loss(target) for name, target in problem.targets.items()}
        self.program = FusedUnit(list(problem.steps), self._constants(), self.quantizers, kernels)

    def _loss(self, target: CachedActivation) -> ErrorLoss:
        # Squared error, summed over the channels, meaned over samples and positions: its gradient is the difference
        # times this.
        factor = torch.tensor(2 / (self.cfg.batch_size * target.positions), device=self.device)
        weighted = self.problem.weights is not None
        infinite = bool(torch.isinf(target.data).any())
        return ErrorLoss.of(factor, self.cfg.loss_norm, weighted=weighted, kernels=self.kernels, infinite=infinite)

    def _make_others(self) -> None:
        """Lay out biases and logarithms of scales in one flat vector, with a learning rate for each element."""
        problem, cfg = self.problem, self.cfg
        names = [bias for _, bias, _ in problem.layers.values() if bias is not None] if cfg.train_bias else []
        kept = {bias: layer.bias for _, bias, layer in problem.layers.values() if bias is not None}
        biases = [torch.tensor(kept[name], device=self.device) for name in names]
        acts = [float(qparams.scale) for qparams in problem.activations.values()]
        free = torch.tensor([float(not qparams.power_of_two) for qparams in problem.activations.values()])
        rates = [torch.full((sum(bias.numel() for bias in biases),), cfg.lr_bias), cfg.lr_act * free]
        if cfg.train_scale:
            rates.append(cfg.lr_scale * self.weights.free_scales.cpu())
        cuts = [len(rate) for rate in rates]
        self.others_lr = torch.cat(rates).to(self.device)
        self.others = torch.zeros_like(self.others_lr)
        self.others_moments = torch.zeros_like(self.others), torch.zeros_like(self.others)
        own, self.log_scales, *logs = torch.split(self.others, cuts)
        self.log_weight_scales = logs[0] if logs else None
        self.biases: dict[str, torch.Tensor] = {}
        for name, bias, part in zip(names, biases, torch.split(own, [len(bias) for bias in biases]), strict=True):
            self.biases[name] = part.copy_(bias).requires_grad_()
        self.first_scales = torch.tensor(acts, device=self.device)
        self.scales = self.first_scales.clone()
        self.quantizers = {
            name: self._quantizer(self.scales[index], qparams)
            for index, (name, qparams) in enumerate(problem.activations.items())
        }

    def _quantizer(self, scale: torch.Tensor, qparams: QParams) -> Quantizer:
        bits = math.log2(qparams.qmax - qparams.qmin + 1)
        return Quantizer(
            scale=scale.requires_grad_(),
            qlow=torch.tensor(float(qparams.qmin - qparams.zero_point), device=self.device),
            qhigh=torch.tensor(float(qparams.qmax - qparams.zero_point), device=self.device),
            q_prob=1 - self.fp_input_prob if bits < 8 else 1.0,
        )

    def _constants(self) -> dict[str, torch.Tensor]:
        layers = self.problem.layers
        fixed = {bias: layer.bias for _, bias, layer in layers.values() if bias is not None}
        current = {name: torch.tensor(bias, device=self.device) for name, bias in fixed.items()}
        weights = {layers[node][0]: leaf for node, leaf in self.weights.leaves.items()}
        return {**self.problem.constants, **current, **weights, **self.biases}

    def gradient(self, piece: GradShard, step: int, *, wants_loss: bool) -> torch.Tensor:
        """Return a shard's gradients of all trained parameters, and its loss, in one vector.

        In this order: of the weights, where their rounding is trained; of the biases; of the logarithms of activation
        scales and of weight scales.
        """
        index, generator = self.batches[piece.index][step], self.generators[piece.index]
        inputs = {name: self._input(name, index, generator) for name in self.problem.q_inputs}
        inputs |= {name: value.of(len(index), self.device) for name, value in self.problem.sizes.items()}
        names = list(self.targets)
        # An output that depends on nothing that is trained cannot be fitted.
        made = zip(names, self.program.run(inputs, names, generator), strict=True)
        outputs = {name: out for name, out in made if out.requires_grad}
        gradients, loss = [], torch.zeros((), device=self.device)
        for name, out in outputs.items():
            target = self.targets[name]
            given = target.axis.to_rows(out.detach()).reshape(-1).float()
            rows = self._rows(self.targets, name, index).float()
            weights = None if self.problem.weights is None else self._rows(self.problem.weights, name, index)
            gradient = self.losses[name].gradient(given, rows, weights)
            if wants_loss:
                loss = loss + self.losses[name].value(given, rows, gradient)
            gradients.append(target.view(gradient).to(out.dtype))
        return torch.cat([*self._gradients(list(outputs.values()), gradients), loss.view(1)])

    def _gradients(self, outputs: Sequence[torch.Tensor], gradients: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        weights, biases = list(self.weights.leaves.values()), list(self.biases.values())
        leaves = [*weights, *biases, *(q.scale for q in self.quantizers.values())]
        sparse = torch.autograd.grad(outputs, leaves, gradients, allow_unused=True) if outputs else [None] * len(leaves)
        dense = [torch.zeros_like(leaf) if grad is None else grad for grad, leaf in zip(sparse, leaves, strict=True)]
        cut = len(leaves) - len(self.quantizers)
        scales = torch.stack(dense[cut:]) * self.scales if self.quantizers else self.log_scales
        first, last = self.weights.gradients([grad.reshape(-1) for grad in dense[: len(weights)]])
        return [*first, *(grad.reshape(-1) for grad in dense[len(weights) : cut]), scales, *last]

    def _rows(self, captures: Mapping[str, CachedActivation], name: str, index: torch.Tensor) -> torch.Tensor:
        return captures[name].data.index_select(0, index).view(-1)

    def _input(self, name: str, index: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        # Rows are gathered by index_select: inside a compiled kernel the gather would keep everything from vectorising.
        q, fp = self.problem.q_inputs[name], self.problem.fp_inputs[name]
        rows = q.data.index_select(0, index).view(-1)
        if self.fp_input_prob == 0 or q is fp or not fp.data.is_floating_point():
            return q.view(
                rows
                if q.qparams is None
                else self.kernels.dequantize_codes(rows, q.qparams.scale, q.qparams.zero_point)
            )
        words = random_words(rows.numel(), generator, 1 - self.fp_input_prob)
        fp_rows = fp.data.index_select(0, index).view(-1)
        if q.qparams is None:
            return q.view(self.kernels.mix_floats(rows, fp_rows, words))
        return q.view(self.kernels.mix_codes(rows, fp_rows, q.qparams.scale, q.qparams.zero_point, words))

    @torch.no_grad()
    def update(self, gradient: torch.Tensor, schedule: torch.Tensor) -> None:
        """Take one Adam step of all parameters."""
        cut = self.weights.v.numel()
        self.weights.step(gradient[:cut], schedule)
        self.kernels.adam_step(gradient[cut:-1], self.others, *self.others_moments, self.others_lr, schedule)
        torch.mul(self.first_scales, self.log_scales.exp(), out=self.scales)
        if self.log_weight_scales is not None:
            self.weights.rescale(self.log_weight_scales)

    def layers(self) -> dict[str, QuantizedLayer]:
        """Return the layers with their rounding decided."""
        result = {}
        for node, layer in self.weights.solved().items():
            bias_name = self.problem.layers[node][1]
            trained = self.biases.get(bias_name) if bias_name is not None else None
            bias = layer.bias if trained is None else trained.detach().cpu().numpy().copy()
            result[node] = dataclasses.replace(layer, bias=bias)
        return result

    def activations(self) -> dict[str, QParams]:
        """Return the activations with their trained scales."""
        scales = self.scales.detach().cpu().numpy()
        return {
            name: old if old.power_of_two else dataclasses.replace(old, scale=scales[i].copy())
            for i, (name, old) in enumerate(self.problem.activations.items())
        }


def _generator(device: torch.device, seed: int, piece: int) -> torch.Generator:
    state = np.random.SeedSequence([seed, piece, 1]).generate_state(1, np.uint64)[0]
    return torch.Generator(device).manual_seed(int(state >> np.uint64(1)))


def _sample(piece: GradShard, num_steps: int, seed: int) -> torch.Tensor:
    """Return rows of the cached values for each step, [steps, batch]; each is drawn once before any is drawn again."""
    rng = np.random.default_rng([seed, piece.index, 0])
    needed, rows = num_steps * piece.batch_size, np.setdiff1d(np.arange(piece.start, piece.stop), piece.held_out)
    rounds = [rng.permutation(rows) for _ in range(-(-needed // len(rows)))]
    return torch.from_numpy(np.concatenate(rounds)[:needed].reshape(num_steps, piece.batch_size))
