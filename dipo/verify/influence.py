"""Whether a consumer computes with a grid, told by what the file computes without it.

A consumer that moves, merges or recomputes a value in a kernel names it nowhere, as one that drops its grid. Their
outputs differ: those of the first are nearer to the file's, those of the other to the file's without the grid.
"""

from __future__ import annotations

import numpy as np
import onnx

from dipo.verify.onnx_network import Grid, Network
from dipo.verify.sessions import options, outputs_of, session_of_model
from dipo.verify.verdict import Arrays, Probe

ROUNDING = 1e-11
"""Largest relative square distance of outputs that single precision alone sets apart (110 dB)."""
THREADS = 1


def reason_kept(network: Network, grid: Grid, *, probe: Probe, outputs: Arrays) -> str | None:
    """Return how outputs show that the grid of a QuantizeLinear is kept; None where they do not.

    Args:
        network: The file that the consumer computes.
        grid: A grid of it.
        probe: Samples, and the outputs of the file on them.
        outputs: The consumer's outputs on the samples.
    """
    changed = _without(network, grid)
    if changed is None or not probe.outputs:
        return None
    session = session_of_model(changed, options(threads=THREADS, optimized=False), folder=network.folder)
    without = outputs_of(session, probe.inputs, rows=network.batch())
    if _distance(without, probe.outputs, of=probe.outputs) <= ROUNDING:
        return "what it is computed from has its codes: the file computes the same without it"
    near = _distance(outputs, probe.outputs, of=probe.outputs)
    if near < _distance(outputs, without, of=probe.outputs):
        return "moved or merged in a kernel: the outputs are those of the file with it"
    return None


def _without(network: Network, grid: Grid) -> onnx.ModelProto | None:
    """Return the model in which a value passes its QuantizeLinear; None where integers are read from it."""
    model = onnx.ModelProto()
    model.CopyFrom(network.model)
    nodes = model.graph.node
    readers = [node for node in nodes if grid.output in node.input]
    if grid.stored or any(node.op_type != "DequantizeLinear" for node in readers):
        return None
    if grid.output in {output.name for output in model.graph.output}:
        return None
    for node in readers:
        node.CopyFrom(onnx.helper.make_node("Identity", [grid.name], list(node.output), name=node.name))
    nodes.remove(next(node for node in nodes if grid.output in node.output))
    return model


def _distance(one: Arrays, other: Arrays, *, of: Arrays) -> float:
    """Return the sum of the outputs' square distances, each relative to the squares of the reference `of`."""
    total = 0.0
    for name, array in of.items():
        first, second, whole = (np.asarray(each, np.float64).ravel() for each in (one[name], other[name], array))
        total += float(np.square(first - second).sum() / max(np.square(whole).sum(), np.finfo(np.float64).tiny))
    return total
