"""Reductions over axes, and sums along one."""

from __future__ import annotations

from functools import partial

from dipo.graph.operators.record import Channels, Kind, MomentRule, Moves, Operator, Sign, built_by

_OPS = "dipo.graph.ops.reduction"

_reduction = partial(
    Operator,
    kind=Kind.REDUCTION,
    sign=Sign.KEPT,
    homogeneous=False,
    keeps_shifts=False,
    channels=Channels.REDUCED,
    moments=None,
    full_integer=True,
    resizes=True,
)
_norm = partial(_reduction, sign=Sign.NEVER_NEGATIVE, homogeneous=True)
_extremum = partial(_reduction, homogeneous=True, keeps_shifts=True, moves=Moves.PICKED)
_cumulative = partial(_reduction, channels=None, resizes=False)

OPERATORS = (
    _reduction(
        name="ReduceMean", torch=built_by(f"{_OPS}:reduce_mean"), homogeneous=True, keeps_shifts=True,
        moments=MomentRule.AVERAGED,
    ),
    _extremum(name="ReduceMax", torch=built_by(f"{_OPS}:reduce_max")),
    _extremum(name="ReduceMin", torch=built_by(f"{_OPS}:reduce_min")),
    _reduction(name="ReduceSum", torch=built_by(f"{_OPS}:reduce_sum"), homogeneous=True),
    _reduction(name="ReduceProd", torch=built_by(f"{_OPS}:reduce_prod")),
    _norm(name="ReduceL1", torch=built_by(f"{_OPS}:reduce_l1")),
    _norm(name="ReduceL2", torch=built_by(f"{_OPS}:reduce_l2")),
    _norm(name="ReduceSumSquare", torch=built_by(f"{_OPS}:reduce_sum_square"), homogeneous=False),
    _reduction(name="ReduceLogSum", torch=built_by(f"{_OPS}:reduce_log_sum"), sign=Sign.ANY),
    _reduction(name="ReduceLogSumExp", torch=built_by(f"{_OPS}:reduce_log_sum_exp"), keeps_shifts=True),
    _cumulative(name="CumSum", torch=built_by(f"{_OPS}:cum_sum"), homogeneous=True),
    _cumulative(name="CumProd", torch=built_by(f"{_OPS}:cum_prod")),
)  # fmt: skip
