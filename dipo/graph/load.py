"""Reading an ONNX file and bringing it to the form that everything else relies on.

After `load`:
  1. functions are inlined, constants folded, BatchNormalization and Pad folded into the convolution beside them;
  2. every node has a unique name, a layer the one that it had in the file;
  3. every layer with weights owns them: no initializer is read by two layers;
  4. every Conv, ConvTranspose and Gemm has a bias, zero where the file had none;
  5. the first dimension of every network input is the batch and is dynamic, unless the graph depends on its fixed size.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir
from onnxscript import optimizer

from dipo.errors import UserError

LAYER_OPERATORS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
ACTIVATION_OPERATORS = frozenset({"Relu", "Clip", "LeakyRelu", "PRelu", "HardSwish", "HardSigmoid", "Sigmoid", "Gelu"})


def load(path: Path) -> ir.Model:
    """Reads and normalises a model.

    Raises:
        UserError: The file is missing, is not a float ONNX model, or uses what dipo cannot quantize.
    """
    model = _read(path)
    _refuse_unusable(model, path)
    names = {_initializer_of(node): node.name for node in model.graph if node.op_type in LAYER_OPERATORS and node.name}
    optimizer.optimize(model)
    _make_batch_dynamic(model)
    _name_nodes(model, names)
    for node in layers_of(model):
        _own_parameters(model, node)
    return model


def opset_of(model: ir.Model) -> int:
    """Version of ONNX's default operator set."""
    return model.opset_imports[""]


def layers_of(model: ir.Model) -> Iterator[ir.Node]:
    """Nodes with weights, in topological order."""
    return (node for node in model.graph if is_layer(node))


def is_layer(node: ir.Node) -> bool:
    """Whether the node multiplies its input by a constant weight."""
    return node.op_type in LAYER_OPERATORS and node.domain == "" and weight_of(node) is not None


def weight_of(node: ir.Node) -> ir.Value | None:
    """The constant weight that the node multiplies by, if it has one."""
    if node.op_type == "Gemm" and node.attributes.get_int("transA", 0):
        return None
    value = node.inputs[1] if len(node.inputs) > 1 else None
    return value if value is not None and value.const_value is not None else None


def bias_of(node: ir.Node) -> ir.Value | None:
    """The constant bias that the node adds, if it has one."""
    value = node.inputs[2] if node.op_type != "MatMul" and len(node.inputs) > 2 else None
    return value if value is not None and value.const_value is not None else None


def weight_axis(node: ir.Node) -> int:
    """Axis of the weight that counts output channels."""
    weight = weight_of(node)
    assert weight is not None and weight.shape is not None
    if node.op_type == "ConvTranspose":
        return 1
    if node.op_type == "Gemm":
        return 0 if node.attributes.get_int("transB", 0) else 1
    return len(weight.shape) - 1 if node.op_type == "MatMul" else 0


def array_of(value: ir.Value) -> np.ndarray:
    """The constant that the value holds."""
    assert value.const_value is not None, value.name
    return value.const_value.numpy()


def name_of(value: ir.Value) -> str:
    """The value's name; after `load` every value has one."""
    assert value.name is not None
    return value.name


def node_name(node: ir.Node) -> str:
    """The node's name; after `load` every node has one."""
    assert node.name is not None
    return node.name


def _read(path: Path) -> ir.Model:
    if not path.exists():
        raise UserError(f"model.path={path}: there is no such file, give the path of an ONNX model")
    if path.is_dir():
        raise UserError(f"model.path={path}: this is a folder, give the path of an ONNX file")
    try:
        model = ir.load(path)
    except OSError as error:
        raise UserError(
            f"model.path={path}: cannot be read ({error.strerror or error}), check its permissions"
        ) from error
    except Exception as error:
        raise UserError(
            f"model.path={path}: not a complete ONNX file ({type(error).__name__}), export or download it again"
        ) from error
    if not len(model.graph):
        raise UserError(f"model.path={path}: the file holds no ONNX graph, export or download it again")
    return model


