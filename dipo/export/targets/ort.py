"""ONNX Runtime's CPU execution provider: QDQ, which its optimizer turns into integer kernels.

`operators` holds what ONNX Runtime 1.32 has integer kernels for (Conv, Gemm, MatMul, Add, Mul, the poolings, Concat,
Sigmoid, LeakyRelu). ConvTranspose, ReduceMean, Resize and Flatten stay float, but must read quantized values for the
layer before them to become an integer kernel. MaxPool, Transpose, Reshape, Slice and Squeeze are not among them: ONNX
Runtime itself moves the quantization behind those to before them. A Conv whose output stays float, as the last one of a
network may be, has no integer kernel; a Gemm or MatMul has.

`int8_kernels`: its convolutions take a zero point for each channel of the weight, but then a depthwise one is slower
than in float; a Clip on codes fuses with nothing and costs little, a Clip on floats keeps the Conv before it in float.

`recurrent_weights`: it runs their DequantizeLinear at each call, in front of the float operator.

`weight_blocks`: it computes these layers in float, after its DequantizeLinear for blocks.
"""

from __future__ import annotations

from pathlib import Path

from dipo.export.target import QUANTIZED, Export, Target, TargetOptions
from dipo.graph.target_spec import TargetSpec


class OnnxRuntime(Target[TargetOptions]):
    """ONNX Runtime, which reads `quantized.onnx` alone."""

    spec = TargetSpec(
        name="ort",
        operators=frozenset(
            {
                "Add",
                "AveragePool",
                "Concat",
                "Conv",
                "ConvTranspose",
                "Flatten",
                "Gemm",
                "GlobalAveragePool",
                "LeakyRelu",
                "MatMul",
                "Mul",
                "ReduceMean",
                "Resize",
                "Sigmoid",
            }
        ),
        weight_symmetric=None,
        weight_per_channel=True,
        act_symmetric=False,
        act_signed=False,
        int32_bias=True,
        fuse_residual_add=False,
        int8_kernels=True,
        ends_on_codes=True,
        any_act_grid=True,
        weight_blocks=frozenset({"Conv", "Gemm", "MatMul"}),
        recurrent_weights=True,
    )
    files = (QUANTIZED,)

    def write(self, export: Export, options: TargetOptions) -> list[Path]:
        """Write the quantized model."""
        del options
        return export.write_quantized(self.spec)


TARGET = OnnxRuntime()
