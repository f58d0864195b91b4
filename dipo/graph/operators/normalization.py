"""Normalizations: by given statistics, by the statistics of the input itself, and to a sum of one."""

from __future__ import annotations

from functools import partial

from dipo.graph.operators.record import Channels, Kind, MomentRule, Operator, Saturation, Sign, built_by

_OPS = "dipo.graph.ops.normalization"

_normalization = partial(
    Operator,
    kind=Kind.NORMALIZATION,
    sign=Sign.ANY,
    homogeneous=False,
    keeps_shifts=False,
    channels=None,
    moments=MomentRule.NORMALIZED,
    full_integer=True,
    data_constants=True,
)
_by_norm = partial(_normalization, sign=Sign.KEPT, moments=None, data_constants=False)
_softmax = partial(_normalization, data_constants=False, distribution=True)

OPERATORS = (
    # Its moments are known from its statistics (`graph.batch_norm`) before any rule is asked.
    _normalization(
        name="BatchNormalization", torch=built_by(f"{_OPS}:batch_normalization"), channels=Channels.KEPT, moments=None
    ),
    _normalization(name="LayerNormalization", torch=built_by(f"{_OPS}:layer_normalization")),
    _normalization(name="InstanceNormalization", torch=built_by(f"{_OPS}:instance_normalization")),
    _normalization(name="GroupNormalization", torch=built_by(f"{_OPS}:group_normalization")),
    _normalization(name="RMSNormalization", torch=built_by(f"{_OPS}:rms_normalization"), moments=None),
    _by_norm(name="LRN", torch=built_by(f"{_OPS}:local_response_normalization")),
    _by_norm(name="LpNormalization", torch=built_by(f"{_OPS}:lp_normalization")),
    _by_norm(
        name="MeanVarianceNormalization", torch=built_by(f"{_OPS}:mean_variance_normalization"), sign=Sign.ANY
    ),
    _by_norm(
        name="Hardmax", torch=built_by("dipo.graph.ops.elementwise:hardmax"), sign=Sign.NEVER_NEGATIVE,
        output_range=(0, 1),
    ),
    _softmax(
        name="Softmax", torch=built_by("dipo.graph.ops.elementwise:softmax"), sign=Sign.NEVER_NEGATIVE,
        moments=MomentRule.SOFTMAX, output_range=(0, 1), own_grid=True,
        saturation=Saturation.ROWS,
    ),
    _softmax(name="LogSoftmax", torch=built_by("dipo.graph.ops.elementwise:log_softmax"), moments=None),
)  # fmt: skip
