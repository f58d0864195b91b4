"""OpenVINO: QDQ with signed symmetric weights and unsigned activations, which its low-precision passes fold.

Biases are float: OpenVINO adds them to the rescaled accumulator. Weights of up to 4 bits are stored as int4; its reader
of blocks does not take a shorter last one. Its CPU plugin refuses DequantizeLinear in front of the weights of recurrent
operators in a network with quantized activations ("LSTMSequence node expects Constant for port 4", 2026.4).
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from dipo.export.target import QUANTIZED, Export, Target, TargetOptions
from dipo.graph.target_spec import TargetSpec


class OpenVino(Target[TargetOptions]):
    """OpenVINO, which reads `quantized.onnx` alone."""

    spec = TargetSpec(
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
    files = (dataclasses.replace(QUANTIZED, readers=(*QUANTIZED.readers, "OpenVINO")),)

    def write(self, export: Export, options: TargetOptions) -> list[Path]:
        """Write the quantized model.

        Raises:
            UserError: Something has more than 8 bits.
        """
        from dipo.export.ranges import check_widths

        del options
        check_widths(self.spec, export.quantized)
        return export.write_quantized(self.spec)


TARGET = OpenVino()