def _refuse_unusable(model: ir.Model, path: Path) -> None:
    for node in model.graph:
        if node.op_type in {"QuantizeLinear", "DequantizeLinear", "QLinearConv", "QLinearMatMul"}:
            raise UserError(
                f"model.path={path}: node {node.name!r} is {node.op_type}, the model is quantized already, give the float one"
            )
    for tensor in model.graph.initializers.values():
        data = tensor.const_value
        if isinstance(data, ir.ExternalTensor) and not Path(data.path).exists():
            raise UserError(
                f"model.path={path}: its weights are in {data.path}, which does not exist, put that file beside the model"
            )
        if data is not None and data.dtype == ir.DataType.FLOAT and not np.isfinite(data.numpy()).all():
            raise UserError(
                f"model.path={path}: weight {tensor.name!r} has NaN or infinite values, export a trained model"
            )


def _initializer_of(node: ir.Node) -> str | None:
    return node.inputs[1].name if len(node.inputs) > 1 and node.inputs[1] is not None else None


def _name_nodes(model: ir.Model, layer_names: dict[str | None, str | None]) -> None:
    taken: set[str] = set()
    for index, node in enumerate(model.graph):
        name = layer_names.get(_initializer_of(node)) if node.op_type in LAYER_OPERATORS else None
        name = name or node.name or f"{node.op_type}_{index}"
        node.name = name if name not in taken else f"{name}_{index}"
        taken.add(node.name)


def _own_parameters(model: ir.Model, node: ir.Node) -> None:
    weight = weight_of(node)
    assert weight is not None
    if len(weight.uses()) > 1 or weight.is_graph_output() or not weight.is_initializer():
        node.replace_input_with(1, _add_initializer(model, f"{node.name}_weight", array_of(weight)))
    if node.op_type == "MatMul":
        return
    bias = bias_of(node)
    channels = array_of(weight).shape[weight_axis(node)] * _groups_of_transpose(node)
    if bias is None and (len(node.inputs) < 3 or node.inputs[2] is None):
        zeros = _add_initializer(model, f"{node.name}_bias", np.zeros(channels, np.float32))
        if len(node.inputs) < 3:
            node.resize_inputs(3)
        node.replace_input_with(2, zeros)
    elif bias is not None and (
        len(bias.uses()) > 1 or not bias.is_initializer() or array_of(bias).shape != (channels,)
    ):
        own = np.broadcast_to(array_of(bias).reshape(-1), (channels,)).copy()
        node.replace_input_with(2, _add_initializer(model, f"{node.name}_bias", own))


def _groups_of_transpose(node: ir.Node) -> int:
    return node.attributes.get_int("group", 1) if node.op_type == "ConvTranspose" else 1


def _add_initializer(model: ir.Model, name: str, array: np.ndarray) -> ir.Value:
    value = ir.val(
        name,
        const_value=ir.tensor(array, name=name),
        shape=ir.Shape(array.shape),
        type=ir.TensorType(ir.DataType.FLOAT),
    )
    model.graph.register_initializer(value)
    return value


def _make_batch_dynamic(model: ir.Model) -> None:
    """Frees a batch that the exporter fixed, where the only thing that fixes it is the declared shapes and Reshape targets."""
    sizes = {value.shape[0] for value in model.graph.inputs if value.shape is not None and len(value.shape)}
    fixed = {size for size in sizes if isinstance(size, int)}
    if len(sizes) != 1 or not fixed:
        return
    (batch,) = fixed
    for node in model.graph:
        target = node.inputs[1] if node.op_type == "Reshape" else None
        if target is None or target.const_value is None:
            continue
        shape = array_of(target)
        if shape.size and shape[0] == batch:
            free = shape.copy()
            free[0] = -1 if -1 not in shape else 0
            new = ir.val(
                f"{node.outputs[0].name}_shape",
                const_value=ir.tensor(free),
                shape=ir.Shape(free.shape),
                type=ir.TensorType(ir.DataType.INT64),
            )
            model.graph.register_initializer(new)
            node.replace_input_with(1, new)
    for value in (
        *model.graph.inputs,
        *model.graph.outputs,
        *(output for node in model.graph for output in node.outputs),
    ):
        if value.shape is not None and len(value.shape) and value.shape[0] == batch and not value.shape.frozen:
            value.shape[0] = ir.SymbolicDim("batch")
