"""AMCT's record of quantization factors, read by protobuf's own parser; AMCT itself runs on its vendor's machines.

Every key must be a node of `deploy.onnx`, and every scale of a weight must give its codes again. The outputs are those
of `deploy.onnx` with the recorded inputs rounded as the record says.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from dipo.export.protobuf_text import parse
from dipo.export.target import DEPLOYED
from dipo.export.targets.atlas import RECORD
from dipo.verify.onnx_network import Network
from dipo.verify.simulate import Step, run_on_grids
from dipo.verify.verdict import Probe, State, TensorOutcome, Verdict, asking

ON_GRID = 1e-2
"""Largest distance of a number from a code, in steps: the record's scales have single precision."""


def check(file: Path, probe: Probe) -> Verdict:
    """Parse a record, look up its layers, and run them.

    Raises:
        Refused: The file is no record, or `deploy.onnx` cannot be run.
    """
    with asking():
        record = parse(file.read_text(encoding="utf-8"), RECORD)
    model_file = file.with_name(DEPLOYED.name)
    network = Network.read(model_file)
    nodes, constants = network.nodes(), network.constants()
    tensors: list[TensorOutcome] = []
    steps: dict[str, Step] = {}
    for entry in record.record:
        node = nodes.get(entry.key)
        if node is None:
            tensors.append(TensorOutcome(entry.key, State.IGNORED, "no node of deploy.onnx has this name"))
            continue
        tensors += _fates(node, entry.value, {name: network.array(constants[name]) for name in node.input[1:2]})
        known = steps.get(node.input[0])
        readers = {node.name} | set((known.readers if known else None) or ())
        steps[node.input[0]] = Step(entry.value.scale_d, entry.value.offset_d, signed=True, readers=readers)
    with asking():
        outputs = run_on_grids(model_file, steps, probe)
    return Verdict(f"protobuf {version('protobuf')}, for AMCT", file, tensors, probe.error_of(outputs))


def _fates(node: onnx.NodeProto, value: Any, weights: Mapping[str, NDArray[Any]]) -> Iterator[TensorOutcome]:
    if value.scale_d > 0 and -128 <= value.offset_d <= 127:
        yield TensorOutcome(node.input[0], State.ACCEPTED)
    else:
        yield TensorOutcome(
            node.input[0], State.IGNORED, f"scale_d {value.scale_d:g}, offset_d {value.offset_d} are no int8 grid"
        )
    for name, weight in weights.items():
        scales = np.asarray(value.scale_w, np.float64)
        if scales.size not in {1, weight.shape[0]}:
            yield TensorOutcome(name, State.IGNORED, f"{scales.size} scales for {weight.shape[0]} channels")
            continue
        codes = weight / scales.reshape(-1, *[1] * (weight.ndim - 1))
        if on_grid(codes):
            yield TensorOutcome(name, State.ACCEPTED)
        else:
            yield TensorOutcome(name, State.RECOMPUTED, "lies off the grid and is rounded anew")


def on_grid(codes: NDArray[Any]) -> bool:
    """Return whether numbers are int8 codes, within the error of single precision."""
    return bool(np.abs(codes - np.rint(codes)).max() <= ON_GRID and np.abs(codes).max() <= 128 + ON_GRID)
