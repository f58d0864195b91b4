"""TIDL's quantization parameters, read by protobuf's own parser; TIDL itself comes with its vendor's SDK alone.

Every layer must be a value of `deploy.onnx`, whose range TIDL takes for what the layer makes; weights must lie on the
grid of their range, and biases be those of the network. The outputs are those of `deploy.onnx` on these ranges.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from dipo.verify.atlas import on_grid
from dipo.verify.grids import Network
from dipo.verify.messages import TIDL, read_text
from dipo.verify.simulate import Step, run_on_grids
from dipo.verify.verdict import Fate, Probe, Refused, State, Verdict, asking

SIGNED = 1
"""TIDL's element type."""
_CLIPS = frozenset({"Relu", "Clip"})


def check(file: Path, probe: Probe) -> Verdict:
    """Parse the parameters, look up their layers, and run them.

    Raises:
        Refused: The file is none of TIDL's, counts its layers wrongly, or `deploy.onnx` cannot be run.
    """
    content = read_text(file, TIDL)
    if content.num_layers != len(content.layers):
        raise Refused(f"num_layers is {content.num_layers}, and {len(content.layers)} follow")
    model_file = file.with_name("deploy.onnx")
    network = Network.read(model_file)
    producers, values = network.producers(), network.values()
    tensors: list[Fate] = []
    steps: dict[str, Step] = {}
    for layer in content.layers:
        if layer.layer_name not in values:
            tensors.append(Fate(layer.layer_name, State.IGNORED, "no value of deploy.onnx has this name"))
            continue
        output = layer.outputs[0]
        steps[layer.layer_name] = Step(1 / output.scale[0], 0, signed=output.element_type == SIGNED)
        tensors.append(Fate(layer.layer_name, State.ACCEPTED))
        tensors += _parameters(network, layer, _layer_of(layer.layer_name, producers))
    with asking():
        outputs = run_on_grids(model_file, steps, probe)
    return Verdict(f"protobuf {version('protobuf')}, for TIDL", file, tensors, probe.error_of(outputs))


def _layer_of(name: str, producers: Mapping[str, onnx.NodeProto]) -> onnx.NodeProto | None:
    """The node that makes a value, before the activation functions that it is fused with."""
    node = producers.get(name)
    while node is not None and node.op_type in _CLIPS and node.input[0] in producers:
        node = producers[node.input[0]]
    return node


def _parameters(network: Network, layer: Any, node: onnx.NodeProto | None) -> Iterator[Fate]:
    names = [] if node is None else list(node.input)
    constants = network.constants()
    for index, found in ((1, layer.weights), (2, layer.bias)):
        if not found:
            continue
        if len(names) <= index or names[index] not in constants:
            yield Fate(f"{layer.layer_name} ({'weights' if index == 1 else 'bias'})", State.IGNORED, "no such constant")
            continue
        array = network.array(constants[names[index]])
        if index == 1:
            kept = on_grid(array.astype(np.float64) * found[0].scale[0])
        else:
            kept = array.size == len(found[0].value) and bool(np.allclose(array, found[0].value, rtol=1e-6, atol=0))
        yield Fate(
            names[index], State.ACCEPTED if kept else State.RECOMPUTED, "" if kept else "not what is in deploy.onnx"
        )
