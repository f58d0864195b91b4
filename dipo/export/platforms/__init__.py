"""The deploy targets, in explicit tables: another target is one file and one line in each."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import onnx_ir as ir

from dipo.export.platforms import ort, trt
from dipo.graph.plan import QuantizedModel
from dipo.graph.rules import PlatformRules


class Writer(Protocol):
    """Writes everything that one target reads into `folder`, and returns the files."""

    def __call__(
        self, model: ir.Model, quantized: QuantizedModel, folder: Path, *, metadata: Mapping[str, str]
    ) -> list[Path]:
        """`model` is the float graph; `metadata` goes into the ONNX file."""
        ...


RULES: dict[str, PlatformRules] = {"ort": ort.RULES, "trt": trt.RULES}
"""What each target quantizes."""

WRITERS: dict[str, Writer] = {"ort": ort.write, "trt": trt.write}
"""How each target is exported."""
