"""The diagonal of the Fisher information: how much the network's likelihood depends on each element of a value.

BRECQ (arXiv:2102.05426), eq. 10: the error of an output element z counts (d log p(y | x) / dz)^2, in the float network.
The expectation is over the y that the network itself expects: of logits [N, C] a class is drawn, other outputs are
taken for the means of Gaussians of unit variance. One y is drawn for each sample, from a generator of its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from dipo.algo.activation_cache import Batch, CachedActivation
from dipo.algo.collectives import Collectives
from dipo.algo.fitted_values import fitted_values
from dipo.graph.accessors import name_of
from dipo.graph.sample_axis import SampleAxes, SampleAxis
from dipo.graph.torch_module import GraphModule


def fisher_diagonals(
    model: ir.Model,
    values: Sequence[str],
    batches: Sequence[Batch],
    inputs: Callable[[Batch], Mapping[str, torch.Tensor]],
    *,
    seed: int,
    device: torch.device,
    samples: SampleAxes,
) -> dict[str, CachedActivation]:
    """Return the squared gradients of the likelihood, from one pass forward and backward over a worker's samples.

    Args:
        model: The float network.
        values: Names of the values whose elements the gradients are for.
        batches: Batches of this worker.
        inputs: Function that reads a batch.
        seed: Seed of the labels that are drawn.
        device: Device to run on.
        samples: Where the samples lie in each value.

    Returns:
        By name of the value the squared gradients, float32, in the order of a `CachedActivation`.
    """
    judged = _judged(model)
    module = GraphModule(model, outputs=judged).to(device).eval().requires_grad_(requires_grad=False)
    parts: dict[str, list[torch.Tensor]] = {name: [] for name in values}
    for batch in batches:
        seen = _tapped(module, inputs(batch), set(values), {*values, *judged})
        outputs = {name: seen[name] for name in judged if seen[name].requires_grad}
        slopes = [
            _likelihood_slope(out.detach(), samples.of(name), batch, [seed, judged.index(name)])
            for name, out in outputs.items()
        ]
        taps = [seen[name] for name in values]
        gradients = torch.autograd.grad(list(outputs.values()), taps, slopes, allow_unused=True)
        for name, tap, grad in zip(values, taps, gradients, strict=True):
            parts[name].append((torch.zeros_like(tap) if grad is None else grad).float().square())
    return {name: CachedActivation.gather(pieces, None, samples.of(name)) for name, pieces in parts.items()}


def normalised(
    diagonals: Mapping[str, CachedActivation],
    batches: Sequence[Batch],
    *,
    owners: Sequence[int],
    collectives: Collectives,
) -> dict[str, CachedActivation]:
    """Return the diagonals of a unit's outputs over their mean in all workers' samples; ones where that mean is zero.

    Args:
        diagonals: The diagonals for this worker's batches.
        batches: This worker's, in the order of the diagonals' rows.
        owners: The worker that holds each of the run's batches.
        collectives: Adds up over the workers.
    """
    sums, start = {}, 0
    for batch in batches:
        own = [capture.data[start : start + len(batch)] for capture in diagonals.values()]
        total = torch.stack([rows.sum(dtype=torch.float64) for rows in own]).sum()
        sums[batch.index] = torch.stack([total, torch.full_like(total, sum(rows.numel() for rows in own))])
        start += len(batch)
    total, count = collectives.all_reduce_ordered(sums, owners=owners)
    if float(total) == 0:
        return {name: dataclasses.replace(c, data=torch.ones_like(c.data)) for name, c in diagonals.items()}
    mean = (total / count).to(torch.float32)
    return {name: dataclasses.replace(c, data=c.data / mean) for name, c in diagonals.items()}


def _judged(model: ir.Model) -> list[str]:
    """Return the names of the values that determine the likelihood: the outputs, or the logits before their Softmax.

    For an output of integers stand the floats that it is made from.
    """
    nodes = list(model.graph)
    values = {name_of(value): value for node in nodes for value in node.outputs if value.name}
    names = fitted_values(nodes, map(name_of, model.graph.outputs))
    return list(dict.fromkeys(_before_softmax(values[name]) for name in names))


def _before_softmax(output: ir.Value) -> str:
    node = output.producer()
    if node is None or node.op_type != "Softmax" or output.shape is None or len(output.shape) != 2:
        return name_of(output)
    assert node.inputs[0] is not None
    return name_of(node.inputs[0])


def _tapped(
    module: GraphModule, values: Mapping[str, torch.Tensor], taps: set[str], kept: set[str]
) -> dict[str, torch.Tensor]:
    """Run the network and return the `kept` values; gradients begin at the first taps and flow through later ones."""
    seen: dict[str, torch.Tensor] = {}

    def hook(name: str, value: torch.Tensor) -> torch.Tensor:
        if name in taps and not value.requires_grad:
            value = value.detach().requires_grad_()
        if name in kept:
            seen[name] = value
        return value

    with torch.enable_grad():
        module(values, hook=hook)
    return seen


def _likelihood_slope(out: torch.Tensor, axis: SampleAxis, batch: Batch, seed: Sequence[int]) -> torch.Tensor:
    """Return the gradient of log p(y | x) at a network output, for the y that is drawn for each sample."""
    given = axis.by_sample(out.double().cpu().numpy())
    generators = [np.random.default_rng([*seed, sample]) for sample in range(batch.start, batch.stop)]
    if given.ndim == 2 and given.shape[1] > 1:
        probabilities = torch.from_numpy(given).softmax(1).numpy()
        slope: NDArray[np.float64] = -probabilities
        for row, generator in enumerate(generators):
            cumulated = np.cumsum(probabilities[row])
            slope[row, min(int(np.searchsorted(cumulated, generator.random())), given.shape[1] - 1)] += 1
    else:
        slope = np.stack([generator.standard_normal(given.shape[1:]) for generator in generators])
    return torch.from_numpy(axis.from_samples(slope, out.shape)).to(out)
