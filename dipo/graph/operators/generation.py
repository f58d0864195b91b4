"""Operators that make numbers from sizes, limits or indices, not from activations."""

from __future__ import annotations

from functools import partial

from dipo.graph.operators.record import Kind, Operator, Sign, built_by

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
    _generation(name="ConstantOfShape", torch=built_by(f"{_SHAPES}:constant_of_shape")),
    _generation(name="Range", torch=built_by(f"{_SHAPES}:range_"), data_inputs=3),
    _generation(name="EyeLike", torch=built_by(f"{_SHAPES}:eye_like"), reads_shape=True),
    _generation(name="OneHot", torch=built_by("dipo.graph.ops.indexing:one_hot")),
)
