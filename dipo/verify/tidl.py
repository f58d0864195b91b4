"""TIDL's quantization parameters, read by protobuf's own parser; TIDL itself comes with its vendor's SDK alone.

Every layer must be a value of `deploy.onnx`, whose range TIDL takes for what the layer makes; weights must lie on the
grid of their range, and biases be those of the network. TIDL reads the ranges and the biases' values alone, so the
outputs are those of `deploy.onnx` with these; no range may contradict the scale beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from dipo.export.protobuf_text import parse
from dipo.export.target import DEPLOYED
from dipo.export.targets.ti import PARAMETERS, layer_of
from dipo.verify.atlas import on_grid
from dipo.verify.compare import STEP
from dipo.verify.onnx_network import Network
from dipo.verify.simulate import Step, run_on_grids
from dipo.verify.verdict import Probe, Refused, State, TensorOutcome, Verdict, asking

BIAS = 1e-6
"""Largest relative difference of a bias's values from the network's."""


def check(file: Path, probe: Probe) -> Verdict:
    """Parse the parameters, look up their layers, and run them.

    Raises:
        Refused: The file is none of TIDL's, counts its layers wrongly, contradicts itself, or `deploy.onnx` cannot be
            run.
    """
    with asking():
        content = parse(file.read_text(encoding="utf-8"), PARAMETERS)
    if content.num_layers != len(content.layers):
        raise Refused(f"num_layers is {content.num_layers}, and {len(content.layers)} follow")
    network = Network.read(file.with_name(DEPLOYED.name))
    producers, values = network.producers(), network.values()
    tensors: list[TensorOutcome] = []
    known: list[Layer] = []
    for layer in content.layers:
        if layer.layer_name in values:
            known.append(_read(layer, layer_of(layer.layer_name, producers), network))
        else:
            tensors.append(TensorOutcome(layer.layer_name, State.IGNORED, "no value of deploy.onnx has this name"))
    tensors += [fate for layer in known for fate in layer.fates]
    biases = {name: array for layer in known for name, array in layer.biases.items()}
    with asking():
        steps = {layer.name: layer.step for layer in known}
        outputs = run_on_grids(network.folder / DEPLOYED.name, steps, probe, constants=biases)
    return Verdict(f"protobuf {version('protobuf')}, for TIDL", file, tensors, probe.error_of(outputs))


@dataclass(frozen=True)
class Layer:
    """A layer of the file: its output's grid, its tensors' outcomes and its bias."""

    name: str
    step: Step
    fates: Sequence[TensorOutcome]
    biases: Mapping[str, NDArray[np.float32]]


def _read(layer: Any, node: onnx.NodeProto | None, network: Network) -> Layer:
    """Check a layer's tensors against the network.

    Raises:
        Refused: The layer's numbers contradict each other, or its bias is not the network's.
    """
    if not layer.outputs:
        raise Refused(f"layer {layer.layer_name!r} has no outputs")
    output = layer.outputs[0]
    step = Step(_step(output, layer.layer_name), 0, signed=output.min < 0)
    fates, biases = [TensorOutcome(layer.layer_name, State.ACCEPTED)], {}
    constants = network.constants()
    for index, (what, found) in enumerate((("weights", layer.weights), ("bias", layer.bias)), 1):
        name = node.input[index] if node is not None and len(node.input) > index else None
        if not found:
            continue
        if name not in constants:
            fates.append(TensorOutcome(f"{layer.layer_name} ({what})", State.IGNORED, "no such constant"))
            continue
        array = network.array(constants[name])
        if index == 1:
            kept = on_grid(array.astype(np.float64) / _step(found[0], name))
        else:
            biases[name] = _bias(array, found[0], name)
            kept = True
        why = "" if kept else "not what is in deploy.onnx"
        fates.append(TensorOutcome(name, State.ACCEPTED if kept else State.RECOMPUTED, why))
    return Layer(layer.layer_name, step, fates, biases)


def _step(tensor: Any, name: str) -> float:
    """Return a code's step, as TIDL derives it from the range alone.

    Raises:
        Refused: The range is none, or the type or the scale beside it are those of another one.
    """
    if not (np.isfinite([tensor.min, tensor.max]).all() and max(tensor.max, 0) > tensor.min):
        raise Refused(f"{name!r} has a range from {tensor.min:.6g} to {tensor.max:.6g}")
    signed = tensor.min < 0
    step = float(max(tensor.max, -tensor.min)) / (127 if signed else 255)
    if tensor.element_type != int(signed):
        raise Refused(f"{name!r} has element_type {tensor.element_type}, and a range from {tensor.min:.6g}")
    if not np.allclose([factor * step for factor in tensor.scale], 1, rtol=STEP, atol=0):
        raise Refused(f"{name!r} has scale {tensor.scale[0]:.6g}, and {1 / step:.6g} by its range")
    return step


def _bias(array: NDArray[Any], said: Any, name: str) -> NDArray[np.float32]:
    """Return the values of a bias.

    Raises:
        Refused: They are not those of the network, or their number and ends not theirs.
    """
    values = np.asarray(said.value, np.float32)
    if said.size != values.size or values.size != array.size:
        raise Refused(
            f"bias {name!r} has size {said.size} and {values.size} values, and {array.size} in {DEPLOYED.name}"
        )
    wrong = np.flatnonzero(~np.isclose(values, array.reshape(-1), rtol=BIAS, atol=0))
    if wrong.size:
        at = int(wrong[0])
        raise Refused(f"bias {name!r} has value {values[at]:.6g}, and {array.reshape(-1)[at]:.6g} in {DEPLOYED.name}")
    ends = [values.min(), values.max()]
    if not np.allclose([said.min, said.max], ends, rtol=BIAS, atol=0):
        raise Refused(f"bias {name!r} has a range from {said.min:.6g} to {said.max:.6g}, and its values {ends}")
    return values.reshape(array.shape)
