"""AMCT's record of quantization factors, read by protobuf's own parser; AMCT itself runs on its vendor's machines.

Every key must be a node of `deploy.onnx`, every scale and offset one of `quantized.onnx`, and every scale of a weight
must give its codes again. The outputs are those of `deploy.onnx` with the recorded inputs rounded as the record says.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from dipo.export.range_file import Claim, numbers
from dipo.verify.compare import Comparison
from dipo.verify.messages import ATLAS, read_text
from dipo.verify.simulate import Step, run_on_grids
from dipo.verify.verdict import Fate, Probe, State, Verdict, asking

ON_GRID = 1e-2
"""How far from a code a number may be, in steps: the record's scales have single precision."""


def check(file: Path, probe: Probe) -> Verdict:
    """Parse a record, look up its layers, and run them.

    Raises:
        Refused: The file is no record, contradicts `quantized.onnx`, or `deploy.onnx` cannot be run.
    """
    record = read_text(file, ATLAS)
    model_file = file.with_name("deploy.onnx")
    beside = Comparison.beside(file)
    network = beside.deployed
    nodes, constants = network.nodes(), network.constants()
    beside.require((claim for entry in record.record for claim in _claims(entry, nodes)), file)
    tensors: list[Fate] = []
    steps: dict[str, Step] = {}
    for entry in record.record:
        node = nodes.get(entry.key)
        if node is None:
            tensors.append(Fate(entry.key, State.IGNORED, "no node of deploy.onnx has this name"))
            continue
        tensors += _fates(node, entry.value, {name: network.array(constants[name]) for name in node.input[1:2]})
        known = steps.get(node.input[0])
        readers = {node.name} | set((known.readers if known else None) or ())
        steps[node.input[0]] = Step(entry.value.scale_d, entry.value.offset_d, signed=True, readers=readers)
    with asking():
        outputs = run_on_grids(model_file, steps, probe)
    return Verdict(f"protobuf {version('protobuf')}, for AMCT", file, tensors, probe.error_of(outputs))


def _claims(entry: Any, nodes: Mapping[str, onnx.NodeProto]) -> Iterator[Claim]:
    if entry.key not in nodes:
        return
    value, read = entry.value, nodes[entry.key].input
    ends = {end: numbers((code - value.offset_d) * value.scale_d) for end, code in (("low", -128), ("high", 127))}
    yield Claim(f"{entry.key} (scale_d, offset_d)", read[0], scale=numbers(value.scale_d), **ends)
    if value.scale_w and len(read) > 1:
        yield Claim(f"{entry.key} (scale_w)", read[1], scale=numbers(value.scale_w))


def _fates(node: onnx.NodeProto, value: Any, weights: Mapping[str, NDArray[Any]]) -> Iterator[Fate]:
    if value.scale_d > 0 and -128 <= value.offset_d <= 127:
        yield Fate(node.input[0], State.ACCEPTED)
    else:
        yield Fate(
            node.input[0], State.IGNORED, f"scale_d {value.scale_d:g}, offset_d {value.offset_d} are no int8 grid"
        )
    for name, weight in weights.items():
        scales = np.asarray(value.scale_w, np.float64)
        if scales.size not in {1, weight.shape[0]}:
            yield Fate(name, State.IGNORED, f"{scales.size} scales for {weight.shape[0]} channels")
            continue
        codes = weight / scales.reshape(-1, *[1] * (weight.ndim - 1))
        if on_grid(codes):
            yield Fate(name, State.ACCEPTED)
        else:
            yield Fate(name, State.RECOMPUTED, "lies off the grid and is rounded anew")


def on_grid(codes: NDArray[Any]) -> bool:
    """Whether numbers are int8 codes, but for what single precision loses."""
    return bool(np.abs(codes - np.rint(codes)).max() <= ON_GRID and np.abs(codes).max() <= 128 + ON_GRID)
