"""Reading an ONNX file and bringing it to the form that everything else relies on.

After `load`:
  1. functions are inlined, constants folded, BatchNormalization and Pad folded into the convolution beside them, which
     remembers the former (`graph.batch_norm`);
  2. every node has a unique name, a layer the one that it had in the file;
  3. every layer with weights owns them: no initializer is read by two layers;
  4. every Conv, ConvTranspose and Gemm has a bias, zero where the file had none; a Gemm multiplies neither by a factor;
  5. the first dimension of every network input and output is the batch, and is dynamic; initializers are no inputs.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import InlinePass, RemoveInitializersFromInputsPass
from onnxscript import optimizer

from dipo.errors import UserError
from dipo.graph import operators
from dipo.graph.batch import free_batch, fresh_name, replace_input
from dipo.graph.batch_norm import find_batch_norms, record_batch_norms
from dipo.graph.operators import Kind
from dipo.graph.shapes import infer_shapes


def load(path: Path) -> ir.Model:
    """Reads and normalises a model.

    Raises:
        UserError: The file is missing, is not a float ONNX model, or uses what dipo cannot quantize.
    """
    model = _read(path)
    _refuse_unusable(model, path)
    RemoveInitializersFromInputsPass()(model)
    _untie_parameters(model)
    layer_names = _layer_names(model)
    with quiet():
        _optimize(model, path)
        free_batch(model, path)
    for value in model.graph.outputs:
        if value.const_value is not None:
            raise UserError(f"model.path={path}: output {value.name!r} is a constant, export the model without it")
    _name_nodes(model, layer_names)
    for node in layers_of(model):
        _own_parameters(model, node, path)
    return model


def model_files(path: Path) -> list[Path]:
    """The file of a model that can be loaded, and behind it those that hold its weights outside of it."""
    tensors = (value.const_value for value in ir.load(path).graph.initializers.values())
    return [path, *sorted({Path(tensor.path) for tensor in tensors if isinstance(tensor, ir.ExternalTensor)})]


def opset_of(model: ir.Model) -> int:
    """Version of ONNX's default operator set."""
    return model.opset_imports[""]


def layers_of(model: ir.Model) -> Iterator[ir.Node]:
    """Nodes with weights, in topological order."""
    return (node for node in model.graph if is_layer(node))


def is_layer(node: ir.Node) -> bool:
    """Whether the node multiplies its input by a constant weight."""
    return weight_of(node) is not None


def weight_of(node: ir.Node) -> ir.Value | None:
    """The constant weight that the node multiplies by, if it has one."""
    facts = operators.of(node).weight
    # A Gemm of turned data has its channels elsewhere.
    if facts is None or node.attributes.get_int("transA", 0) != 0:
        return None
    value = _input(node, facts.port)
    if value is None or value.const_value is None:
        return None
    # A vector has no axis of output channels.
    return None if len(value.const_value.shape) < 2 else value


def bias_of(node: ir.Node) -> ir.Value | None:
    """The constant bias that the node adds, if it has one."""
    facts = operators.of(node).weight
    value = _input(node, facts.bias_port) if facts is not None and facts.bias_port is not None else None
    return value if value is not None and value.const_value is not None else None


def weight_axis(node: ir.Node) -> int:
    """Axis of the weight that counts output channels."""
    weight, facts = weight_of(node), operators.of(node).weight
    assert weight is not None and weight.shape is not None and facts is not None
    axis = facts.channel_axis % len(weight.shape)
    return 1 - axis if is_turned(node) else axis


def is_turned(node: ir.Node) -> bool:
    """Whether a layer's weight lies with its two axes exchanged."""
    facts = operators.of(node).weight
    return facts is not None and facts.turned_by is not None and node.attributes.get_int(facts.turned_by, 0) != 0


def _input(node: ir.Node, port: int) -> ir.Value | None:
    return node.inputs[port] if len(node.inputs) > port else None


def _is_weighted(node: ir.Node) -> bool:
    """Whether it is of the operators that layers are, with a constant weight or without."""
    return operators.of(node).weight is not None


def array_of(value: ir.Value) -> NDArray[Any]:
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
        with quiet():
            model = ir.load(path)
    except OSError as error:
        raise UserError(
            f"model.path={path}: cannot be read ({error.strerror or error}), check its permissions"
        ) from error
    except Exception as error:
        raise UserError(
            f"model.path={path}: not an ONNX file, or a truncated one ({type(error).__name__}), "
            "export or download it again"
        ) from error
    if not len(model.graph) or "" not in model.opset_imports:
        raise UserError(f"model.path={path}: the file holds no complete ONNX graph, export or download it again")
    return model


