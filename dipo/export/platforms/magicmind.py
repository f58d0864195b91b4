"""Cambricon MagicMind: ranges for a script that gives each to `set_dynamic_range` as `mm.Range(min, max)`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import onnx_ir as ir

from dipo.export.float_file import write_models
from dipo.export.forms import QDQ, Form
from dipo.export.ranges import Encoding, all_ranges, check_coverage, check_widths
from dipo.export.text_files import write_json
from dipo.graph.accessors import name_of
from dipo.graph.layers import layers_of
from dipo.graph.plan import QuantizedModel
from dipo.graph.rules import PlatformRules
from dipo.quant.spec import QParams

RULES = PlatformRules(
    name="magicmind",
    operators=frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"}),
    weight_symmetric=False,
    weight_per_channel=True,
    act_symmetric=False,
    act_signed=False,
    int32_bias=False,
    fuse_residual_add=False,
    weight_widths=(8,),
    act_widths=(8,),
    ranges_beside=True,
)


def write(
    model: ir.Model,
    quantized: QuantizedModel,
    folder: Path,
    *,
    metadata: Mapping[str, str],
    form: Form = QDQ,
    beside: Mapping[str, QParams] = MappingProxyType({}),
) -> list[Path]:
    """Write `quantized.onnx`, `deploy.onnx` and `magicmind_quant_param.json`.

    The JSON is `{"blob_range": {tensor: {"min", "max"}}}`. MagicMind finds the ranges of the weights itself.

    Args:
        model: The float graph.
        quantized: Its integer weights and activation scales.
        folder: Where the files go; exists.
        metadata: Goes into the ONNX files.
        form: How `quantized.onnx` is written.
        beside: Grids of values that are not quantized; a script asks for the range of what every node makes.

    Returns:
        The files written.

    Raises:
        UserError: What a quantized layer reads has no range, or not 8 bits; nothing is written.
    """
    check_widths("magicmind", quantized, weights=[8], activations=[8])
    known = all_ranges(model, quantized.activations, beside)
    layers = [layer for layer in layers_of(model) if layer.name in quantized.layers]
    read = [name_of(layer.input) for layer in layers if layer.input is not None]
    check_coverage("magicmind", read, known)
    grids = {name: Encoding(qparams) for name, qparams in known.items()}
    ranges = {name: {"min": float(grid.min), "max": float(grid.max)} for name, grid in grids.items()}
    paths = write_models(model, quantized, folder, rules=RULES, metadata=metadata, form=form)
    return [*paths, write_json(folder / "magicmind_quant_param.json", {"blob_range": ranges})]
