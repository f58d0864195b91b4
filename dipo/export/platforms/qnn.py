"""Qualcomm AI Engine Direct (QNN): a float model, and encodings for its converter.

`qnn-onnx-converter --input_network deploy.onnx --quantization_overrides qnn_encodings.json --bias_bitwidth 32`. The HTP
takes symmetric weights with a scale for each channel.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir

from dipo.export.forms import QDQ, Form
from dipo.export.platforms import snpe
from dipo.graph.plan import QuantizedModel

RULES = dataclasses.replace(snpe.RULES, name="qnn", weight_symmetric=True, weight_per_channel=True)


def write(
    model: ir.Model,
    quantized: QuantizedModel,
    folder: Path,
    *,
    metadata: Mapping[str, str],
    form: Form = QDQ,
    schema: str = "1.0.0",
) -> list[Path]:
    """Write `quantized.onnx`, `deploy.onnx` and `qnn_encodings.json`.

    Args:
        model: The float graph.
        quantized: Its integer weights and activation scales.
        folder: Where the files go; exists.
        metadata: Goes into the ONNX files.
        form: How `quantized.onnx` is written.
        schema: 0.6.1, 1.0.0, or 2.0.0, which has the biases too.

    Returns:
        The files written.

    Raises:
        UserError: A tensor has no range or a width that QNN does not take; nothing is written.
    """
    return snpe.write_encodings(
        model, quantized, folder, rules=RULES, metadata=metadata, form=form, schema=schema, name="qnn_encodings.json"
    )
