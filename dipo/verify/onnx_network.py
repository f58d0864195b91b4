"""The grids that an ONNX file gives to its tensors."""

from __future__ import annotations

from collections.abc import Iterator, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from dipo.graph import operators
from dipo.graph.input_axes import InputAxes, Shape, find_input_axes
from dipo.graph.operators import Kind
from dipo.verify.verdict import Refused

_OWN_KERNELS = operators.names(lambda operator: operator.kind is Kind.QUANTIZED and not operator.domain) & {
    operator.qoperator for operator in operators.OPERATORS.values()
}
"""ONNX's own integer operators, which list their output's grid after those of data and weight."""


@dataclass(frozen=True, eq=False)
class Grid:
    """One tensor's grid, `x = (code - zero_point) * scale`."""

    name: str
    """The tensor that is quantized; of a weight, its codes."""
    node: str
    """The node that has the grid among its inputs."""
    scale: NDArray[Any]
    zero_point: NDArray[Any]
    output: str
    """The node's first output."""
    stored: bool
    """Whether the codes are part of the file."""

    @property
    def limits(self) -> tuple[int, int]:
        """Smallest and largest code of the type."""
        name = self.zero_point.dtype.name  # such as uint8 or, of onnx's own types, int4
        bits = int("".join(filter(str.isdigit, name)))
        low = 0 if name.startswith("u") else -(1 << (bits - 1))
        return low, low + (1 << bits) - 1


@dataclass(frozen=True)
class Network:
    """A model file: its graph, and its constants."""

    model: onnx.ModelProto
    folder: Path

    @staticmethod
    def read(file: Path) -> Network:
        """Read the model of a file; external tensors are read when they are asked for.

        Raises:
            Refused: It is missing, or no ONNX.
        """
        from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

        try:
            return Network(onnx.load(file, load_external_data=False), file.parent)
        except (OSError, DecodeError) as error:
            raise Refused(f"{file.name} beside it cannot be read ({error})") from error

    def constants(self) -> dict[str, onnx.TensorProto]:
        """Return the initializers and the values of Constant nodes, by name."""
        found = {tensor.name: tensor for tensor in self.model.graph.initializer}
        for node in self.model.graph.node:
            if node.op_type == "Constant":
                found |= {name: each.t for name in node.output for each in node.attribute if each.name == "value"}
        return found

    def array(self, tensor: onnx.TensorProto) -> NDArray[Any]:
        """Return a constant as an array."""
        array: NDArray[Any] = onnx.numpy_helper.to_array(tensor, base_dir=str(self.folder))
        return array

    def nodes(self) -> dict[str, onnx.NodeProto]:
        """Return the nodes by name."""
        return {node.name: node for node in self.model.graph.node}

    def values(self) -> set[str]:
        """Return the names of all values and constants."""
        graph = self.model.graph
        made = {name for node in graph.node for name in node.output}
        return made | {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}

    def producers(self) -> dict[str, onnx.NodeProto]:
        """Return the nodes by name of their outputs."""
        return {name: node for node in self.model.graph.node for name in node.output}

    def inputs(self) -> list[onnx.ValueInfoProto]:
        """Return the inputs without the constants, which old files list among them."""
        constants = {tensor.name for tensor in self.model.graph.initializer}
        return [value for value in self.model.graph.input if value.name not in constants]

    def batch(self) -> int | None:
        """Return the number of samples of a fixed batch; None where it is free."""
        axes = self.input_axes()
        sizes = {
            value.type.tensor_type.shape.dim[axis].dim_value
            for value in self.inputs()
            if (axis := axes[value.name]) is not None
        }
        return sizes.pop() or None if len(sizes) == 1 else None

    def input_axes(self) -> InputAxes:
        """Return the axis of the samples of each input."""
        return find_input_axes({value.name: declared_shape(value) for value in self.inputs()})

    def is_static(self) -> bool:
        """Return whether all sizes of all inputs are fixed."""
        dims = (dim for value in self.inputs() for dim in value.type.tensor_type.shape.dim)
        return all(dim.HasField("dim_value") for dim in dims)

    def _computed_from_constants(self) -> set[str]:
        """Return the names of constants, and of values computed from them alone without a QuantizeLinear."""
        found = set(self.constants())
        for node in self.model.graph.node:
            if node.op_type != "QuantizeLinear" and all(name in found for name in node.input if name):
                found.update(node.output)
        return found

    def grids(self) -> Iterator[Grid]:
        """Yield the grids of QuantizeLinear, of DequantizeLinear of stored codes, and of integer operators."""
        constants, stored_codes = self.constants(), self._computed_from_constants()
        for node in self.model.graph.node:
            if node.op_type == "QuantizeLinear":
                places = [(0, 1, 2, False)]
            elif node.op_type == "DequantizeLinear":
                places = [(0, 1, 2, True)] if node.input[0] in stored_codes else []
            elif node.op_type in _OWN_KERNELS and not node.domain:
                places = [(3, 4, 5, True), (-1, 6, 7, False)]
            else:
                continue
            for of, scale, zero, stored in places:
                if node.input[scale] not in constants:
                    continue
                has_zero = len(node.input) > zero and node.input[zero] in constants
                yield Grid(
                    name=node.output[0] if of < 0 else node.input[of],
                    node=node.name,
                    scale=self.array(constants[node.input[scale]]),
                    zero_point=self.array(constants[node.input[zero]]) if has_zero else np.zeros((), np.uint8),
                    output=node.output[0],
                    stored=stored,
                )


def is_inside_kernel(model: onnx.ModelProto, name: str, known: Set[str]) -> bool:
    """Return whether a consumer that does not know a value has all that is computed from it.

    It then computes several nodes in one kernel, such as Sigmoid and Mul, or MatMul and the Add of its bias.

    Args:
        model: The network.
        name: The value.
        known: Values that the consumer has.
    """
    readers = [node for node in model.graph.node if name in node.input]
    return bool(readers) and all(output in known for node in readers for output in node.output)


def declared_shape(value: onnx.ValueInfoProto) -> Shape:
    """Return the declared shape of an input."""
    dims = value.type.tensor_type.shape.dim
    return tuple(dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None for dim in dims)
