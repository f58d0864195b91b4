"""What is trained of a unit: parameters, gradients and Adam's moments, each kind in one flat vector."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from dipo.algo.captures import Capture
from dipo.algo.program import Operation, Program, Quantizer, QuantizeSite
from dipo.config import AlgoConfig
from dipo.graph.plan import QuantizedLayer
from dipo.quant.kernels import Kernels
from dipo.quant.rounding import flat, initial_rounding, random_words, soft_weight, unflat
from dipo.quant.spec import QParams


@dataclass(frozen=True)
class Piece:
    """A fixed part of the samples, and of every step's batch."""

    index: int
    start: int
    """First row of this worker's captures."""
    stop: int
    batch_size: int
    """Samples that it adds to a step."""


@dataclass(frozen=True, eq=False)
class UnitProblem:
    """What a unit is to be fitted to."""

    steps: Sequence[Operation | QuantizeSite]
    constants: Mapping[str, torch.Tensor]
    """Float constants by name, the layers' weights and biases among them."""
    layers: Mapping[str, tuple[str, str | None, QuantizedLayer]]
    """By node: names of weight and bias, and the layer as calibration left it."""
    activations: Mapping[str, QParams]
    """Values that are made and quantized in the unit."""
    fp_inputs: Mapping[str, Capture]
    q_inputs: Mapping[str, Capture]
    targets: Mapping[str, Capture]
    rounding: Mapping[str, NDArray[np.float32]] | None = None
    """By node: V as an earlier phase left it; None: the fraction that rounding takes off or adds."""


