"""The two formats of a quantized ONNX file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dipo.graph.target_spec import TargetSpec

if TYPE_CHECKING:
    import onnx_ir as ir

    from dipo.graph.plan import QuantizedModel


@dataclass(frozen=True)
class OnnxFormat:
    """The format in which `quantized.onnx` is written."""

    format: str = "qdq"
    """Either `qdq`, or `qop` for integer operators."""
    packed: bool = False
    """Whether weights are stored in the narrowest type that holds their codes."""

    def for_spec(self, spec: TargetSpec) -> OnnxFormat:
        """Return the format; QDQ if the target keeps biases float, which integer operators do not take."""
        return self if spec.int32_bias else OnnxFormat("qdq", self.packed)

    def __str__(self) -> str:
        return f"{self.format}{' packed' if self.packed else ''}"


QDQ = OnnxFormat()
"""The format that every target takes."""


def write_quantized(
    model: ir.Model,
    quantized: QuantizedModel,
    path: Path,
    *,
    spec: TargetSpec,
    metadata: Mapping[str, str],
    form: OnnxFormat = QDQ,
) -> None:
    """Write the quantized model to `path`, which appears only once the file is complete and checked.

    Args:
        model: The float graph.
        quantized: Its integer weights and activation scales.
        path: The ONNX file.
        spec: The target's specification.
        metadata: Metadata of the file.
        form: Format of the file.

    Raises:
        UserError: Integer operators are asked for, and the target's biases are float.
    """
    from dipo.export.qdq import write_qdq
    from dipo.export.qoperator import write_qoperator
    from dipo.export.storage import Storage

    write = {"qdq": write_qdq, "qop": write_qoperator}[form.format]
    marked = {**metadata, "dipo_form": str(form)}
    storage = Storage(weights=spec.weight_types, packed=form.packed)
    write(model, quantized, path, rules=spec, metadata=marked, storage=storage)
