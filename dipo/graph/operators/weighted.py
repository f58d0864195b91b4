"""Operators that multiply by a weight."""

from __future__ import annotations

from functools import partial

from dipo.graph.operators.record import (
    IntegerKernel,
    Kind,
    MomentRule,
    Operator,
    Sign,
    Weight,
    built_by,
    same_as,
)

_OPS = "dipo.graph.ops.linear"

_layer = partial(
    Operator,
    kind=Kind.WEIGHTED,
    sign=Sign.ANY,
    homogeneous=False,  # for their bias
    keeps_shifts=False,
    channels=None,
    moments=MomentRule.LAYER,
    full_integer=True,
)
_product = partial(_layer, integer_kernel=IntegerKernel.CODES_OR_FLOATS)

OPERATORS = (
    _layer(
        name="Conv",
        torch=built_by(f"{_OPS}:conv"),
        weight=Weight(channel_axis=0, spatial=True),
        integer_kernel=IntegerKernel.CODES,
        qoperator="QLinearConv",
    ),
    _layer(name="ConvTranspose", torch=built_by(f"{_OPS}:conv_transpose"), weight=Weight(channel_axis=1, spatial=True)),
    _product(
        name="Gemm",
        torch=built_by(f"{_OPS}:gemm"),
        weight=Weight(channel_axis=1, turned_by="transB"),
        qoperator="QGemm",
    ),
    _product(
        name="MatMul",
        torch=same_as("torch:matmul"),
        weight=Weight(channel_axis=-1, bias_port=None),
        data_constants=True,  # a matrix in front is no weight
        qoperator="QLinearMatMul",
    ),
)