class Trainer:
    """Parameters, gradients and moments of one unit, each kind in one flat vector: one kernel updates them all."""

    def __init__(
        self,
        problem: UnitProblem,
        *,
        cfg: AlgoConfig,
        num_steps: int,
        pieces: Sequence[Piece],
        seed: int,
        kernels: Kernels,
    ) -> None:
        self.problem, self.cfg, self.kernels = problem, cfg, kernels
        self.device = next(iter(problem.constants.values())).device
        self._make_rounding()
        self._make_others()
        self.generators = {piece.index: _generator(self.device, seed, piece.index) for piece in pieces}
        self.batches = {piece.index: _sample(piece, num_steps, seed).to(self.device) for piece in pieces}
        self.targets = problem.targets
        # Squared error, summed over the channels, meaned over samples and positions (BRECQ, eq. 10 with a unit Fisher):
        # its gradient is the difference times this. On the device from the start, so that no step copies from the host.
        self.factors = {
            name: torch.tensor(2 / (cfg.batch_size * math.prod(target.shape[1:])), device=self.device)
            for name, target in problem.targets.items()
        }
        self.program = Program(list(problem.steps), self._constants(), self.quantizers, kernels)

    def _make_rounding(self) -> None:
        """V of all layers, and what a soft weight is made of, as flat vectors; the weights are leaves on `soft`."""
        floors, scales, lows, highs, rests = [], [], [], [], []
        for weight_name, _, layer in self.problem.layers.values():
            weight = self.problem.constants[weight_name].contiguous()
            qparams = layer.qparams
            scale = torch.tensor(qparams.along(weight.ndim)[0], device=self.device).expand_as(weight)
            zero = torch.tensor(qparams.along(weight.ndim)[1], device=self.device).expand_as(weight).to(torch.float32)
            ratio = weight / scale
            floors.append(ratio.floor().reshape(-1))
            rests.append((ratio - ratio.floor()).reshape(-1))
            scales.append(scale.reshape(-1))
            lows.append((qparams.qmin - zero).reshape(-1))
            highs.append((qparams.qmax - zero).reshape(-1))
        self.floor, self.scale, self.low, self.high = (torch.cat(parts) for parts in (floors, scales, lows, highs))
        self.v = self._begun_rounding() if self.problem.rounding else initial_rounding(torch.cat(rests))
        self.v_moments = torch.zeros_like(self.v), torch.zeros_like(self.v)
        self.soft = soft_weight(self.v, self.floor, self.scale, self.low, self.high)
        self.weights: dict[str, torch.Tensor] = {}
        offset = 0
        for weight_name, _, _ in self.problem.layers.values():
            shape = self.problem.constants[weight_name].shape
            self.weights[weight_name] = self.soft[offset : offset + shape.numel()].view(shape).requires_grad_()
            offset += shape.numel()

    def _begun_rounding(self) -> torch.Tensor:
        assert self.problem.rounding is not None
        return torch.cat([torch.tensor(self.problem.rounding[node]).view(-1) for node in self.problem.layers]).to(
            self.device
        )

    def _make_others(self) -> None:
        """Biases, and logarithms of activation scales, as one flat vector with a learning rate for each element."""
        names = [bias for _, bias, _ in self.problem.layers.values() if bias is not None] if self.cfg.train_bias else []
        kept = {bias: layer.bias for _, bias, layer in self.problem.layers.values() if bias is not None}
        biases = [torch.tensor(kept[name], device=self.device) for name in names]
        num_biases = sum(bias.numel() for bias in biases)
        initial = [float(qparams.scale) for qparams in self.problem.activations.values()]
        self.first_scales = torch.tensor(initial, device=self.device)
        self.others = torch.cat([*biases, torch.zeros(len(initial), device=self.device)])
        self.others_moments = torch.zeros_like(self.others), torch.zeros_like(self.others)
        self.others_lr = torch.full_like(self.others, self.cfg.lr_act)
        self.others_lr[:num_biases] = self.cfg.lr_bias
        self.log_scales = self.others[num_biases:]
        self.scales = self.first_scales.clone()
        self.biases: dict[str, torch.Tensor] = {}
        offset = 0
        for name, bias in zip(names, biases, strict=True):
            self.biases[name] = self.others[offset : offset + bias.numel()].requires_grad_()
            offset += bias.numel()
        self.quantizers: dict[str, Quantizer] = {}
        for index, (name, qparams) in enumerate(self.problem.activations.items()):
            bits = math.log2(qparams.qmax - qparams.qmin + 1)
            self.quantizers[name] = Quantizer(
                scale=self.scales[index].requires_grad_(),
                qlow=torch.tensor(float(qparams.qmin - qparams.zero_point), device=self.device),
                qhigh=torch.tensor(float(qparams.qmax - qparams.zero_point), device=self.device),
                q_prob=1 - self.cfg.fp_input_prob if bits < 8 else 1.0,
            )

    def _constants(self) -> dict[str, torch.Tensor]:
        fixed = {bias: layer.bias for _, bias, layer in self.problem.layers.values() if bias is not None}
        current = {name: torch.tensor(bias, device=self.device) for name, bias in fixed.items()}
        return {**self.problem.constants, **current, **self.weights, **self.biases}

    def gradient(self, piece: Piece, step: int, *, wants_loss: bool) -> torch.Tensor:
        """The piece's gradients of weights, biases and logarithms of scales, and its loss, in one vector."""
        index, generator = self.batches[piece.index][step], self.generators[piece.index]
        inputs = {name: self._input(name, index, generator) for name in self.problem.q_inputs}
        names = list(self.targets)
        outputs = self.program.run(inputs, names, generator)
        gradients, loss = [], torch.zeros((), device=self.device)
        for name, out in zip(names, outputs, strict=True):
            rows = self.targets[name].data.index_select(0, index).view(-1)
            gradient = self.kernels.loss_gradient(flat(out.detach()), rows, self.factors[name])
            if wants_loss:
                loss = loss + gradient.square().sum() / (2 * self.factors[name])
            gradients.append(unflat(gradient, out.shape))
        leaves = [*self.weights.values(), *self.biases.values(), *(q.scale for q in self.quantizers.values())]
        found = torch.autograd.grad(outputs, leaves, gradients, allow_unused=True)
        dense = [torch.zeros_like(leaf) if grad is None else grad for grad, leaf in zip(found, leaves, strict=True)]
        cut = len(leaves) - len(self.quantizers)
        scales = torch.stack(dense[cut:]) * self.scales if self.quantizers else self.log_scales
        return torch.cat([*(grad.reshape(-1) for grad in dense[:cut]), scales, loss.view(1)])

    def _input(self, name: str, index: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        # Rows are gathered by index_select: inside a compiled kernel the gather would keep everything from vectorising.
        q, fp = self.problem.q_inputs[name], self.problem.fp_inputs[name]
        rows = q.data.index_select(0, index).view(-1)
        if self.cfg.fp_input_prob == 0:
            return q.view(
                rows
                if q.qparams is None
                else self.kernels.dequantize_codes(rows, q.qparams.scale, q.qparams.zero_point)
            )
        words = random_words(rows.numel(), generator, 1 - self.cfg.fp_input_prob)
        fp_rows = fp.data.index_select(0, index).view(-1)
        if q.qparams is None:
            return q.view(self.kernels.mix_floats(rows, fp_rows, words))
        return q.view(self.kernels.mix_codes(rows, fp_rows, q.qparams.scale, q.qparams.zero_point, words))

    @torch.no_grad()
    def update(self, gradient: torch.Tensor, schedule: torch.Tensor) -> None:
        """One Adam step of everything."""
        cut = self.v.numel()
        self.kernels.rounding_step(
            gradient[:cut], self.v, *self.v_moments, self.soft, self.floor, self.scale, self.low, self.high, schedule
        )
        self.kernels.adam_step(gradient[cut:-1], self.others, *self.others_moments, self.others_lr, schedule)
        torch.mul(self.first_scales, self.log_scales.exp(), out=self.scales)

    def layers(self) -> dict[str, QuantizedLayer]:
        """The layers with their rounding decided."""
        codes = (self.floor + (self.v >= 0)).clamp(self.low, self.high)
        result = {}
        offset = 0
        for node, (weight_name, bias_name, layer) in self.problem.layers.items():
            size = self.weights[weight_name].numel()
            zero = layer.qparams.along(layer.codes.ndim)[1]
            own = codes[offset : offset + size].view(layer.codes.shape).cpu().numpy().astype(np.int32) + zero
            bias = self.biases[bias_name].detach().cpu().numpy().copy() if bias_name in self.biases else layer.bias
            result[node] = QuantizedLayer(codes=own.astype(np.int32), qparams=layer.qparams, bias=bias)
            offset += size
        return result

    def rounding(self) -> dict[str, NDArray[np.float32]]:
        """V of each layer."""
        sizes = [self.weights[weight_name].numel() for weight_name, _, _ in self.problem.layers.values()]
        parts = self.v.cpu().numpy().copy()
        cuts = np.split(parts, np.cumsum(sizes)[:-1])
        return {
            node: part.reshape(layer.codes.shape)
            for part, (node, (_, _, layer)) in zip(cuts, self.problem.layers.items(), strict=True)
        }

    def activations(self) -> dict[str, QParams]:
        """The activations with their trained scales."""
        scales = self.scales.detach().cpu().numpy()
        return {
            name: QParams(scales[i].copy(), old.zero_point, old.qmin, old.qmax, old.axis)
            for i, (name, old) in enumerate(self.problem.activations.items())
        }


def _generator(device: torch.device, seed: int, piece: int) -> torch.Generator:
    state = np.random.SeedSequence([seed, piece, 1]).generate_state(1, np.uint64)[0]
    return torch.Generator(device).manual_seed(int(state >> np.uint64(1)))


def _sample(piece: Piece, num_steps: int, seed: int) -> torch.Tensor:
    """[steps, batch]: rows of the captures; each sample is drawn once before any is drawn again."""
    rng = np.random.default_rng([seed, piece.index, 0])
    needed, rows = num_steps * piece.batch_size, np.arange(piece.start, piece.stop)
    rounds = [rng.permutation(rows) for _ in range(-(-needed // len(rows)))]
    return torch.from_numpy(np.concatenate(rounds)[:needed].reshape(num_steps, piece.batch_size))
