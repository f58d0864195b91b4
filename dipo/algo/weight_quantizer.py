"""A unit's weights in training: their rounding and, where wanted, their scales, as flat vectors.

A weight is level * scale. With `sigmoid` the level is floor(w / s) + h(V) (AdaRound, arXiv:2004.10568), with
`straight_through` round(w / s + V), and a fixed level is the code less the zero point, as it was found before. The
base, floor(w / s) or w / s, is that of the scale that training began with: a scale that is trained then moves all
weights of its channel alike and leaves their levels to V (Genie, arXiv:2212.04780).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from dipo.graph.plan import QuantizedLayer
from dipo.quant.kernels import Kernels
from dipo.quant.rounding import initial_rounding, soft_weight, straight_weight
from dipo.quant.spec import QParams

FIXED = "fixed"
"""The rounding that tuning leaves as it is; the others are those of `algo.rounding`."""


@dataclass(frozen=True, eq=False)
class LayerInit:
    """A layer's weight before its training."""

    weight: torch.Tensor
    """The float network's weight."""
    layer: QuantizedLayer
    """The quantized layer before the training."""


@dataclass(frozen=True)
class _FlatSlice:
    """A layer's place in the flat vectors."""

    start: int
    stop: int
    shape: torch.Size
    first_scale: int
    num_scales: int
    qparams: QParams

    def sums(self, elements: torch.Tensor) -> torch.Tensor:
        """Return for each scale the sum of the layer's elements that it scales."""
        own, blocks = elements[self.start : self.stop].view(self.shape), self.qparams.blocks
        if self.qparams.axis is None:
            return own.reshape(1, -1).sum(1)
        if blocks is None:
            return own.movedim(self.qparams.axis, 0).flatten(1).sum(1)
        inner = torch.nn.functional.pad(own.movedim(blocks.axis, -1), (0, -blocks.length % blocks.size))
        sums: torch.Tensor = inner.reshape(*inner.shape[:-1], -1, blocks.size).sum(-1)
        return sums.movedim(-1, blocks.axis).reshape(-1)

    def spread(self, scales: torch.Tensor) -> torch.Tensor:
        """Return the layer's scales, shaped to broadcast against its weight."""
        own, blocks = scales[self.first_scale : self.first_scale + self.num_scales], self.qparams.blocks
        if blocks is not None:
            repeated = own.view(self.qparams.scale.shape).repeat_interleave(blocks.size, blocks.axis)
            return repeated.narrow(blocks.axis, 0, blocks.length)
        shape = [1] * len(self.shape)
        if self.qparams.axis is not None:
            shape[self.qparams.axis] = -1
        return own.view(shape)


