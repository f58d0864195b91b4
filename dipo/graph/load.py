"""Reading of ONNX files, and normalisation to the form that everything else relies on (`passes.invariants`)."""

from __future__ import annotations

import signal
from pathlib import Path

import onnx
import onnx_ir as ir

from dipo.errors import UserError
from dipo.graph.one_by_one import set_rows
from dipo.graph.passes import IN_SINGLE_PRECISION, NORMALISATION, ONE_BY_ONE, READING, WHOLE
from dipo.graph.passes.free_batch import FixedBatchError
from dipo.graph.passes.inline import invalid
from dipo.graph.quiet import quiet
from dipo.graph.sparse import make_dense
from dipo.graph.trial import HangError, command_ends, fork_ends
from dipo.graph.validity import blamed, is_file, refuse_infinite_weights, refuse_unusable


def load(path: Path, *, takes_one: bool = False, whole: bool = False) -> ir.Model:
    """Read and normalise a model.

    Args:
        path: The file.
        takes_one: Whether the network runs one sample at a time (`graph.one_by_one`); it does so too where its batch
            is fixed in a way that cannot be undone.
        whole: Whether a sample is all that the file takes in a run, which it is too where more than one is fixed so.

    Raises:
        UserError: The file is missing, is not a float ONNX model, or uses what dipo cannot quantize.
    """
    source = f"model.path={path}"
    model = read(path)
    with blamed(path, source=source):
        _refuse_deadly(model, path, source=source, takes_one=takes_one, whole=whole)
        return normalised(model, path, source=source, takes_one=takes_one, whole=whole)


def normalised(model: ir.Model, path: Path, *, source: str, takes_one: bool, whole: bool) -> ir.Model:
    """Normalise a model, which changes, that a file holds; one sample at a time where there is no other way."""
    try:
        return normalise(model, source=source, takes_one=takes_one, whole=whole)
    except FixedBatchError as error:
        batch = error.batch
    return normalise(read(path), source=source, takes_one=True, whole=batch != 1)


def normalise(model: ir.Model, *, source: str, takes_one: bool = False, whole: bool = False) -> ir.Model:
    """Normalise a model, in place, to the form that everything else relies on.

    Args:
        model: A model as its exporter made it.
        source: Origin of the model, with which messages begin.
        takes_one: Whether it runs one sample at a time: then its batch stays as it is.
        whole: Whether a sample is all that the file takes in a run; one at a time, too.

    Raises:
        UserError: It is no float model, is not complete, or uses what dipo cannot quantize.
    """
    try:
        with quiet():
            _bring_to_one_writing(model)
            refuse_unusable(model)
            for transform in WHOLE if whole else ONE_BY_ONE if takes_one else NORMALISATION:
                transform(model)
        refuse_infinite_weights(model)
        set_rows(model, {} if takes_one or whole else None)
    except FixedBatchError as error:
        raise FixedBatchError(f"{source}: {error}", error.batch) from error
    except UserError as error:
        raise UserError(f"{source}: {error}") from error
    return model


def in_single_precision(path: Path) -> ir.Model:
    """Read a model that `load` takes, and bring it to float32, without any other change."""
    model = read(path)
    with quiet():
        _bring_to_one_writing(model)
        for transform in IN_SINGLE_PRECISION:
            transform(model)
    return model


def _refuse_deadly(model: ir.Model, path: Path, *, source: str, takes_one: bool, whole: bool) -> None:
    """Refuse a file that ends the process that normalises it, or keeps it for ever."""
    seconds = _allowed_seconds(model, path)
    try:
        try:
            number = fork_ends(
                lambda: normalised(model, path, source=source, takes_one=takes_one, whole=whole), seconds=seconds
            )
        except HangError:
            number = command_ends(_NORMALISE, str(path), str(int(takes_one)), str(int(whole)), seconds=seconds)
    except HangError as error:
        raise UserError(
            f"{source}: the libraries that read ONNX graphs do not come to an end with it in {seconds:.0f} s, look for "
            "sizes and attributes that cannot be meant and export it again"
        ) from error
    if number is not None:
        raise UserError(
            f"{source}: not a valid ONNX graph, a library that reads it ends its process ({_name_of(number)}), look "
            "for sizes and attributes that cannot be meant and export it again"
        )


_NORMALISE = """
import pathlib, sys
from dipo.graph import load
path = pathlib.Path(sys.argv[1])
load.normalised(load.read(path), path, source="", takes_one=sys.argv[2] == "1", whole=sys.argv[3] == "1")
"""


def _allowed_seconds(model: ir.Model, path: Path) -> float:
    """Return a time in which any model of this size is normalised, ten times over, on a busy machine, too."""
    tensors = [value.const_value for value in model.graph.initializers.values()]
    files = {path, *(Path(tensor.path) for tensor in tensors if isinstance(tensor, ir.ExternalTensor))}
    return 60 + len(model.graph) / 10 + sum(file.stat().st_size for file in files if is_file(file)) / 1e7


def _name_of(number: int) -> str:
    return signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"


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


def read(path: Path) -> ir.Model:
    """Read a model as it is in its file.

    Raises:
        UserError: The file is missing, or no ONNX model.
    """
    if not path.exists():
        raise UserError(f"model.path={path}: there is no such file, give the path of an ONNX model")
    if path.is_dir():
        raise UserError(f"model.path={path}: this is a folder, give the path of an ONNX file")
    try:
        with quiet():
            proto = onnx.load(path, load_external_data=False)
    except OSError as error:
        raise UserError(
            f"model.path={path}: cannot be read ({error.strerror or error}), check its permissions"
        ) from error
    except Exception as error:
        raise UserError(
            f"model.path={path}: not an ONNX file, or a truncated one ({type(error).__name__}), export or "
            "download it again"
        ) from error
    try:
        with quiet():
            model = ir.from_proto(make_dense(proto))
            ir.external_data.set_base_dir(model.graph, path.parent)
    except Exception as error:
        raise UserError(f"model.path={path}: {invalid(error)}") from error
    return model
