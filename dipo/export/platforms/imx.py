"""NXP i.MX: scales that are powers of two, of activations and, channel by channel, of weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir

from dipo.errors import UserError
from dipo.export.float_file import write_models
from dipo.export.forms import QDQ, Form
from dipo.export.platforms import whole
from dipo.export.ranges import Encoding, layer_ranges
from dipo.export.text_files import write_json
from dipo.graph.plan import QuantizedModel
from dipo.graph.rules import PlatformRules

RULES = PlatformRules(
    name="imx",
    operators=whole.OPERATORS,
    fixed_ranges=whole.FIXED_RANGES,
    weight_symmetric=True,
    weight_per_channel=True,
    act_symmetric=True,
    act_signed=True,
    int32_bias=True,
    fuse_residual_add=False,
    quantize_outputs=True,
    power_of_two=True,
    weight_widths=(8,),
    act_widths=(8,),
)


def write(
    model: ir.Model, quantized: QuantizedModel, folder: Path, *, metadata: Mapping[str, str], form: Form = QDQ
) -> list[Path]:
    """Write `quantized.onnx`, `deploy.onnx` and `imx_scale.json`.

    The JSON is `{"blob_range": {tensor: [scale, ...]}}`: one scale for an activation, one for each channel of a weight.
    Biases are left out: theirs is the product of the other two.

    Args:
        model: The float graph.
        quantized: Its integer weights and activation scales.
        folder: Where the files go; exists.
        metadata: Goes into the ONNX files.
        form: How `quantized.onnx` is written.

    Returns:
        The files written.

    Raises:
        UserError: A tensor has no range, not 8 bits, or a scale that is no power of two; nothing is written.
    """
    known = whole.ranges_of_all("imx", model, quantized, weights=[8], activations=[8])
    grids = {name: Encoding(each) for name, each in known.items()}
    grids |= {layer.weight_name: layer.weight for layer in layer_ranges(model, quantized, known)}
    for name, grid in grids.items():
        if np.any(np.frexp(grid.scale)[0] != 0.5) or not grid.symmetric:
            raise UserError(
                f"platform=imx: {name!r} has a scale that is no power of two or a zero point other than 0, leave "
                "precision.power_of_two and precision.act_symmetric to the platform"
            )
    scales = {name: np.atleast_1d(grid.scale).tolist() for name, grid in grids.items()}
    paths = write_models(model, quantized, folder, rules=RULES, metadata=metadata, form=form)
    return [*paths, write_json(folder / "imx_scale.json", {"blob_range": scales})]
