"""Operators that torch does not compute, of which something is known nevertheless: ONNX Runtime computes them."""

from __future__ import annotations

from functools import partial

from dipo.graph.operators.record import Kind, Operator, Sign

_foreign = partial(
    Operator,
    kind=Kind.OTHER,
    torch=None,
    sign=Sign.ANY,
    homogeneous=False,
    keeps_shifts=False,
    channels=None,
    moments=None,
    full_integer=False,
)

OPERATORS = (
    _foreign(name="LSTM"),
    _foreign(name="GRU"),
    _foreign(name="RNN"),
    _foreign(name="NonMaxSuppression", data_inputs=2, sized_by_numbers=True),
    *(_foreign(name=name, random=True, data_inputs=None) for name in (
        "Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike",
    )),
)  # fmt: skip
