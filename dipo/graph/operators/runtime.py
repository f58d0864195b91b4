"""Operators of ONNX's that torch does not compute, as far as more is known of them than that."""

from __future__ import annotations

from functools import partial

from dipo.graph.operators.record import Kind, Operator, Sign

_runtime = partial(
    Operator,
    torch=None,
    sign=Sign.ANY,
    homogeneous=False,
    keeps_shifts=False,
    channels=None,
    moments=None,
    full_integer=False,
    data_inputs=None,
)
_RANDOM = ("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike")

OPERATORS = (
    *(_runtime(name=name, kind=Kind.RECURRENT, recurrent_weights=(1, 2)) for name in ("GRU", "LSTM", "RNN")),
    _runtime(name="NonMaxSuppression", kind=Kind.INDEX, sized_by_numbers=True),
    _runtime(name="SplitToSequence", kind=Kind.MOVEMENT, sized_by=(1,)),
    *(_runtime(name=name, kind=Kind.GENERATION, random=True) for name in _RANDOM),
)
