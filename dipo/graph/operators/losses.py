"""Losses."""

from __future__ import annotations

from functools import partial

from dipo.graph.operators.record import Kind, Operator, Sign, built_by

_OPS = "dipo.graph.ops.losses"

_loss = partial(
    Operator,
    kind=Kind.REDUCTION,
    data_inputs=3,
    sign=Sign.ANY,
    homogeneous=False,
    keeps_shifts=False,
    channels=None,
    moments=None,
    full_integer=True,
)

OPERATORS = (
    _loss(name="NegativeLogLikelihoodLoss", torch=built_by(f"{_OPS}:negative_log_likelihood")),
    _loss(name="SoftmaxCrossEntropyLoss", torch=built_by(f"{_OPS}:softmax_cross_entropy")),
)