def _refuse_unusable(model: ir.Model, path: Path) -> None:
    for node in model.graph:
        if operators.of(node).kind is Kind.QUANTIZED:
            raise UserError(
                f"model.path={path}: node {node.name!r} is {node.op_type}, the model is quantized already, "
                "give the float one"
            )
        for value in node.inputs:
            if value is not None and not (value.producer() or value.is_graph_input() or value.is_initializer()):
                raise UserError(
                    f"model.path={path}: node {node.name!r} reads {value.name!r}, which nothing makes, export it again"
                )
    tensors = [(value.name, value.const_value) for value in model.graph.initializers.values()]
    tensors += [
        (node.outputs[0].name, node.outputs[0].const_value) for node in model.graph if node.op_type == "Constant"
    ]
    for name, tensor in tensors:
        if isinstance(tensor, ir.ExternalTensor) and not Path(tensor.path).exists():
            raise UserError(
                f"model.path={path}: its weights are in {tensor.path}, which does not exist, "
                "put that file beside the model"
            )
        if tensor is not None and tensor.dtype.is_floating_point():
            _refuse_broken(tensor, name, path)


def _refuse_broken(tensor: ir.TensorProtocol, name: str | None, path: Path) -> None:
    try:
        finite = bool(np.isfinite(tensor.numpy()).all())
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"model.path={path}: weight {name!r} cannot be read, its data is incomplete, "
            "export or download the model again"
        ) from error
    if not finite:
        raise UserError(f"model.path={path}: weight {name!r} has NaN or infinite values, export a trained model")


def _optimize(model: ir.Model, path: Path) -> None:
    try:
        # A function's values get the names that they keep.
        InlinePass()(model)
        batch_norms = find_batch_norms(model)
        optimizer.optimize(model)
        infer_shapes(model)
    except Exception as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"model.path={path}: not a valid ONNX graph ({reason}), export it again") from error
    record_batch_norms(model, batch_norms)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """What the optimizer and the converter tell about what they leave alone is nothing that a user can act on."""
    loggers = [logging.getLogger(name) for name in ("onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _untie_parameters(model: ir.Model) -> None:
    """Gives each layer its own weight and bias: the optimizer folds nothing into one that others read."""
    for node in model.graph:
        if not _is_weighted(node):
            continue
        for index, value in enumerate(node.inputs):
            if value is not None and value.is_initializer() and len(value.uses()) > 1:
                replace_input(model, node, index, f"{node.name or node.op_type}_{value.name}", array_of(value))


def _layer_names(model: ir.Model) -> dict[str, str]:
    """The file's names of the layers, by name of the initializer that is their weight."""
    return {
        weight: node.name
        for node in model.graph
        if _is_weighted(node) and node.name and (weight := _second_input(node))
    }


def _second_input(node: ir.Node) -> str | None:
    return node.inputs[1].name if len(node.inputs) > 1 and node.inputs[1] is not None else None


def _name_nodes(model: ir.Model, layer_names: dict[str, str]) -> None:
    """Layers first, so that nothing else takes their names; one that the optimizer replaced is known by its weight."""
    kept = set(layer_names.values())
    taken: set[str] = set()
    for node in sorted(model.graph, key=lambda node: not _is_weighted(node)):
        wish = node.name or node.op_type
        if _is_weighted(node) and wish not in kept:
            wish = layer_names.get(_second_input(node) or "", wish)
        node.name = fresh_name(wish, taken)
        taken.add(node.name)


def _own_parameters(model: ir.Model, node: ir.Node, path: Path) -> None:
    weight = weight_of(node)
    assert weight is not None
    array = array_of(weight)
    if array.dtype != np.float32:
        raise UserError(
            f"model.path={path}: layer {node.name!r} has {array.dtype} weights, export the model in float32"
        )
    alpha = _take_factor(node, "alpha")
    if alpha != 1 or len(weight.uses()) > 1 or weight.is_graph_output() or not weight.is_initializer():
        replace_input(model, node, 1, f"{node.name}_weight", array * np.float32(alpha))
    if node.op_type == "MatMul":
        return
    groups = node.attributes.get_int("group", 1) if node.op_type == "ConvTranspose" else 1
    channels = array.shape[weight_axis(node)] * groups
    if len(node.inputs) < 3 or node.inputs[2] is None:
        _take_factor(node, "beta")
        node.resize_inputs(max(3, len(node.inputs)))
        replace_input(model, node, 2, f"{node.name}_bias", np.zeros(channels, np.float32))
    elif (bias := bias_of(node)) is not None:
        _own_bias(model, node, bias, channels, path)


def _own_bias(model: ir.Model, node: ir.Node, bias: ir.Value, channels: int, path: Path) -> None:
    array = array_of(bias)
    if array.size not in (1, channels) or (array.ndim > 1 and array.shape[-1] != array.size):
        raise UserError(
            f"model.path={path}: {node.op_type} {node.name!r} adds a constant of shape {array.shape} to {channels} "
            "channels, export it with one number for each channel"
        )
    beta = _take_factor(node, "beta")
    single = len(bias.uses()) == 1 and bias.is_initializer() and not bias.is_graph_output()
    if beta != 1 or not single or array.shape != (channels,):
        own = np.broadcast_to(array.reshape(-1) * np.float32(beta), (channels,)).copy()
        replace_input(model, node, 2, f"{node.name}_bias", own)


def _take_factor(node: ir.Node, name: str) -> float:
    """Gemm's alpha or beta, which the node then lacks."""
    factor = node.attributes.get_float(name, 1.0) if node.op_type == "Gemm" else 1.0
    node.attributes.pop(name, None)
    return factor
