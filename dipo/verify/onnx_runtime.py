"""ONNX Runtime, which reads every ONNX file: whether its optimizer keeps each tensor's grid.

The optimized graph is written out and searched for the scales of the file. What comes out is compared with the same
file without any optimization, so that the error is that of the integer kernels.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from dipo.graph import operators
from dipo.verify.onnx_network import Network
from dipo.verify.sessions import options, outputs_of, session_of
from dipo.verify.verdict import Probe, State, TensorOutcome, Verdict, asking

THREADS = 1


def check(file: Path, probe: Probe) -> Verdict:
    """Load an ONNX file, run it, and look for its grids in what ONNX Runtime computes.

    Raises:
        Refused: ONNX Runtime does not load or run it.
    """
    network = Network.read(file)
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / "optimized.onnx"
        made = options(threads=THREADS)
        made.optimized_model_filepath = str(written)
        made.add_session_config_entry("session.optimized_model_external_initializers_file_name", "optimized.data")
        with asking():
            session = session_of(file, made)
        tensors = list(_fates(network, Network.read(written)))
    with asking():
        outputs = outputs_of(session, probe.inputs, rows=network.batch())
    return Verdict(f"ONNX Runtime {ort.__version__}", file, tensors, probe.error_of(outputs))


def _fates(network: Network, optimized: Network) -> Iterator[TensorOutcome]:
    constants = optimized.constants()
    read = {name for node in optimized.model.graph.node for name in node.input if name in constants}
    held = {(array.size, array.tobytes()) for name in read if (array := optimized.array(constants[name])).size}
    biases, stored = _bias_steps(network), network.constants()

    def reads(name: str) -> bool:
        """Return whether the optimized graph reads a constant; it may have renamed it, since it merges equal ones."""
        array = network.array(stored[name])
        return name in read or (array.size, array.tobytes()) in held

    for grid in network.grids():
        if grid.output in biases and grid.name in stored and reads(grid.name):
            # The operator takes the codes, and computes their step itself.
            kept = np.allclose(np.resize(biases[grid.output], grid.scale.shape), grid.scale, rtol=1e-4, atol=0)
            why = "" if kept else "its step is not input x weight"
            yield TensorOutcome(grid.name, State.ACCEPTED if kept else State.RECOMPUTED, why)
        elif (grid.scale.size, grid.scale.tobytes()) in held:
            yield TensorOutcome(grid.name, State.ACCEPTED)
        elif grid.stored and grid.output in constants:
            yield TensorOutcome(grid.name, State.ACCEPTED, "dequantized once, while loading")
        else:
            yield TensorOutcome(grid.name, State.IGNORED, "no node of the optimized graph has its scale")
    yield from _float_biases(network, set(constants))


def _bias_steps(network: Network) -> dict[str, NDArray[Any]]:
    """Return input step x weight step of the layers whose bias is dequantized, by name of the bias."""
    producers, constants = network.producers(), network.constants()
    found = {}
    for node in network.model.graph.node:
        if not _adds_bias(node) or len(node.input) <= 2:
            continue
        made = [producers.get(name) for name in node.input[:3]]
        scales = [network.array(constants[each.input[1]]) for each in made if each is not None and _dequantizes(each)]
        if len(scales) == len(made):
            found[node.input[2]] = scales[0] * scales[1]
    return found


def _adds_bias(node: onnx.NodeProto) -> bool:
    """Return whether the node is a layer that takes a bias as its third input."""
    weight = operators.of(node).weight
    return weight is not None and weight.bias_port is not None


def _dequantizes(node: onnx.NodeProto) -> bool:
    return node.op_type == "DequantizeLinear"


def _float_biases(network: Network, kept: set[str]) -> Iterator[TensorOutcome]:
    """Yield the float biases of layers with integer weights, which ONNX Runtime rounds to int32."""
    constants, producers = network.constants(), network.producers()
    for node in network.model.graph.node:
        if not _adds_bias(node) or len(node.input) <= 2:
            continue
        bias, weight = node.input[2], producers.get(node.input[1])
        is_float = bias in constants and constants[bias].data_type == onnx.TensorProto.FLOAT
        if is_float and weight is not None and _dequantizes(weight) and bias not in kept:
            yield TensorOutcome(bias, State.RECOMPUTED, "a float bias, rounded to int32 in steps of input x weight")
