"""Reading of ONNX files, and normalisation to the form that everything else relies on (`passes.invariants`)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from dipo.errors import UserError
from dipo.graph import operators
from dipo.graph.accessors import array_of
from dipo.graph.layers import layers_of
from dipo.graph.one_by_one import set_rows
from dipo.graph.operators import Kind
from dipo.graph.passes import IN_SINGLE_PRECISION, NORMALISATION, ONE_BY_ONE, READING
from dipo.graph.passes.free_batch import FixedBatchError
from dipo.graph.passes.inline import invalid
from dipo.graph.quiet import quiet
from dipo.graph.sparse import make_dense


def load(path: Path, *, takes_one: bool = False) -> ir.Model:
    """Read and normalise a model.

    Args:
        path: The file.
        takes_one: Whether the network runs one sample at a time (`graph.one_by_one`); it does so too where its batch
            is fixed at 1 in a way that cannot be undone.

    Raises:
        UserError: The file is missing, is not a float ONNX model, or uses what dipo cannot quantize.
    """
    source = f"model.path={path}"
    try:
        return normalise(_read(path), source=source, takes_one=takes_one)
    except FixedBatchError as error:
        if error.batch != 1:
            raise
    return normalise(_read(path), source=source, takes_one=True)


def normalise(model: ir.Model, *, source: str, takes_one: bool = False) -> ir.Model:
    """Normalise a model, in place, to the form that everything else relies on.

    Args:
        model: A model as its exporter made it.
        source: Origin of the model, with which messages begin.
        takes_one: Whether it runs one sample at a time: then its batch stays as it is.

    Raises:
        UserError: It is no float model, is not complete, or uses what dipo cannot quantize.
    """
    try:
        with quiet():
            _bring_to_one_writing(model)
            _refuse_unusable(model)
            for transform in ONE_BY_ONE if takes_one else NORMALISATION:
                transform(model)
        _refuse_infinite_weights(model)
        set_rows(model, {} if takes_one else None)
    except FixedBatchError as error:
        raise FixedBatchError(f"{source}: {error}", error.batch) from error
    except UserError as error:
        raise UserError(f"{source}: {error}") from error
    return model


def in_single_precision(path: Path) -> ir.Model:
    """Read a model that `load` takes, and bring it to float32, without any other change."""
    model = _read(path)
    with quiet():
        _bring_to_one_writing(model)
        for transform in IN_SINGLE_PRECISION:
            transform(model)
    return model


def _bring_to_one_writing(model: ir.Model) -> None:
    try:
        for transform in READING:
            transform(model)
    except Exception as error:
        # A cycle.
        raise invalid(error) from error


def model_files(path: Path) -> list[Path]:
    """Return a model's file, followed by the external files that hold its weights."""
    tensors = (value.const_value for value in ir.load(path).graph.initializers.values())
    return [path, *sorted({Path(tensor.path) for tensor in tensors if isinstance(tensor, ir.ExternalTensor)})]


def _read(path: Path) -> ir.Model:
    if not path.exists():
        raise UserError(f"model.path={path}: there is no such file, give the path of an ONNX model")
    if path.is_dir():
        raise UserError(f"model.path={path}: this is a folder, give the path of an ONNX file")
    try:
        with quiet():
            proto = make_dense(onnx.load(path, load_external_data=False))
            model = ir.from_proto(proto)
            ir.external_data.set_base_dir(model.graph, path.parent)
    except OSError as error:
        raise UserError(
            f"model.path={path}: cannot be read ({error.strerror or error}), check its permissions"
        ) from error
    except Exception as error:
        raise UserError(
            f"model.path={path}: not an ONNX file, or a truncated one ({type(error).__name__}), export or "
            "download it again"
        ) from error
    return model


def _refuse_unusable(model: ir.Model) -> None:
    if not len(model.graph) or "" not in model.opset_imports:
        raise UserError("the file holds no complete ONNX graph, export or download it again")
    for node in model.graph:
        if operators.of(node).kind is Kind.QUANTIZED:
            raise UserError(f"node {node.name!r} is {node.op_type}, the model is quantized already, give the float one")
        for value in node.inputs:
            if value is not None and not (value.producer() or value.is_graph_input() or value.is_initializer()):
                raise UserError(f"node {node.name!r} reads {value.name!r}, which nothing makes, export it again")
    tensors = [(value.name, value.const_value) for value in model.graph.initializers.values()]
    tensors += [
        (node.outputs[0].name, node.outputs[0].const_value) for node in model.graph if node.op_type == "Constant"
    ]
    for name, tensor in tensors:
        if isinstance(tensor, ir.ExternalTensor) and not Path(tensor.path).exists():
            raise UserError(f"its weights are in {tensor.path}, which does not exist, put that file beside the model")
        if tensor is not None and tensor.dtype.is_floating_point():
            _refuse_broken(tensor, name)


def _refuse_broken(tensor: ir.TensorProtocol, name: str | None) -> None:
    try:
        broken = bool(np.isnan(tensor.numpy()).any())
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"weight {name!r} cannot be read, its data is incomplete, export or download the model again"
        ) from error
    if broken:
        raise UserError(f"weight {name!r} has NaN values, export a trained model")


def _refuse_infinite_weights(model: ir.Model) -> None:
    """Refuse layers with infinite weights; other constants may be infinite, such as attention masks."""
    for layer in layers_of(model):
        for value in (layer.weight, layer.bias):
            if value is not None and not np.isfinite(array_of(value)).all():
                raise UserError(
                    f"{value.name!r}, a parameter of layer {layer.name!r}, has infinite values, export a trained model"
                )
