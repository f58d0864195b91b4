"""A float network with the grids of a range file, as a target computes it that has no simulator of its own."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper, version_converter

from dipo.verify.onnx_network import Network
from dipo.verify.sessions import options, outputs_of, session_of
from dipo.verify.verdict import Probe

THREADS = 1
OPSET = 13
"""The first with QuantizeLinear's zero points of all 8-bit types and a scale for each channel."""


@dataclass(frozen=True)
class Step:
    """A tensor's 8-bit grid, `x = (code - zero_point) * scale`."""

    scale: float
    zero_point: int
    signed: bool
    readers: Set[str] | None = None
    """Nodes that read the rounded value; None: all, and the network's outputs."""


def run_on_grids(
    file: Path, steps: Mapping[str, Step], probe: Probe, *, constants: Mapping[str, NDArray[Any]] | None = None
) -> dict[str, NDArray[Any]]:
    """Run a float network with its values rounded to these grids, and return its outputs by name.

    Args:
        file: The float network.
        steps: By name of the value.
        probe: The samples that are fed.
        constants: Arrays in place of initializers of the file, by name.
    """
    model = onnx.load(file)
    for tensor in model.graph.initializer:
        if constants and tensor.name in constants:
            tensor.CopyFrom(numpy_helper.from_array(constants[tensor.name], tensor.name))
    if any(imported.domain in {"", "ai.onnx"} and imported.version < OPSET for imported in model.opset_import):
        # The float file keeps the operator set that the user's model has.
        model = version_converter.convert_version(model, OPSET)
    for name, step in steps.items():
        _round(model.graph, name, step)
    rows = Network(model, file.parent).batch()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rounded.onnx"
        onnx.save(model, path, save_as_external_data=model.ByteSize() > 1 << 30)
        return outputs_of(session_of(path, options(threads=THREADS, optimized=False)), probe.inputs, rows=rows)


def _round(graph: onnx.GraphProto, name: str, step: Step) -> None:
    """Insert a QuantizeLinear and a DequantizeLinear after a value."""
    place = next((i for i, node in enumerate(graph.node) if name in node.output), None)
    before, behind = (name, f"{name}__rounded") if place is None else (f"{name}__float", name)
    for node in graph.node:
        touched = step.readers is None or node.name in step.readers
        _rename(node.input, name, behind if touched else before)
    if place is not None:
        _rename(graph.node[place].output, name, before)
    constants: dict[str, NDArray[Any]] = {
        f"{name}__scale": np.asarray(step.scale, np.float32),
        f"{name}__zero": np.asarray(step.zero_point, np.int8 if step.signed else np.uint8),
    }
    graph.initializer.extend(numpy_helper.from_array(array, key) for key, array in constants.items())
    made = [
        helper.make_node("QuantizeLinear", [before, *constants], [f"{name}__codes"]),
        helper.make_node("DequantizeLinear", [f"{name}__codes", *constants], [behind]),
    ]
    nodes = list(graph.node)
    at = 0 if place is None else place + 1
    del graph.node[:]
    graph.node.extend([*nodes[:at], *made, *nodes[at:]])


def _rename(names: Any, old: str, new: str) -> None:
    for index, name in enumerate(names):
        if name == old:
            names[index] = new
