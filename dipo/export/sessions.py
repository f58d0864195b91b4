"""Sessions of ONNX Runtime that take and give float32 where a file's inputs and outputs are floats of other types."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

_HELD: dict[str, np.dtype[Any]] = {"tensor(float16)": np.dtype(np.float16), "tensor(double)": np.dtype(np.float64)}
"""Types of floats, as ONNX Runtime names them, of which it takes and gives arrays."""
_NOT_HELD = "tensor(bfloat16)"
"""The type that numpy lacks, so that no array can be given."""
_EXTERNAL = "session.model_external_initializers_file_folder_path"


def open_session(
    path: Path, options: ort.SessionOptions, *, outputs: Sequence[str] | None = None, **how: Any
) -> ort.InferenceSession:
    """Open a session on a file.

    Inputs and outputs of a type that ONNX Runtime's Python interface does not take, bfloat16, are float32 in the
    session: it is that of a copy of the file, with a Cast at each.

    Args:
        path: The ONNX file.
        options: Options of the session.
        outputs: Names of the values to return, of which some may lie within the network: those that the file rounds are
            returned as rounded. None: its outputs.
        how: Further arguments of `onnxruntime.InferenceSession`.
    """
    session = ort.InferenceSession(str(path), options, **how)
    inner = sorted(set(outputs or ()) - {value.name for value in session.get_outputs()})
    if not inner and not any(value.type == _NOT_HELD for value in (*session.get_inputs(), *session.get_outputs())):
        return session
    model = onnx.load(path, load_external_data=False)
    cast_ends(model.graph)
    _name_rounded(model.graph, inner)
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in inner)
    options.add_session_config_entry(_EXTERNAL, str(path.parent.absolute()))
    return ort.InferenceSession(model.SerializeToString(), options, **how)


def _name_rounded(graph: onnx.GraphProto, names: Sequence[str]) -> None:
    """Give the names of values to what a QuantizeLinear and a DequantizeLinear make of them; in place."""
    codes = {node.input[0]: node.output[0] for node in graph.node if node.op_type == "QuantizeLinear"}
    numbers = {node.input[0]: node.output[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    rounded = {name: numbers[codes[name]] for name in names if codes.get(name) in numbers}
    before = {name: f"{name}.unrounded" for name in rounded}
    for node in graph.node:
        for values in (node.input, node.output):
            values[:] = [before.get(name, name) for name in values]
    graph.node.extend(onnx.helper.make_node("Identity", [number], [name]) for name, number in rounded.items())


def run_session(session: Any, names: Sequence[str], inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Return outputs by name, floats as float32.

    Args:
        session: A session of `open_session`, or another with its methods.
        names: The outputs.
        inputs: By name; floats of any type, which are rounded to that of the file.
    """
    types = {value.name: _HELD.get(value.type) for value in session.get_inputs()}
    feeds = {name: array if (own := types.get(name)) is None else array.astype(own) for name, array in inputs.items()}
    return {name: _single(array) for name, array in zip(names, session.run(list(names), feeds), strict=True)}


def _single(output: Any) -> Any:
    """Return an output that holds other floats as float32; anything else, such as a sequence, as it is."""
    if isinstance(output, np.ndarray) and output.dtype in _HELD.values():
        with np.errstate(over="ignore"):
            return output.astype(np.float32)
    return output


def cast_ends(graph: onnx.GraphProto) -> None:
    """Make the graph's inputs and outputs of bfloat16 float32, in place, with a Cast at each; their names stay."""
    bfloat16, single = onnx.TensorProto.BFLOAT16, onnx.TensorProto.FLOAT
    constants = {tensor.name for tensor in graph.initializer}
    before, behind = [], []
    for value in (*graph.input, *graph.output):
        kind = value.type.tensor_type
        if kind.elem_type != bfloat16 or value.name in constants:
            continue
        kind.elem_type = single
        held = f"{value.name}__bfloat16"
        _rename(graph, value.name, held)
        if value in graph.input:
            before.append(onnx.helper.make_node("Cast", [value.name], [held], to=bfloat16))
        else:
            behind.append(onnx.helper.make_node("Cast", [held], [value.name], to=single))
    nodes = [*before, *graph.node, *behind]
    del graph.node[:]
    graph.node.extend(nodes)


def _rename(graph: onnx.GraphProto, old: str, new: str) -> None:
    """Rename a value in all nodes, those of subgraphs included."""
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [new if name == old else name for name in names]
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                _rename(inner, old, new)
