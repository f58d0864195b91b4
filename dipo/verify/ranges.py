"""Range files as dipo reads them itself, for what their consumers cannot be asked: syntax, names and numbers."""

from __future__ import annotations

from pathlib import Path

import yaml

from dipo.export.range_file import Names
from dipo.export.target import TargetFile
from dipo.verify.compare import Comparison, sentence_of
from dipo.verify.verdict import Refused, State, Verdict

NAME = "grids of quantized.onnx"


def check(file: Path, declared: TargetFile) -> Verdict:
    """Read a range file, look up its names in `deploy.onnx`, and compare its numbers with `quantized.onnx`.

    Args:
        file: The file.
        declared: Its target's declaration, which has the function that reads it.

    Raises:
        Refused: The file is not of the form that the target writes, or a model is missing beside it.
    """
    assert declared.read is not None
    beside = Comparison.beside(file)
    names = Names(beside.deployed.values(), beside.deployed.nodes())
    try:
        claims = list(declared.read(file.read_text(encoding="utf-8"), names))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, yaml.YAMLError) as error:
        why = " ".join(str(error).split())
        raise Refused(f"{file.name} is not of its form: {type(error).__name__} {why}") from error
    if not claims:
        raise Refused(f"{file.name} has no tensors")
    tensors, wrong = beside.fates(claims)
    alone = sum(fate.state is State.ACCEPTED and bool(fate.why) for fate in tensors)
    notes = [f"{alone} tensors have no grid in quantized.onnx: their names alone are known"] if alone else []
    return Verdict(NAME, file, tensors, refused=sentence_of(wrong, file), notes=notes)
