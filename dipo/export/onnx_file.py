"""Writing of ONNX models: checked, and under their final names only when complete."""

from __future__ import annotations

import tempfile
from pathlib import Path

import onnx
import onnx_ir as ir

from dipo.errors import UserError
from dipo.graph.opset import convert_opset

_INLINE_BYTES = 1 << 30
"""Size above which tensors go to a file of their own: protobuf is limited to 2 GiB, with the rest of the graph."""


def save_model(model: ir.Model, path: Path, *, external: bool = False) -> None:
    """Check the model and write it to `path`, with tensors too large for one file in `<path>.data` beside it.

    Args:
        model: The model; its tensors in other files are read into it.
        path: Final name of the file, in an existing folder.
        external: Whether tensors go to `<path>.data` whatever their size.

    Raises:
        UserError: The model is not valid ONNX; nothing was written.
    """
    data_name = f"{path.name}.data"
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        unfinished = Path(folder) / path.name
        if external or _tensor_bytes(model) > _INLINE_BYTES:
            ir.save(model, unfinished, external_data=data_name)
        else:
            ir.save(ir.external_data.load_to_model(model), unfinished)
        # The checker takes no output of an unknown number of dimensions, which runtimes do: it would say nothing else.
        if all(value.shape is not None for value in model.graph.outputs):
            _check(unfinished)
        has_data = (Path(folder) / data_name).exists()
        if has_data:
            (Path(folder) / data_name).replace(path.with_name(data_name))
        unfinished.replace(path)
    if not has_data:
        # Tensors of an earlier file would seem to belong to this one.
        path.with_name(data_name).unlink(missing_ok=True)


def _check(file: Path) -> None:
    try:
        onnx.checker.check_model(str(file))
    except onnx.checker.ValidationError as error:
        reason = next(iter(str(error).splitlines()), "no more is known")
        raise UserError(
            f"{file.name} would not be valid ONNX ({reason}), see whether onnx.checker says the same of the model and "
            "export that again"
        ) from error


def has_external_data(model: ir.Model) -> bool:
    """Return whether tensors of the model are in other files."""
    initializers = (value for graph in model.graphs() for value in graph.initializers.values())
    return any(isinstance(value.const_value, ir.ExternalTensor) for value in initializers)


def raise_opset(model: ir.Model, opset: int) -> None:
    """Convert the default operator set to `opset` unless it is newer, and raise the IR version as needed.

    The converter rewrites the few operators that changed their meaning (GroupNormalization, GridSample, DFT between 18
    and 21); it keeps the names of values and of the nodes that it leaves alone.

    Raises:
        UserError: It does not know a way.
    """
    if model.opset_imports[""] < opset:
        convert_opset(model, opset)
    imports = [onnx.helper.make_opsetid("", model.opset_imports[""])]
    model.ir_version = max(model.ir_version, onnx.helper.find_min_ir_version_for(imports))


def _tensor_bytes(model: ir.Model) -> int:
    tensors = (value.const_value for graph in model.graphs() for value in graph.initializers.values())
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)
