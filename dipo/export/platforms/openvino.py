"""OpenVINO: QDQ with signed symmetric weights and unsigned activations, which its low-precision passes fold.

Biases are float: OpenVINO adds them to the rescaled accumulator. Weights of up to 4 bits lie in the file as int4; its
reader of blocks takes no shorter last one.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir

from dipo.export.forms import QDQ, Form, write_quantized
from dipo.export.ranges import check_widths
from dipo.graph.plan import QuantizedModel
from dipo.graph.rules import PlatformRules

RULES = PlatformRules(
    name="openvino",
    operators=frozenset(
        {
            "Add", "AveragePool", "Concat", "Conv", "ConvTranspose", "Gemm", "GlobalAveragePool", "MatMul", "Mul",
            "ReduceMean",
        }
    ),
    weight_symmetric=True,
    weight_per_channel=True,
    act_symmetric=False,
    act_signed=False,
    int32_bias=False,
    fuse_residual_add=False,
    weight_widths=tuple(range(2, 9)),
    act_widths=tuple(range(2, 9)),
    weight_types=frozenset({4, 8}),
    weight_blocks=frozenset({"Conv", "Gemm", "MatMul"}),
    whole_blocks=True,
)  # fmt: skip


def write(
    model: ir.Model, quantized: QuantizedModel, folder: Path, *, metadata: Mapping[str, str], form: Form = QDQ
) -> list[Path]:
    """Write `quantized.onnx`, which is all that OpenVINO reads.

    Args:
        model: The float graph.
        quantized: Its integer weights and activation scales.
        folder: Where the file goes; exists.
        metadata: Goes into the file.
        form: How `quantized.onnx` is written.

    Returns:
        The files written.

    Raises:
        UserError: Something has more than 8 bits.
    """
    check_widths("openvino", quantized, weights=range(2, 9), activations=range(2, 9))
    path = folder / "quantized.onnx"
    write_quantized(model, quantized, path, rules=RULES, metadata=metadata, form=form)
    return [path]
