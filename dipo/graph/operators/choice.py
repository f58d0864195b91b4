"""Operators that choose or replace elements by computed places, or put them in order."""

from __future__ import annotations

from functools import partial

from dipo.graph.operators.record import Kind, Moves, Operator, Sign, built_by

_INDEXING = "dipo.graph.ops.indexing"
_REDUCTION = "dipo.graph.ops.reduction"

_choice = partial(
    Operator,
    kind=Kind.MOVEMENT,
    sign=Sign.KEPT,
    homogeneous=True,
    keeps_shifts=True,
    channels=None,
    moments=None,
    full_integer=True,  # from a constant table as often as from activations: its output has a range of its own
    moves=Moves.SOME,
    data_constants=True,
)
# Their second input holds indices, their third one data.
_replacement = partial(_choice, moves=None, kind=Kind.ELEMENTWISE, data_inputs=3, homogeneous=False, keeps_shifts=False)
_order = partial(_choice, data_constants=False)
_with_places = partial(_order, moves=None, kind=Kind.REDUCTION)
"""Those that also give the places, as another output."""

OPERATORS = (
    _choice(name="GatherElements", torch=built_by(f"{_INDEXING}:gather_elements")),
    _choice(name="GatherND", torch=built_by(f"{_INDEXING}:gather_nd")),
    _replacement(name="Scatter", torch=built_by(f"{_INDEXING}:scatter_elements")),
    _replacement(name="ScatterElements", torch=built_by(f"{_INDEXING}:scatter_elements")),
    _replacement(name="ScatterND", torch=built_by(f"{_INDEXING}:scatter_nd")),
    _replacement(name="TensorScatter", torch=built_by(f"{_INDEXING}:tensor_scatter"), data_inputs=2),
    _order(name="Compress", sized_by_numbers=True, torch=built_by(f"{_INDEXING}:compress")),
    _with_places(name="Unique", sized_by_numbers=True, torch=built_by(f"{_INDEXING}:unique")),
    _with_places(name="TopK", sized_by=(1,), torch=built_by(f"{_REDUCTION}:top_k")),
)
