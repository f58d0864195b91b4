"""Poolings over windows and over all positions, and interpolations."""

from __future__ import annotations

from functools import partial

from dipo.graph.operators.record import (
    Channels,
    IntegerKernel,
    Kind,
    MomentRule,
    Moves,
    Operator,
    Sign,
    built_by,
)

_OPS = "dipo.graph.ops.pooling"

_pooling = partial(
    Operator,
    kind=Kind.POOLING,
    sign=Sign.KEPT,
    homogeneous=True,
    keeps_shifts=True,
    channels=Channels.KEPT,
    moments=MomentRule.POOLED,
)
_interpolation = partial(
    _pooling,
    homogeneous=False,  # if it extrapolates by a constant; `algo.layer_pairs` stops at it
    keeps_shifts=False,
    full_integer=True,
    resizes=True,
    interpolates=True,
)
OPERATORS = (
    _pooling(
        name="MaxPool", torch=built_by(f"{_OPS}:max_pool"), full_integer=False, moves=Moves.PICKED, on_codes=True
    ),
    # It keeps shifts except for the zeros of its padding.
    _pooling(
        name="AveragePool", torch=built_by(f"{_OPS}:average_pool"), full_integer=True,
        integer_kernel=IntegerKernel.CODES, qoperator="QLinearAveragePool",
    ),
    _pooling(
        name="LpPool", torch=built_by(f"{_OPS}:lp_pool"), full_integer=True, sign=Sign.NEVER_NEGATIVE,
        keeps_shifts=False, moments=None,
    ),
    _pooling(
        name="GlobalLpPool", torch=built_by(f"{_OPS}:global_lp_pool"), full_integer=True, sign=Sign.NEVER_NEGATIVE,
        keeps_shifts=False, moments=None, resizes=True,
    ),
    _pooling(
        name="GlobalMaxPool", torch=built_by(f"{_OPS}:global_max_pool"), full_integer=False, moves=Moves.PICKED,
        resizes=True,
    ),
    _pooling(
        name="GlobalAveragePool", torch=built_by(f"{_OPS}:global_average_pool"), full_integer=True, resizes=True,
        integer_kernel=IntegerKernel.CODES, qoperator="QLinearGlobalAveragePool",
    ),
    _interpolation(name="Resize", sized_by=(2, 3), torch=built_by("dipo.graph.ops.resize:resize")),
    _interpolation(name="Upsample", sized_by=(1,), torch=built_by("dipo.graph.ops.resize:upsample")),
)  # fmt: skip
