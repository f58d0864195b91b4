"""Operators that make numbers from sizes, limits or indices, not from activations."""

from __future__ import annotations

from functools import partial

from dipo.graph.operators.record import Kind, Operator, Sign, built_by

_SIGNAL = "dipo.graph.ops.signal"
_SHAPES = "dipo.graph.ops.shape_arithmetic"

_generation = partial(
    Operator,
    kind=Kind.GENERATION,
    sign=Sign.ANY,
    homogeneous=False,
    keeps_shifts=False,
    channels=None,
    moments=None,
    full_integer=True,
)

OPERATORS = (
    _generation(name="ConstantOfShape", sized_by=(0,), torch=built_by(f"{_SHAPES}:constant_of_shape")),
    _generation(name="Range", sized_by=(0, 1, 2), torch=built_by(f"{_SHAPES}:range_"), data_inputs=3),
    _generation(name="EyeLike", torch=built_by(f"{_SHAPES}:eye_like"), reads_shape=True),
    _generation(name="OneHot", sized_by=(1,), torch=built_by("dipo.graph.ops.indexing:one_hot")),
    *(
        _generation(name=f"{shape}Window", sized_by=(0,), torch=built_by(f"{_SIGNAL}:{shape.lower()}_window"))
        for shape in ("Hann", "Hamming", "Blackman")
    ),
    _generation(
        name="MelWeightMatrix",
        sized_by=(0, 1, 2, 3, 4),
        torch=built_by(f"{_SIGNAL}:mel_weight_matrix"),
        data_inputs=5,
    ),
)
