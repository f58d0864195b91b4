"""Operators that relate the positions of a sequence, or the axes of tensors, to each other by products and sums."""

from __future__ import annotations

from functools import partial

from dipo.graph.operators.record import Kind, Operator, Sign, built_by, same_as

_ATTENTION = "dipo.graph.ops.attention"
_LINEAR = "dipo.graph.ops.linear"
_SIGNAL = "dipo.graph.ops.signal"

_product = partial(
    Operator,
    kind=Kind.PRODUCT,
    sign=Sign.ANY,
    homogeneous=False,
    keeps_shifts=False,
    channels=None,
    moments=None,
    full_integer=True,
)

OPERATORS = (
    _product(name="Attention", torch=built_by(f"{_ATTENTION}:attention"), data_inputs=6, data_constants=True),
    _product(name="LinearAttention", torch=built_by(f"{_ATTENTION}:linear_attention"), data_inputs=6),
    _product(
        name="CausalConvWithState", torch=built_by(f"{_ATTENTION}:causal_conv_with_state"), data_inputs=4,
        data_constants=True,
    ),
    _product(
        name="RotaryEmbedding", torch=built_by(f"{_ATTENTION}:rotary_embedding"), data_inputs=3, data_constants=True
    ),
    _product(name="Einsum", torch=built_by(f"{_LINEAR}:einsum"), data_inputs=None, data_constants=True),
    _product(name="Det", torch=same_as("torch.linalg:det")),
    _product(name="DFT", sized_by=(1,), torch=built_by(f"{_SIGNAL}:dft")),
    _product(name="STFT", sized_by=(1, 3), torch=built_by(f"{_SIGNAL}:stft")),
)  # fmt: skip
