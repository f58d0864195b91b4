"""What makes a file no float network that can be worked on, in one sentence; and what ONNX's checker says of others."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from dipo.errors import JobError, UserError
from dipo.graph import operators
from dipo.graph.accessors import array_of
from dipo.graph.layers import layers_of
from dipo.graph.operators import Kind
from dipo.graph.opset import OLDEST_OPSET
from dipo.graph.trial import HangError, fork_ends

_CHECK_SECONDS = 600


def refuse_unusable(model: ir.Model) -> None:
    """Refuse a model that is not whole, not valid in a way that the passes would stumble over, or quantized already.

    Raises:
        UserError: It is so; the sentence lacks the model's name.
    """
    if not len(model.graph) or "" not in model.opset_imports:
        raise UserError("the file holds no complete ONNX graph, export or download it again")
    opset = model.opset_imports[""]
    _refuse_opset(opset)
    _refuse_odd_ends(model)
    for value in model.graph.inputs:
        shape = list(value.shape or ())
        if any(isinstance(size, int) and size < 0 for size in shape):
            sizes = ", ".join(str(size) for size in shape)
            raise UserError(f"input {value.name!r} has the shape [{sizes}], export it with sizes above 0")
    for node in model.graph:
        if operators.of(node).kind is Kind.QUANTIZED:
            raise UserError(f"node {node.name!r} is {node.op_type}, the model is quantized already, give the float one")
        for read in node.inputs:
            if read is not None and not (read.producer() or read.is_graph_input() or read.is_initializer()):
                raise UserError(f"node {node.name!r} reads {read.name!r}, which nothing makes, export it again")
    for graph in model.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None:
                _refuse_unreadable(value.const_value, f"weight {value.name!r}")
                _refuse_nan(value.const_value, f"weight {value.name!r}")
        for node in graph:
            _refuse_odd_node(node, opset)


def _refuse_odd_ends(model: ir.Model) -> None:
    """Refuse inputs and outputs that hold no numbers, and outputs that nothing makes or that are there twice."""
    for values, kind in ((model.graph.inputs, "input"), (model.graph.outputs, "output")):
        for value in values:
            if value.type is not None and not isinstance(value.type, ir.TensorType):
                raise UserError(
                    f"{kind} {value.name!r} is no tensor ({value.type}), export the model with tensors alone, such as "
                    "the parts of a sequence or the columns of a table"
                )
            if value.dtype == ir.DataType.STRING:
                raise UserError(
                    f"{kind} {value.name!r} holds strings, export the part of the model between the numbers that are "
                    "made of them and those that come out"
                )
    seen = set(model.graph.inputs)
    for value in model.graph.outputs:
        if value in seen:
            what = "an input" if value.is_graph_input() else "among the outputs twice"
            raise UserError(f"output {value.name!r} is {what}, take it from the outputs, or put an Identity before it")
        seen.add(value)


def _refuse_opset(opset: int) -> None:
    newest = onnx.defs.onnx_opset_version()
    if not 1 <= opset <= newest:
        raise UserError(
            f"opset {opset} is none that this version of onnx knows (1 to {newest}), export the model at one of them, "
            "or update onnx"
        )
    if opset < OLDEST_OPSET:
        raise UserError(
            f"opset {opset} is older than what ONNX Runtime runs, export the model at opset {OLDEST_OPSET} or later, "
            "or bring it there with onnx.version_converter"
        )


def _refuse_odd_node(node: ir.Node, opset: int) -> None:
    """Refuse a node with a tensor that cannot be read, or one of ONNX's own that its operator does not allow."""
    for attribute in node.attributes.values():
        if attribute.is_ref():
            raise UserError(
                f"node {node.name!r} ({node.op_type}) takes its attribute {attribute.name!r} from a function's "
                f"parameter {attribute.ref_attr_name!r}, and is in no function, export the model again"
            )
        for tensor in _tensors(attribute):
            _refuse_unreadable(tensor, f"attribute {attribute.name!r} of node {node.name!r} ({node.op_type})")
    if node.op_type == "Constant" and node.outputs[0].const_value is not None:
        _refuse_nan(node.outputs[0].const_value, f"constant {node.outputs[0].name!r}")
    if node.domain or not onnx.defs.has(node.op_type, opset, ""):
        return
    schema = onnx.defs.get_schema(node.op_type, opset, "")
    _refuse_odd_values(node, schema)
    for name, attribute in node.attributes.items():
        known = schema.attributes.get(name)
        wanted = None if known is None else ir.AttributeType[str(known.type).rpartition(".")[2]]
        if wanted not in (None, attribute.type):
            raise UserError(
                f"node {node.name!r} ({node.op_type}) has an attribute {name!r} of type {attribute.type.name}, which "
                f"should be {wanted.name}, export the model again"
            )


