"""A target's files, written as a job does it but for the room that it makes for biases."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir

from dipo.export.formats import QDQ, OnnxFormat
from dipo.export.target import Export, Target
from dipo.graph.plan import QuantizedModel
from dipo.quant.spec import QParams


def write_files(
    target: Target[Any],
    model: ir.Model,
    quantized: QuantizedModel,
    folder: Path,
    *,
    metadata: Mapping[str, str] | None = None,
    form: OnnxFormat = QDQ,
    beside: Mapping[str, QParams] | None = None,
    **options: object,
) -> list[Path]:
    export = Export(model, quantized, folder, metadata=metadata or {}, form=form, beside=beside or {})
    return target.write(export, target.options_of(options))
