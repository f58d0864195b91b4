"""Export of the architectures with both of torch's exporters, into a folder that keeps what was exported."""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import os
import warnings
from pathlib import Path

import onnx
import torch

from models.architecture import DYNAMO, FREE, MADE, Architecture, Array


def exported(architecture: Architecture, variant: str, folder: Path) -> tuple[Path, dict[str, Array]]:
    """Return the network's file and its samples, those of calibration first.

    Args:
        architecture: The network.
        variant: One of `architecture.variants`.
        folder: Where files are kept; one that is there is taken as it is.
    """
    path = folder / f"{architecture.name}-{variant}.onnx"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        made = architecture.made() if variant == MADE and architecture.made else _by_torch(architecture, variant)
        made = architecture.finish(made) if architecture.finish else made
        onnx.checker.check_model(made)
        part = path.with_suffix(f".{os.getpid()}.part")
        onnx.save(made, part)
        part.replace(path)
    return path, architecture.samples()


def _by_torch(architecture: Architecture, variant: str) -> onnx.ModelProto:
    exporter, batch = variant.split("-")
    # The newer exporter takes a batch of 1 for a number that is meant.
    count = 2 if batch == FREE and exporter == DYNAMO else 1
    given = architecture.part(architecture.samples(), 0, count)
    arguments = tuple(torch.from_numpy(each.copy()) if each.ndim else torch.tensor(each[()]) for each in given.values())
    names: dict[str, dict[int, str]] = {name: {} for name in architecture.inputs}
    if batch == FREE:
        for name, each in architecture.inputs.items():
            further = each.free if exporter in architecture.lengths else {}
            names[name] = ({} if each.axis is None else {each.axis: "batch"}) | dict(further)
    module = architecture.module()
    common = {"input_names": list(architecture.inputs), "output_names": list(architecture.outputs)}
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        if exporter == DYNAMO:
            shapes = _shapes(module, names) if batch == FREE else None
            program = torch.onnx.export(module, arguments, dynamo=True, dynamic_shapes=shapes, verbose=False, **common)
            return program.model_proto
        buffer = io.BytesIO()
        outputs = {name: {architecture.out_axes.get(name, 0): "batch"} for name in architecture.outputs}
        axes = names | outputs if batch == FREE else None
        torch.onnx.export(
            module, arguments, buffer, dynamo=False, dynamic_axes=axes, opset_version=architecture.opset, **common
        )
        return onnx.load_from_string(buffer.getvalue())


def _shapes(module: torch.nn.Module, names: dict[str, dict[int, str]]) -> tuple:
    dims = [dict.fromkeys(each, torch.export.Dim.DYNAMIC) for each in names.values()]
    kinds = [each.kind for each in inspect.signature(module.forward).parameters.values()]
    fixed = kinds.index(inspect.Parameter.VAR_POSITIONAL) if inspect.Parameter.VAR_POSITIONAL in kinds else len(dims)
    return (*dims[:fixed], tuple(dims[fixed:])) if fixed < len(dims) else tuple(dims)
