"""Element-wise operators that are no activation functions, on one tensor or several."""

from __future__ import annotations

from functools import partial

from dipo.graph.operators.record import (
    Channels,
    IntegerKernel,
    Kind,
    Limits,
    LimitsFrom,
    MomentRule,
    Operand,
    Operator,
    Saturation,
    Sign,
    built_by,
    same_as,
)

_OPS = "dipo.graph.ops.elementwise"

_of_one = partial(
    Operator,
    kind=Kind.ELEMENTWISE,
    homogeneous=False,
    keeps_shifts=False,
    channels=Channels.KEPT,
    moments=MomentRule.CURVE,
    full_integer=True,
)
_of_two = partial(
    Operator,
    kind=Kind.ELEMENTWISE,
    homogeneous=False,  # between two layers, only if its constant is scaled too: `algo.layer_pairs` checks that
    keeps_shifts=False,
    channels=None,
    full_integer=True,
    data_inputs=2,
    data_constants=True,
)
_of_many = partial(_of_two, data_inputs=None)

OPERATORS = (
    _of_one(name="Abs", torch=same_as("torch:abs"), sign=Sign.NEVER_NEGATIVE, homogeneous=True, keeps_shifts=True),
    _of_one(name="Neg", torch=same_as("torch:neg"), sign=Sign.ANY, homogeneous=True),
    _of_one(name="Sign", torch=same_as("torch:sign"), sign=Sign.KEPT, output_range=(-1, 1)),
    _of_one(name="Floor", torch=same_as("torch:floor"), sign=Sign.KEPT),
    _of_one(name="Ceil", torch=same_as("torch:ceil"), sign=Sign.KEPT),
    _of_one(name="Round", torch=same_as("torch:round"), sign=Sign.KEPT),
    _of_one(name="Exp", torch=same_as("torch:exp"), sign=Sign.NEVER_NEGATIVE),
    _of_one(name="Log", torch=same_as("torch:log"), sign=Sign.ANY, moments=None),
    _of_one(name="Sqrt", torch=same_as("torch:sqrt"), sign=Sign.NEVER_NEGATIVE),
    _of_one(name="Reciprocal", torch=same_as("torch:reciprocal"), sign=Sign.KEPT, moments=None),
    _of_one(name="Erf", torch=same_as("torch:erf"), sign=Sign.KEPT, output_range=(-1, 1)),
    _of_one(name="Tan", torch=same_as("torch:tan"), sign=Sign.ANY, moments=None),
    _of_one(name="Asin", torch=same_as("torch:asin"), sign=Sign.KEPT, moments=None),
    _of_one(name="Acos", torch=same_as("torch:acos"), sign=Sign.NEVER_NEGATIVE, moments=None),
    _of_one(name="Atan", torch=same_as("torch:atan"), sign=Sign.KEPT),
    _of_one(name="Sinh", torch=same_as("torch:sinh"), sign=Sign.KEPT),
    _of_one(name="Cosh", torch=same_as("torch:cosh"), sign=Sign.NEVER_NEGATIVE),
    _of_one(name="Asinh", torch=same_as("torch:asinh"), sign=Sign.KEPT),
    _of_one(name="Acosh", torch=same_as("torch:acosh"), sign=Sign.NEVER_NEGATIVE, moments=None),
    _of_one(name="Atanh", torch=same_as("torch:atanh"), sign=Sign.KEPT, moments=None),
    _of_one(name="Sin", torch=same_as("torch:sin"), sign=Sign.ANY, output_range=(-1, 1)),
    _of_one(name="Cos", torch=same_as("torch:cos"), sign=Sign.ANY, output_range=(-1, 1)),
    _of_two(
        name="Add", torch=same_as("torch:add"), sign=Sign.KEPT, moments=MomentRule.SUM, operand=Operand.SUMMAND,
        neutral=0, integer_kernel=IntegerKernel.CODES, qoperator="QLinearAdd", saturation=Saturation.SUM,
    ),
    _of_two(
        name="Sub", torch=same_as("torch:sub"), sign=Sign.ANY, moments=MomentRule.DIFFERENCE, neutral=0,
        saturation=Saturation.DIFFERENCE,
    ),
    _of_two(
        name="Mul", torch=same_as("torch:mul"), sign=Sign.KEPT, moments=MomentRule.PRODUCT, operand=Operand.FACTOR,
        neutral=1, integer_kernel=IntegerKernel.CODES, qoperator="QLinearMul",
    ),
    _of_two(name="Div", torch=same_as(f"{_OPS}:divide"), sign=Sign.KEPT, moments=MomentRule.QUOTIENT, neutral=1),
    _of_two(
        name="Mod", torch=built_by("dipo.graph.ops.comparison:mod"), sign=Sign.KEPT, moments=None,
    ),
    _of_two(name="SwiGLU", torch=built_by(f"{_OPS}:swiglu"), sign=Sign.KEPT, moments=None),
    # The exponent is an option.
    _of_two(name="Pow", torch=built_by(f"{_OPS}:power"), sign=Sign.KEPT, moments=None, data_constants=False),
    _of_many(
        name="Min", torch=built_by(f"{_OPS}:minimum"), sign=Sign.KEPT, moments=MomentRule.MINIMUM,
        limits=Limits(LimitsFrom.OPERANDS), saturation=Saturation.PASSED,
    ),
    _of_many(
        name="Max", torch=built_by(f"{_OPS}:maximum"), sign=Sign.KEPT, moments=MomentRule.MAXIMUM,
        limits=Limits(LimitsFrom.OPERANDS), saturation=Saturation.PASSED,
    ),
    _of_many(
        name="Sum", torch=built_by(f"{_OPS}:total"), sign=Sign.KEPT, moments=MomentRule.SUM, saturation=Saturation.SUM
    ),
    _of_many(name="Mean", torch=built_by(f"{_OPS}:average"), sign=Sign.KEPT, moments=None),
    _of_many(
        name="Where", torch=same_as("torch:where"), sign=Sign.KEPT, moments=None, saturation=Saturation.PASSED
    ),
)  # fmt: skip