def _refuse_odd_values(node: ir.Node, schema: onnx.defs.OpSchema) -> None:
    for values, what, least, most in (
        (node.inputs, "inputs", schema.min_input, schema.max_input),
        (node.outputs, "outputs", schema.min_output, schema.max_output),
    ):
        if not least <= len(values) <= most:
            raise UserError(
                f"node {node.name!r} ({node.op_type}) has {len(values)} {what}, the operator has {least} to {most}, "
                "export the model again"
            )
    for value, formal in zip(node.inputs, schema.inputs, strict=False):
        if value is None and formal.option is onnx.defs.OpSchema.FormalParameterOption.Single:
            raise UserError(
                f"node {node.name!r} ({node.op_type}) lacks its input {formal.name!r}, export the model again"
            )


def _tensors(attribute: ir.Attr) -> Sequence[ir.TensorProtocol]:
    # Not by `as_tensor`, which is for tensors of a known type.
    if attribute.type == ir.AttributeType.TENSOR:
        return [attribute.value]
    return attribute.value if attribute.type == ir.AttributeType.TENSORS else []


def _refuse_unreadable(tensor: ir.TensorProtocol, name: str) -> None:
    """Refuse a tensor whose data is not there, does not fill its shape, or is of no known type."""
    if isinstance(tensor, ir.ExternalTensor) and not is_file(Path(tensor.path)):
        raise UserError(f"its weights are in {tensor.path}, which does not exist, put that file beside the model")
    shape = list(tensor.shape.numpy())
    try:
        # A negative size would be taken for one that is to be found out.
        found = min(shape, default=0) >= 0 and list(tensor.numpy().shape) == shape
    except Exception as error:
        raise _unreadable(tensor, name) from error
    if not found:
        raise _unreadable(tensor, name)


def _unreadable(tensor: ir.TensorProtocol, name: str) -> UserError:
    return UserError(
        f"{name} cannot be read, its data is incomplete or does not fit its type and shape "
        f"({tensor.dtype.name.lower()}, {list(tensor.shape)}), export or download the model again"
    )


def _refuse_nan(tensor: ir.TensorProtocol, name: str) -> None:
    if tensor.dtype.is_floating_point() and np.isnan(tensor.numpy()).any():
        raise UserError(f"{name} has NaN values, export a trained model")


def is_file(path: Path) -> bool:
    """Return whether there is such a file, by a name that may be anything."""
    try:
        return path.is_file()
    except (OSError, ValueError):  # no file can have such a name
        return False


def refuse_infinite_weights(model: ir.Model) -> None:
    """Refuse layers with infinite weights; other constants may be infinite, such as attention masks.

    Raises:
        UserError: There is one.
    """
    for layer in layers_of(model):
        for value in (layer.weight, layer.bias):
            if value is not None and not np.isfinite(array_of(value)).all():
                raise UserError(
                    f"{value.name!r}, a parameter of layer {layer.name!r}, has infinite values, export a trained model"
                )


@contextlib.contextmanager
def blamed(path: Path, *, source: str) -> Iterator[None]:
    """Turn an exception that nobody foresaw into a sentence, if ONNX's checker says that the file is not valid.

    Raises:
        UserError: It says so.
    """
    try:
        yield
    except (UserError, JobError):
        raise
    except Exception as error:
        # The full check infers shapes, which may end the process.
        reason = _check_first(path)
        if reason is None:
            raise
        raise UserError(f"{source}: not a valid ONNX graph ({reason}), export it again") from error


def _check_first(path: Path) -> str | None:
    try:
        number = fork_ends(lambda: _check(path), seconds=_CHECK_SECONDS)
    except HangError:
        return None
    return _check(path) if number is None else "ONNX's checker breaks on it"


def _check(path: Path) -> str | None:
    """Return what ONNX's checker has against a file; None: nothing."""
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except Exception as error:  # noqa: BLE001 - whatever it says is what is asked for
        return next((line for line in str(error).splitlines() if line), type(error).__name__)
    return None
