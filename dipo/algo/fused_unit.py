"""A unit's nodes as a differentiable program with fused quantizers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir
import torch

from dipo.graph import operators
from dipo.graph.accessors import name_of, sole_consumer
from dipo.graph.limits import clip_limits
from dipo.graph.operators import Operand
from dipo.graph.ops.reader import TorchOp
from dipo.graph.program import bind_all
from dipo.quant.kernels import Kernels
from dipo.quant.rounding import flat, random_words, unflat


@dataclass(frozen=True)
class Operation:
    """A node that runs as a torch function of its own."""

    function: TorchOp
    inputs: tuple[str | None, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class FusedFakeQuant:
    """A quantized value with the residual sum and the activation function before it: one kernel."""

    value: str
    inputs: tuple[str, ...]
    """Name of the value that is read, or of the two that are added."""
    low: float
    high: float


def fuse(model: ir.Model, nodes: Sequence[ir.Node], quantized: set[str]) -> list[Operation | FusedFakeQuant]:
    """Return the unit's operations, activation functions and residual sums fused into the quantizers after them."""
    sites: dict[ir.Node, FusedFakeQuant] = {}
    absorbed: set[ir.Node] = set()
    for node in nodes:
        value = node.outputs[0]
        if value.name not in quantized:
            continue
        chain = [node] if _bounds(node) is not None else []
        low, high = (_bounds(node) if chain else None) or (-math.inf, math.inf)
        source = node.inputs[0] if chain else value
        assert source is not None
        above = source.producer()
        inputs: tuple[str, ...] = (name_of(source),)
        if (
            above is not None
            and above in nodes
            and _is_sum(above)
            and (above is node or sole_consumer(source) is not None)
        ):
            chain = [*chain, above]
            inputs = tuple(name_of(v) for v in above.inputs if v is not None)
        if chain and not (source is not value and source.name in quantized):
            sites[node] = FusedFakeQuant(name_of(value), inputs, low, high)
            absorbed.update(chain)
    program: list[Operation | FusedFakeQuant] = []
    for bound in bind_all(model, nodes, wanted=quantized):
        node = bound.nodes[0]
        if node in sites:
            program.append(sites[node])
            continue
        if node in absorbed:
            continue
        program.append(Operation(bound.function, bound.inputs, bound.outputs))
        program.extend(
            FusedFakeQuant(name, (name,), -math.inf, math.inf) for name in bound.outputs if name in quantized
        )
    return program


def _bounds(node: ir.Node) -> tuple[float, float] | None:
    """Return the interval that a Relu or a Clip clips to; None for any other node."""
    limits = clip_limits(node)
    return None if limits is None else (limits.low, limits.high)


def _is_sum(node: ir.Node) -> bool:
    if operators.of(node).operand is not Operand.SUMMAND or any(
        v is None or v.const_value is not None for v in node.inputs
    ):
        return False
    shapes = [v.shape for v in node.inputs if v is not None]
    return shapes[0] is not None and shapes[1] is not None and tuple(shapes[0].dims[1:]) == tuple(shapes[1].dims[1:])


@dataclass(frozen=True, eq=False)
class Quantizer:
    """Quantization of one value while its unit is trained. All tensors have no dimensions."""

    scale: torch.Tensor
    """Scale of the codes; a leaf that requires a gradient."""
    qlow: torch.Tensor
    """Smallest code less the zero point."""
    qhigh: torch.Tensor
    q_prob: float
    """Probability that an element is quantized; the others keep their float value."""


class _QuantizeFunction(torch.autograd.Function):
    """`quantize_forward` with `quantize_backward` as its gradient."""

    @staticmethod
    def forward(
        ctx: Any, kernels: Kernels, x: torch.Tensor, other: torch.Tensor | None, *constants: torch.Tensor | None
    ) -> torch.Tensor:
        ctx.kernels, ctx.shape_of, ctx.two = kernels, x, other is not None
        ctx.save_for_backward(x, other, *constants)
        result = kernels.quantize_forward(flat(x), None if other is None else flat(other), *constants)
        return unflat(result, x.shape)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, other, *constants = ctx.saved_tensors
        grad_x, grad_scale = ctx.kernels.quantize_backward(
            flat(grad), flat(x), None if other is None else flat(other), *constants
        )
        grad_x = unflat(grad_x, x.shape)
        return None, grad_x, None if other is None else grad_x, None, None, grad_scale, None, None, None


@dataclass
class FusedUnit:
    """A unit that runs forward with gradients."""

    steps: list[Operation | FusedFakeQuant]
    constants: dict[str, torch.Tensor]
    """Constants by name; weights and biases under training are leaves."""
    quantizers: dict[str, Quantizer]
    kernels: Kernels
    bounds: dict[float, torch.Tensor] = field(default_factory=dict)

    def run(
        self, inputs: Mapping[str, torch.Tensor], outputs: Sequence[str], generator: torch.Generator
    ) -> list[torch.Tensor]:
        """Run the unit.

        Args:
            inputs: Values that the unit's nodes read from outside, by name; quantized already where they are to be.
            outputs: Names of the values to return, each after its quantizer.
            generator: Draws the masks of QDrop.
        """
        values = {**self.constants, **inputs}
        for step in self.steps:
            if isinstance(step, FusedFakeQuant):
                values[step.value] = self._quantize(step, values, generator)
                continue
            made = step.function(*(None if name is None else values[name] for name in step.inputs))
            values.update(zip(step.outputs, made if isinstance(made, tuple) else (made,), strict=False))
        return [values[name] for name in outputs]

    def _quantize(
        self, site: FusedFakeQuant, values: Mapping[str, torch.Tensor], generator: torch.Generator
    ) -> torch.Tensor:
        quantizer = self.quantizers[site.value]
        x, *others = (values[name] for name in site.inputs)
        if others and others[0].shape != x.shape:
            # The kernels take flat tensors, which cannot be broadcast.
            x, others = x + others.pop(), []
        words = random_words(x.numel(), generator, quantizer.q_prob) if quantizer.q_prob < 1 else None
        result: torch.Tensor = _QuantizeFunction.apply(  # type: ignore[no-untyped-call]
            self.kernels, x, others[0] if others else None, self._bound(site.low, x), self._bound(site.high, x),
            quantizer.scale, quantizer.qlow, quantizer.qhigh, words,
        )  # fmt: skip
        return result

    def _bound(self, bound: float, like: torch.Tensor) -> torch.Tensor:
        if bound not in self.bounds:
            self.bounds[bound] = torch.tensor(bound, device=like.device)
        return self.bounds[bound]
