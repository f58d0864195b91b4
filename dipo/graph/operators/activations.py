"""Activation functions."""

from __future__ import annotations

from functools import partial

from dipo.graph.operators.record import (
    Channels,
    Kind,
    Limits,
    LimitsFrom,
    MomentRule,
    Operator,
    Saturation,
    Sign,
    built_by,
    same_as,
)

_OPS = "dipo.graph.ops.elementwise"

_activation = partial(Operator, kind=Kind.ACTIVATION, channels=Channels.KEPT)
_curve = partial(
    _activation,
    sign=Sign.KEPT,
    homogeneous=False,
    keeps_shifts=False,
    moments=MomentRule.CURVE,
    full_integer=True,
)
_clip = partial(
    _activation,
    sign=Sign.KEPT,
    keeps_shifts=True,
    moments=MomentRule.CLIPPED,
    full_integer=False,
    data_constants=True,
    saturation=Saturation.PASSED,
)
_bent = partial(_activation, sign=Sign.KEPT, homogeneous=True, keeps_shifts=True, full_integer=True)
"""Piecewise linear functions with a bend at 0."""

OPERATORS = (
    _clip(
        name="Relu", torch=same_as("torch.nn.functional:relu"), homogeneous=True, limits=Limits(low=0.0),
        sign=Sign.NEVER_NEGATIVE, data_constants=False,
    ),
    # Homogeneous only if its limits are scaled too.
    _clip(name="Clip", torch=built_by(f"{_OPS}:clip"), homogeneous=False, limits=Limits(LimitsFrom.ARGUMENTS)),
    _bent(
        name="LeakyRelu", torch=built_by(f"{_OPS}:leaky_relu"), moments=MomentRule.LEAKY_RELU,
        qoperator="QLinearLeakyRelu",
    ),
    _bent(name="PRelu", torch=same_as(f"{_OPS}:prelu"), moments=MomentRule.PRELU, data_constants=True),
    _curve(name="Elu", torch=built_by(f"{_OPS}:elu"), keeps_shifts=True),
    _curve(name="Selu", torch=built_by(f"{_OPS}:selu")),
    _curve(name="Celu", torch=built_by(f"{_OPS}:celu"), keeps_shifts=True),
    _curve(name="ThresholdedRelu", torch=built_by(f"{_OPS}:thresholded_relu")),
    _curve(name="Shrink", torch=built_by(f"{_OPS}:shrink"), sign=Sign.ANY),
    _curve(name="Softplus", torch=same_as(f"{_OPS}:softplus"), sign=Sign.NEVER_NEGATIVE),
    _curve(name="Softsign", torch=same_as("torch.nn.functional:softsign"), output_range=(-1, 1)),
    _curve(
        name="Sigmoid", torch=same_as("torch:sigmoid"), sign=Sign.NEVER_NEGATIVE, output_range=(0, 1), own_grid=True,
        qoperator="QLinearSigmoid",
    ),
    _curve(
        name="HardSigmoid", torch=built_by(f"{_OPS}:hard_sigmoid"), sign=Sign.NEVER_NEGATIVE, output_range=(0, 1)
    ),
    _curve(name="HardSwish", torch=same_as("torch.nn.functional:hardswish")),
    _curve(name="Swish", torch=built_by(f"{_OPS}:swish")),
    _curve(name="Tanh", torch=same_as("torch:tanh"), output_range=(-1, 1), own_grid=True),
    _curve(name="Gelu", torch=built_by(f"{_OPS}:gelu")),
    _curve(name="Mish", torch=same_as("torch.nn.functional:mish")),
)  # fmt: skip
