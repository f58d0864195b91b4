"""Qualcomm SNPE: a float model, and encodings that its converter takes in the place of its own calibration.

`snpe-onnx-to-dlc --input_network deploy.onnx --quantization_overrides snpe_encodings.json`, then `snpe-dlc-quantize`.
A tensor without an encoding is calibrated again without a word, so every one has its own. Biases are no part of the
legacy schemas: they are int32, of input step x weight step, with `--bias_bitwidth 32`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir

from dipo.export.encodings import encodings
from dipo.export.float_file import write_models
from dipo.export.forms import QDQ, Form
from dipo.export.platforms import whole
from dipo.export.ranges import Encoding, layer_ranges
from dipo.export.text_files import write_json
from dipo.graph.plan import QuantizedModel
from dipo.graph.rules import PlatformRules

RULES = PlatformRules(
    name="snpe",
    operators=whole.OPERATORS,
    fixed_ranges=whole.FIXED_RANGES,
    weight_symmetric=False,
    weight_per_channel=False,
    act_symmetric=False,
    act_signed=False,
    int32_bias=True,
    fuse_residual_add=False,
    quantize_outputs=True,
    weight_widths=(2, 3, 4, 5, 6, 7, 8, 16),  # narrower weights are part of the next of 4, 8 and 16 bits
    act_widths=(8, 16),
)


def write(
    model: ir.Model,
    quantized: QuantizedModel,
    folder: Path,
    *,
    metadata: Mapping[str, str],
    form: Form = QDQ,
    schema: str = "0.6.1",
) -> list[Path]:
    """Write `quantized.onnx`, `deploy.onnx` and `snpe_encodings.json`.

    Args:
        model: The float graph.
        quantized: Its integer weights and activation scales.
        folder: Where the files go; exists.
        metadata: Goes into the ONNX files.
        form: How `quantized.onnx` is written.
        schema: 0.6.1, which every version of SNPE reads, 1.0.0 or 2.0.0.

    Returns:
        The files written.

    Raises:
        UserError: A tensor has no range or a width that SNPE does not take; nothing is written.
    """
    return write_encodings(
        model, quantized, folder, rules=RULES, metadata=metadata, form=form, schema=schema, name="snpe_encodings.json"
    )


def write_encodings(
    model: ir.Model,
    quantized: QuantizedModel,
    folder: Path,
    *,
    rules: PlatformRules,
    metadata: Mapping[str, str],
    form: Form,
    schema: str,
    name: str,
) -> list[Path]:
    """Write the models, and the encodings of all their tensors under a name.

    Raises:
        UserError: As `write`.
    """
    known = whole.ranges_of_all(rules.name, model, quantized, weights=rules.weight_widths, activations=rules.act_widths)
    activations = {name: Encoding(each) for name, each in known.items()}
    constants = whole.constants_of_all(model, quantized, symmetric=bool(rules.weight_symmetric))
    content = encodings(
        activations,
        list(layer_ranges(model, quantized, known)),
        {name: Encoding(each) for name, each in constants.items()},
        schema=schema,
        platform=rules.name,
    )
    paths = write_models(model, quantized, folder, rules=rules, metadata=metadata, form=form)
    return [*paths, write_json(folder / name, content)]
