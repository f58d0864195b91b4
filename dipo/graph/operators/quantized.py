"""Operators that read or write integer codes: a file with any of them is not a float network.

The domain `com.microsoft` is ONNX Runtime's.
"""

from __future__ import annotations

from functools import partial

from dipo.graph.operators.record import Kind, Operator, Sign

MICROSOFT = "com.microsoft"

_quantized = partial(
    Operator,
    kind=Kind.QUANTIZED,
    torch=None,
    sign=Sign.ANY,
    homogeneous=False,
    keeps_shifts=False,
    channels=None,
    moments=None,
    full_integer=False,
    data_inputs=None,
)

_OWN = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "ConvInteger", "MatMulInteger", "QLinearConv",
        "QLinearMatMul")  # fmt: skip
_OF_MICROSOFT = ("MatMulIntegerToFloat", "MatMulNBits", "QGemm", "QLinearAdd", "QLinearAveragePool", "QLinearConcat",
                 "QLinearGlobalAveragePool", "QLinearLeakyRelu", "QLinearMul", "QLinearSigmoid")  # fmt: skip

OPERATORS = (
    *(_quantized(name=name) for name in _OWN),
    *(_quantized(name=name, domain=MICROSOFT) for name in _OF_MICROSOFT),
)
