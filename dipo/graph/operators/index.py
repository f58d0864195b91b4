"""Operators that compute integers or booleans: shapes, places, comparisons, logic."""

from __future__ import annotations

from functools import partial

from dipo.graph.operators.record import Kind, Operator, Sign, built_by, same_as

_COMPARISON = "dipo.graph.ops.comparison"
_REDUCTION = "dipo.graph.ops.reduction"
_SHAPES = "dipo.graph.ops.shape_arithmetic"

_index = partial(
    Operator,
    kind=Kind.INDEX,
    sign=Sign.ANY,
    homogeneous=False,
    keeps_shifts=False,
    channels=None,
    moments=None,
    full_integer=False,
)
_of_two = partial(_index, data_inputs=2)

OPERATORS = (
    _index(name="Shape", torch=built_by(f"{_SHAPES}:shape"), reads_shape=True),
    _index(name="Size", torch=same_as(f"{_SHAPES}:size"), reads_shape=True),
    _index(name="NonZero", sized_by_numbers=True, torch=same_as("dipo.graph.ops.indexing:non_zero")),
    _index(name="ArgMax", torch=built_by(f"{_REDUCTION}:arg_max")),
    _index(name="ArgMin", torch=built_by(f"{_REDUCTION}:arg_min")),
    _index(name="IsNaN", torch=same_as("torch:isnan")),
    _index(name="IsInf", torch=built_by(f"{_COMPARISON}:is_inf")),
    _index(name="Not", torch=same_as("torch:logical_not")),
    _of_two(name="And", torch=same_as("torch:logical_and")),
    _of_two(name="Or", torch=same_as("torch:logical_or")),
    _of_two(name="Xor", torch=same_as("torch:logical_xor")),
    _of_two(name="Equal", torch=same_as("torch:eq")),
    _of_two(name="Greater", torch=same_as("torch:gt")),
    _of_two(name="GreaterOrEqual", torch=same_as("torch:ge")),
    _of_two(name="Less", torch=same_as("torch:lt")),
    _of_two(name="LessOrEqual", torch=same_as("torch:le")),
    _index(name="BitwiseNot", torch=same_as("torch:bitwise_not")),
    _of_two(name="BitwiseAnd", torch=same_as("torch:bitwise_and")),
    _of_two(name="BitwiseOr", torch=same_as("torch:bitwise_or")),
    _of_two(name="BitwiseXor", torch=same_as("torch:bitwise_xor")),
    _of_two(name="BitShift", torch=built_by(f"{_COMPARISON}:bit_shift")),
)
