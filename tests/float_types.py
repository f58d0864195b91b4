"""Networks of other floats than float32, made from one in float32."""

from __future__ import annotations

import onnx
import onnx_ir as ir
from networks import network, tiny_cnn

MIXED = """(float[N,3,8,8] image) => (float[N,4,4,4] scores) {
  [stem] a = Conv(image, w1)
  [down] b = Cast<to=10>(a)
  [inner] c = Conv(b, w2)
  [relu] d = Relu(c)
  [up] e = Cast<to=1>(d)
  [head] scores = Conv(e, w3)
}"""
WEIGHTS = """(float[N,3,8,8] image) => (float[N,4,6,6] scores) {
  [up] w = Cast<to=1>(w1)
  [stem] a = Conv(image, w)
  [relu] b = Relu(a)
  [head] scores = Conv(b, w2)
}"""


def in_type(model: onnx.ModelProto, dtype: ir.DataType, *, ends: bool = True) -> onnx.ModelProto:
    """Return a model with all its floats in another type.

    Args:
        model: One whose floats are float32.
        dtype: The type.
        ends: Whether inputs and outputs have it too; else Casts stand there, as converters put them.
    """
    made = ir.from_proto(model)
    for value in made.graph.initializers.values():
        if value.const_value.dtype == ir.DataType.FLOAT:
            value.const_value = ir.tensor(value.const_value.numpy().astype(dtype.numpy()), name=value.name)
            value.type = ir.TensorType(dtype)
    for value in (*made.graph.inputs, *made.graph.outputs) if ends else ():
        value.type = ir.TensorType(dtype)
    if not ends:
        (value,), (output,) = made.graph.inputs, made.graph.outputs
        down = ir.node("Cast", [value], {"to": dtype.value}, name="down")
        ir.convenience.replace_all_uses_with(value, down.outputs[0])
        down.replace_input_with(0, value)
        made.graph.insert_before(made.graph[0], down)
        name, output.name = output.name, "narrow"
        up = ir.node("Cast", [output], {"to": ir.DataType.FLOAT.value}, name="up")
        up.outputs[0].name, up.outputs[0].type, up.outputs[0].shape = (
            name,
            ir.TensorType(ir.DataType.FLOAT),
            output.shape,
        )
        output.type = ir.TensorType(dtype)
        made.graph.append(up)
        made.graph.outputs[0] = up.outputs[0]
    return ir.to_proto(made)


def mixed() -> onnx.ModelProto:
    """A block in float16 between Casts."""
    made = ir.from_proto(network(MIXED, w1=(4, 3, 3, 3), w2=(4, 4, 3, 3), w3=(4, 4, 1, 1)))
    return _with_half(made, "w2")


def half_weights() -> onnx.ModelProto:
    """Weights stored in float16, each behind a Cast, in a network of float32."""
    return _with_half(ir.from_proto(network(WEIGHTS, w1=(4, 3, 3, 3), w2=(4, 4, 1, 1))), "w1")


def _with_half(made: ir.Model, name: str) -> onnx.ModelProto:
    value = made.graph.initializers[name]
    value.const_value = ir.tensor(value.const_value.numpy().astype("float16"), name=name)
    value.type = ir.TensorType(ir.DataType.FLOAT16)
    return ir.to_proto(made)


NETWORKS = {
    "float16": lambda: in_type(tiny_cnn(), ir.DataType.FLOAT16),
    "float16, a fixed batch": lambda: in_type(tiny_cnn(batch=2), ir.DataType.FLOAT16),
    "bfloat16": lambda: in_type(tiny_cnn(), ir.DataType.BFLOAT16),
    "double": lambda: in_type(tiny_cnn(), ir.DataType.DOUBLE),
    "float16 between casts": lambda: in_type(tiny_cnn(), ir.DataType.FLOAT16, ends=False),
    "a block of float16": mixed,
    "weights of float16": half_weights,
}