class WeightQuantizer:
    """Rounding and scales of all layers of a unit; the leaves of the gradient are views of one vector."""

    def __init__(
        self,
        layers: Mapping[str, LayerInit],
        *,
        rounding: str,
        train_scale: bool,
        begun: Mapping[str, NDArray[np.float32]] | None,
        kernels: Kernels,
    ) -> None:
        """Start at the float weights, or where an earlier phase stopped.

        Args:
            layers: Layers by name of the node.
            rounding: `sigmoid`, `straight_through`, or `FIXED`.
            train_scale: Whether scales are trained; those that have to stay powers of two are not.
            begun: Rounding by name of the node after an earlier phase, see `begun`; None: start at the float weights.
            kernels: Elementwise arithmetic.
        """
        self.layers, self.rounding, self.train_scale, self.kernels = layers, rounding, train_scale, kernels
        self.device = next(iter(layers.values())).weight.device
        self._lay_out()
        self._find_levels(begun)
        self.moments = torch.zeros_like(self.v), torch.zeros_like(self.v)
        self.soft = self._weight()
        self.leaves = {
            node: self.soft[part.start : part.stop].view(part.shape).requires_grad_()
            for node, part in self.parts.items()
        }

    def _lay_out(self) -> None:
        """Lay out the layers' slices, scales and limits in flat vectors."""
        self.parts: dict[str, _FlatSlice] = {}
        scales, lows, highs, firsts = [], [], [], []
        offset = count = 0
        for node, (weight, qparams) in ((n, (w.weight, w.layer.qparams)) for n, w in self.layers.items()):
            along, zeros = qparams.broadcast_to(weight.ndim)
            scale = torch.tensor(along, device=self.device).expand_as(weight)
            zero = torch.tensor(zeros, device=self.device).expand_as(weight).to(torch.float32)
            # A weight that was pruned has no other level than 0.
            kept = 1.0 if self.layers[node].layer.target is None else (self._float(node) != 0).to(torch.float32)
            scales.append(scale.reshape(-1))
            lows.append(((qparams.qmin - zero) * kept).reshape(-1))
            highs.append(((qparams.qmax - zero) * kept).reshape(-1))
            firsts.append(torch.tensor(qparams.scale, device=self.device).reshape(-1))
            size, num_scales = weight.numel(), qparams.scale.size
            self.parts[node] = _FlatSlice(offset, offset + size, weight.shape, count, num_scales, qparams)
            offset, count = offset + size, count + num_scales
        self.scale, self.low, self.high = (torch.cat(parts) for parts in (scales, lows, highs))
        self.first_scales = torch.cat(firsts)
        self.scales = self.first_scales.clone()

    def _float(self, node: str) -> torch.Tensor:
        """Return the float weight that the layer's codes approximate."""
        target = self.layers[node].layer.target
        return self.layers[node].weight.contiguous() if target is None else torch.tensor(target, device=self.device)

    def _find_levels(self, begun: Mapping[str, NDArray[np.float32]] | None) -> None:
        """Set the base that levels count from, and V."""
        if self.rounding == FIXED:
            levels = [
                entry.layer.codes - entry.layer.qparams.broadcast_to(entry.layer.codes.ndim)[1]
                for entry in self.layers.values()
            ]
            self.base = torch.cat([torch.tensor(level, device=self.device).reshape(-1) for level in levels]).float()
            self.v = torch.zeros(0, device=self.device)
            return
        ratio = torch.cat([self._float(node).reshape(-1) for node in self.layers]) / self.scale
        self.base = ratio.floor() if self.rounding == "sigmoid" else ratio
        self.v = initial_rounding(ratio - self.base) if self.rounding == "sigmoid" else torch.zeros_like(ratio)
        if begun is None:
            return
        own = [torch.tensor(begun[node], device=self.device) for node in self.layers]
        if self.train_scale:
            self.base = torch.cat([pair[1].reshape(-1) for pair in own])
            own = [pair[0] for pair in own]
        self.v = torch.cat([part.reshape(-1) for part in own])

    def _weight(self) -> torch.Tensor:
        if self.rounding == FIXED:
            return self.base * self.scale
        weigh = soft_weight if self.rounding == "sigmoid" else straight_weight
        return weigh(self.v, self.base, self.scale, self.low, self.high)

    @property
    def free_scales(self) -> torch.Tensor:
        """A tensor with 1 for each scale, or 0 where it has to stay a power of two."""
        free = [float(not part.qparams.power_of_two) for part in self.parts.values() for _ in range(part.num_scales)]
        return torch.tensor(free, device=self.device)

    @torch.no_grad()
    def gradients(self, found: Sequence[torch.Tensor]) -> tuple[Sequence[torch.Tensor], Sequence[torch.Tensor]]:
        """Return the gradients for `step`, and those of the logarithms of the scales.

        Args:
            found: Gradients of the layers' weights, each flat. That of a scale's logarithm is the sum of
                gradient * weight over the weights that it scales.
        """
        scales = []
        if self.train_scale:
            products = torch.cat(list(found)) * self.soft.detach()
            scales = [part.sums(products) for part in self.parts.values()]
        return [] if self.rounding == FIXED else found, scales

    @torch.no_grad()
    def step(self, gradient: torch.Tensor, schedule: torch.Tensor) -> None:
        """Take one Adam step of V, from the gradients of the weights."""
        if self.rounding == FIXED:
            return
        step = self.kernels.rounding_step if self.rounding == "sigmoid" else self.kernels.straight_through_step
        step(gradient, self.v, *self.moments, self.soft, self.base, self.scale, self.low, self.high, schedule)

    @torch.no_grad()
    def rescale(self, logs: torch.Tensor) -> None:
        """Set the scales, given as logarithms of their ratios to the first ones."""
        torch.mul(self.first_scales, logs.exp(), out=self.scales)
        for part in self.parts.values():
            self.scale[part.start : part.stop].view(part.shape).copy_(part.spread(self.scales))
        self.soft.copy_(self._weight())

    def solved(self) -> dict[str, QuantizedLayer]:
        """Return the layers with their rounding decided, and their scales."""
        if self.rounding == FIXED:
            levels = self.base
        else:
            nearest = self.base + (self.v >= 0) if self.rounding == "sigmoid" else (self.base + self.v).round()
            levels = nearest.clamp(self.low, self.high)
        result = {}
        for node, part in self.parts.items():
            layer = self.layers[node].layer
            zero = layer.qparams.broadcast_to(layer.codes.ndim)[1]
            own = levels[part.start : part.stop].view(part.shape).cpu().numpy().astype(np.int32) + zero
            qparams = layer.qparams
            if self.train_scale and not qparams.power_of_two:
                scale = self.scales[part.first_scale : part.first_scale + part.num_scales].cpu().numpy()
                qparams = dataclasses.replace(qparams, scale=scale.reshape(qparams.scale.shape).copy())
            result[node] = dataclasses.replace(layer, codes=own.astype(np.int32), qparams=qparams)
        return result

    def begun(self) -> dict[str, NDArray[np.float32]]:
        """Return the state that a later phase resumes, by name of the node.

        It is V, shaped like the weight; where scales are trained, V and the base, stacked.
        """
        if self.rounding == FIXED:
            return {}
        kept = torch.stack([self.v, self.base]) if self.train_scale else self.v[None]
        shaped = {node: kept[:, part.start : part.stop].view(-1, *part.shape) for node, part in self.parts.items()}
        return {node: (own if self.train_scale else own[0]).cpu().numpy().copy() for node, own in shaped.items()}
