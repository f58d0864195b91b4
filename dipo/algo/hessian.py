"""Gram matrices of layers' inputs: H = X^T X over all samples and positions, exact whoever holds the samples.

X is put on an integer grid. Products and sums of integers are exact in float64 below 2^53, so that H depends neither
on the order of the sums nor on the number of workers, and a worker sends one matrix however many batches it holds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch

from dipo.algo.activation_cache import CachedActivation
from dipo.algo.network_pair import NetworkPair
from dipo.algo.reference_weights import target_of
from dipo.errors import UserError
from dipo.graph.accessors import name_of, node_name
from dipo.graph.one_by_one import of_one
from dipo.graph.ops.reader import TorchOp
from dipo.graph.torch_module import GraphModule
from dipo.graph.weight_layout import WeightLayout

EXACT = 2.0**53
"""Integers up to this one are float64 numbers."""
FLOAT_STEPS = 2.0**20
"""The finest grid of an input that is not quantized: this many steps from zero to its largest value."""
COLUMN_ELEMENTS = 1 << 22
"""Elements of X that are laid out at a time, 32 MiB."""
EXCHANGED_ELEMENTS = 1 << 21
"""Elements of H that are added up over the workers at a time."""


@dataclass(frozen=True)
class _Grid:
    """A grid x = integer * coarse * unit, for a cached activation's codes or floats."""

    coarse: float
    """Units in a step of the grid: a power of two."""
    unit: float
    """Unit of the numbers that `_numbers` returns: the scale of codes, 1 for floats."""


def hessian(pair: NetworkPair, node: ir.Node) -> torch.Tensor:
    """Return the Gram matrix of the next unit's layer: of its inputs in the quantized network.

    Args:
        pair: The networks, in front of the layer's unit; every worker calls at the same time.
        node: The layer.

    Returns:
        float64 [groups, D, D] with D = positions x inputs, in the order of `WeightLayout`.

    Raises:
        UserError: A MatMul broadcasts the batch dimensions of its weight.
    """
    source = name_of(next(value for value in node.inputs[:1] if value is not None))
    capture = pair.q[source]
    layout = WeightLayout.of(node, target_of(pair, node_name(node)).shape)
    function = of_one(GraphModule(pair.model, nodes=[node]).steps[0].function)
    total = len(capture.data)
    first = columns(_numbers(capture, 0, 1), layout, function, node=node)
    grid = _grid(pair, capture, total * first.shape[-1])
    chunk = max(1, COLUMN_ELEMENTS // first.numel())
    result = torch.zeros(first.shape[0], first.shape[1], first.shape[1], dtype=torch.float64, device=pair.device)
    for start in range(0, total, chunk):
        numbers = _numbers(capture, start, min(total, start + chunk)).div_(grid.coarse).round_()
        x = columns(numbers, layout, function, node=node)
        result.baddbmm_(x, x.transpose(1, 2))
    # In pieces: the workers' copies of a large matrix need not stand side by side.
    flat = result.view(-1)
    for start in range(0, len(flat), EXCHANGED_ELEMENTS):
        piece = flat[start : start + EXCHANGED_ELEMENTS]
        piece.copy_(_sum_over_workers(pair, piece.clone()))
    return result.mul_((grid.coarse * grid.unit) ** 2)


def columns(x: torch.Tensor, layout: WeightLayout, function: TorchOp, *, node: ir.Node) -> torch.Tensor:
    """Return the input elements that each output of a layer reads, as columns.

    A convolution reads through a kernel that is one at a single position and zero elsewhere, a channel at a time: so
    every attribute is obeyed.

    Args:
        x: The layer's input, float64 [samples, ...].
        layout: Layout of its weight.
        function: Torch function of the layer.
        node: The layer, for errors.

    Returns:
        [groups, D, outputs], D = positions x inputs.

    Raises:
        UserError: A MatMul broadcasts the batch dimensions of its weight.
    """
    groups = layout.groups
    if layout.operator == "Gemm":
        return x.t()[None]
    if layout.operator == "MatMul":
        lead, x = layout.shape[:-2], x if x.ndim > 1 else x[None]
        batch = np.broadcast_shapes(x.shape[:-2], lead)
        if groups > 1 and batch[len(batch) - len(lead) :] != lead:
            raise UserError(
                f"MatMul {node_name(node)!r}: its weight {layout.shape} is broadcast over {batch}, and that "
                "cannot be pruned by its error, name the layer in algo.sparsity_skip"
            )
        x = x.expand(*batch, *x.shape[-2:]).reshape(-1, groups, *x.shape[-2:])
        return x.permute(1, 3, 0, 2).reshape(groups, x.shape[3], -1)
    samples, channels, *sizes = x.shape
    kernel = layout.shape[2:]
    positions, inputs = math.prod(kernel), channels // groups
    one_hot = torch.eye(positions, dtype=x.dtype, device=x.device).view(positions, 1, *kernel)
    # Weights are [outputs, 1, kernel], but [groups, positions, kernel] where the convolution is transposed.
    one_hot = one_hot.repeat(groups, *[1] * (one_hot.ndim - 1))
    if layout.operator == "ConvTranspose":
        one_hot = one_hot.view(groups, positions, *kernel)
    singly = x.view(samples, groups, inputs, *sizes).transpose(1, 2).reshape(samples * inputs, groups, *sizes)
    read = function(singly, one_hot, None)
    assert isinstance(read, torch.Tensor)
    parts = read.reshape(samples, inputs, groups, positions, -1).permute(2, 3, 1, 0, 4)
    return parts.reshape(groups, positions * inputs, -1)


def _numbers(capture: CachedActivation, start: int, stop: int) -> torch.Tensor:
    """Return codes less their zero point where the value is quantized, else floats; float64 [stop - start, ...]."""
    stored = capture.data[start:stop].to(torch.float64)
    if capture.qparams is not None:
        stored = stored - capture.qparams.zero_point.double()
    return capture.view(stored).contiguous()


def _grid(pair: NetworkPair, capture: CachedActivation, num_outputs: int) -> _Grid:
    """Return the finest grid on which all workers' sums are exact.

    Args:
        pair: The networks.
        capture: The layer's input.
        num_outputs: Columns of X on this worker.
    """
    zero_point = 0.0 if capture.qparams is None else float(capture.qparams.zero_point)
    low, high = (float(extreme) for extreme in torch.aminmax(capture.data))
    mine = torch.zeros(2, max(pair.owners) + 1, dtype=torch.float64, device=pair.device)
    mine[0, _rank(pair)] = max(abs(low - zero_point), abs(high - zero_point))
    mine[1, _rank(pair)] = num_outputs
    everyone = _sum_over_workers(pair, mine)
    largest, outputs = float(everyone[0].max()), float(everyone[1].sum())
    if largest == 0:
        return _Grid(1.0, 1.0)
    finest = 2.0 ** math.ceil(math.log2(largest / FLOAT_STEPS)) if capture.qparams is None else 1.0
    # A rounded number is at most half a step above the largest.
    needed = largest / (math.sqrt(EXACT / outputs) - 0.5)
    coarse = max(finest, 2.0 ** math.ceil(math.log2(needed)))
    return _Grid(coarse, 1.0 if capture.qparams is None else float(capture.qparams.scale))


def _rank(pair: NetworkPair) -> int:
    return pair.owners[pair.batches[0].index]


def _sum_over_workers(pair: NetworkPair, mine: torch.Tensor) -> torch.Tensor:
    """Add up one tensor of each worker."""
    return pair.collectives.all_reduce_ordered({_rank(pair): mine}, owners=list(range(max(pair.owners) + 1)))
