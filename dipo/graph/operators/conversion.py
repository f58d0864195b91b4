"""Conversions between types of elements."""

from __future__ import annotations

from functools import partial

from dipo.graph.operators.record import Channels, Kind, Operator, Sign, built_by

_OPS = "dipo.graph.ops.types"

# The output may be integers, which have no range.
_conversion = partial(
    Operator,
    kind=Kind.CONVERSION,
    sign=Sign.KEPT,
    homogeneous=False,
    keeps_shifts=False,
    channels=Channels.KEPT,
    moments=None,
    full_integer=False,
)

OPERATORS = (
    _conversion(name="Cast", torch=built_by(f"{_OPS}:cast")),
    _conversion(name="CastLike", torch=built_by(f"{_OPS}:cast_like")),
    _conversion(name="BitCast", torch=built_by(f"{_OPS}:bit_cast"), sign=Sign.ANY),
)
