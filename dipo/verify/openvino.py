"""OpenVINO: whether it reads every QuantizeLinear as the grid that the file means, and keeps it when it compiles.

It turns each into a FakeQuantize, whose ends are compared with the file's; and its runtime model names what every
kernel was made of. A grid that it has moved or merged, such as that of a Transpose in front of a MatMul, is not named
there; the outputs tell whether it is kept.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Set
from pathlib import Path
from typing import Any

import numpy as np

from dipo.verify.influence import reason_kept
from dipo.verify.onnx_network import Grid, Network
from dipo.verify.sessions import in_rows
from dipo.verify.verdict import Probe, State, TensorOutcome, Verdict, asking, require

GET = "pip install 'dipo[verify]'"


def check(file: Path, probe: Probe) -> Verdict:
    """Read, compile and run an ONNX file on the CPU, in float32 wherever it does not compute with integers.

    Raises:
        Unavailable: OpenVINO is not installed.
        Refused: It does not read, compile or run the file.
    """
    openvino = require("openvino", get=GET)
    network = Network.read(file)
    core = openvino.Core()
    with asking():
        model = _in_float32(openvino, core.read_model(str(file)))
        compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    read = {node.get_friendly_name(): node for node in model.get_ordered_ops()}
    executed = dict(_executed(compiled.get_runtime_model()))
    names = [output.name for output in network.model.graph.output]

    def run(some: Any) -> dict[str, Any]:
        made = compiled(some)
        return {name: made[index] for index, name in enumerate(names)}

    with asking():
        outputs = in_rows(run, probe.inputs, rows=network.batch(), axes=network.input_axes())

    def reason(grid: Grid) -> str | None:
        return reason_kept(network, grid, probe=probe, outputs=outputs)

    error = probe.error_of(outputs)
    tensors = list(_fates(list(network.grids()), read, executed, reason))
    return Verdict(
        f"OpenVINO {openvino.__version__.partition('-')[0]}",
        file,
        tensors,
        error,
        notes=_layers(compiled),
    )


def _in_float32(openvino: Any, model: Any) -> Any:
    """Return the model with float32 in place of inputs and outputs of bfloat16, which numpy does not know."""
    made = openvino.preprocess.PrePostProcessor(model)
    for ports, places in ((model.inputs, made.input), (model.outputs, made.output)):
        for index, port in enumerate(ports):
            if port.element_type == openvino.Type.bf16:
                places(index).tensor().set_element_type(openvino.Type.f32)
    return made.build()


def _executed(runtime: Any) -> Iterator[tuple[str, str]]:
    """Yield the names of the nodes that each kernel was made of, with the type in which it computes."""
    for node in runtime.get_ordered_ops():
        info = node.get_rt_info()
        kind = info["runtimePrecision"].astype(str)
        for name in (node.get_friendly_name(), *info["originalLayersNames"].astype(str).split(",")):
            yield name, kind


def _layers(compiled: Any) -> list[str]:
    """Return a note of how many layers run on integers; empty where there are no layers."""
    kinds = []
    for node in compiled.get_runtime_model().get_ordered_ops():
        info = node.get_rt_info()
        if info["layerType"].astype(str) in {"Convolution", "Deconvolution", "FullyConnected", "MatMul"}:
            kinds.append(info["runtimePrecision"].astype(str))
    integers = sum(kind in {"i8", "u8"} for kind in kinds)
    return [f"{integers} of {len(kinds)} layers run on integers"] if kinds else []


def _fates(
    grids: list[Grid], read: dict[str, Any], executed: dict[str, str], reason: Callable[[Grid], str | None]
) -> Iterator[TensorOutcome]:
    """Yield the outcome of every grid; `reason` says how the outputs show that a grid is kept."""
    kept = {_key(grid) for grid in grids if not grid.stored and _runs(grid.node, executed.keys())}
    for grid in grids:
        node = read.get(grid.node)
        if node is None:
            yield TensorOutcome(grid.name, State.IGNORED, f"no {grid.node!r} in what was read")
        elif grid.stored:
            kind = executed.get(grid.name)
            yield TensorOutcome(
                grid.name, State.ACCEPTED, "" if kind in {"i8", "u8"} else "dequantized once, while compiling"
            )
        elif not _same(node, grid):
            yield TensorOutcome(grid.name, State.RECOMPUTED, "its FakeQuantize has other ends")
        elif _runs(grid.node, executed.keys()):
            yield TensorOutcome(grid.name, State.ACCEPTED)
        elif _key(grid) in kept:
            yield TensorOutcome(grid.name, State.ACCEPTED, "merged with another of the same grid")
        elif (why := reason(grid)) is not None:
            yield TensorOutcome(grid.name, State.ACCEPTED, why)
        else:
            yield TensorOutcome(grid.name, State.IGNORED, "left out of the compiled model")


def _key(grid: Grid) -> tuple[bytes, ...]:
    return grid.scale.tobytes(), grid.zero_point.tobytes()


def _runs(node: str, executed: Set[str]) -> bool:
    """Return whether the node is part of a kernel; a split node has a number appended to its name."""
    pattern = re.compile(rf"{re.escape(node)}(_\d+)?")
    return any(pattern.fullmatch(name) for name in executed)


def _same(node: Any, grid: Grid) -> bool:
    """Return whether the FakeQuantize before the node has the ends of the grid."""
    source = node.input_value(0).get_node()
    if source.get_type_name() != "FakeQuantize":
        return False
    ends = [np.asarray(source.input_value(index).get_node().data, np.float64).reshape(-1) for index in (1, 2)]
    scale, zero = grid.scale.astype(np.float64), grid.zero_point.astype(np.int64)
    wanted = [((code - zero) * scale).reshape(-1) for code in grid.limits]
    tolerance = float(scale.max()) * 1e-3
    return all(np.allclose(end, want, rtol=0, atol=tolerance) for end, want in zip(ends, wanted, strict=True))
