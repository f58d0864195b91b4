"""Conversion of float16, bfloat16 and double networks to float32, in which everything is worked."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import InPlacePass, PassResult

OTHER_FLOATS = frozenset({ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE})
"""The types of floats, beside float32, in which networks are stored."""
_TYPE_ATTRIBUTES = {
    "Attention": "softmax_precision",
    "Bernoulli": "dtype",
    "BlackmanWindow": "output_datatype",
    "Cast": "to",
    "EyeLike": "dtype",
    "GroupNormalization": "stash_type",
    "HammingWindow": "output_datatype",
    "HannWindow": "output_datatype",
    "LayerNormalization": "stash_type",
    "MelWeightMatrix": "output_datatype",
    "RMSNormalization": "stash_type",
    "RandomNormal": "dtype",
    "RandomNormalLike": "dtype",
    "RandomUniform": "dtype",
    "RandomUniformLike": "dtype",
    "SequenceEmpty": "dtype",
}
"""Attributes that name the type of a result, by ONNX's operators that have one."""
_KEY = "dipo.converted_types"
_LARGEST = float(np.finfo(np.float32).max)
_SMALLEST = float(np.finfo(np.float32).tiny)


class SinglePrecision(InPlacePass):
    """Let a network that holds floats of other types, or some of them, hold float32.

    1. No tensor, value, attribute or subgraph is float16, bfloat16 or double.
    2. Numbers stay, rounded where they are double; what float32 cannot hold becomes its largest or smallest number, not
       infinity or zero: 0 * -1e308 is 0 in a mask, and log(x + 1e-300) is finite.
    3. Casts among these types are Casts from float32 to float32, which `DropNoOps` removes.
    """

    def call(self, model: ir.Model) -> PassResult:
        """Convert the model, whose functions are inlined, and record the types that it held."""
        found: set[ir.DataType] = set()
        for graph in model.graphs():
            for node in graph:
                found |= _convert_attributes(node)
        for value in _values(model):
            found |= _convert_value(value)
        if found:
            model.graph.meta[_KEY] = frozenset(found)
        return PassResult(model, modified=bool(found))


def converted_types(model: ir.Model) -> frozenset[ir.DataType]:
    """Return the types of floats that the user's file holds beside float32."""
    types: frozenset[ir.DataType] = model.graph.meta.get(_KEY, frozenset())
    return types


def single(array: NDArray[Any]) -> NDArray[np.float32]:
    """Return numbers as float32; finite ones stay finite, and none but zero becomes zero."""
    with np.errstate(over="ignore", under="ignore"):
        made = np.asarray(array.astype(np.float32))
    lost = np.isinf(made) & np.isfinite(array)
    made = np.where(lost, np.copysign(np.float32(_LARGEST), made), made) if lost.any() else made
    gone = (made == 0) & (array != 0)
    return np.where(gone, np.copysign(np.float32(_SMALLEST), made), made) if gone.any() else made


def _values(model: ir.Model) -> Iterator[ir.Value]:
    for graph in model.graphs():
        yield from graph.inputs
        yield from graph.initializers.values()
        for node in graph:
            yield from node.outputs


def _convert_value(value: ir.Value) -> set[ir.DataType]:
    """Convert a value's type and its constant; return the types that it had."""
    found: set[ir.DataType] = set()
    if value.type is not None:
        value.type, found = _converted(value.type)
    tensor = value.const_value
    if tensor is not None and tensor.dtype in OTHER_FLOATS:
        found.add(tensor.dtype)
        value.const_value = _single_tensor(tensor)
    return found


def _converted(kind: ir.TypeProtocol) -> tuple[ir.TypeProtocol, set[ir.DataType]]:
    """Return a type, perhaps of a sequence, with float32 in place of other floats, and these."""
    if isinstance(kind, ir.SequenceType | ir.OptionalType):
        inner, found = _converted(kind.elem_type)
        return (type(kind)(inner), found) if found else (kind, found)
    if isinstance(kind, ir.TensorType) and kind.dtype in OTHER_FLOATS:
        return ir.TensorType(ir.DataType.FLOAT), {kind.dtype}
    return kind, set()


def _convert_attributes(node: ir.Node) -> set[ir.DataType]:
    """Convert a node's tensors and the types that it names; return the types that these had."""
    found: set[ir.DataType] = set()
    named = _TYPE_ATTRIBUTES.get(node.op_type) if node.domain == "" else None
    for attribute in list(node.attributes.values()):
        if attribute.type is ir.AttributeType.TENSOR and attribute.value.dtype in OTHER_FLOATS:
            found.add(attribute.value.dtype)
            node.attributes.add(ir.AttrTensor(attribute.name, _single_tensor(attribute.value)))
        elif attribute.name == named and attribute.value in OTHER_FLOATS:
            found.add(ir.DataType(attribute.value))
            node.attributes.add(ir.AttrInt64(attribute.name, ir.DataType.FLOAT.value))
    return found


def _single_tensor(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    return ir.tensor(single(tensor.numpy()), name=tensor.name)
