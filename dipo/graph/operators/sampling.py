"""Operators that read or write images at places of their own."""

from __future__ import annotations

from functools import partial

from dipo.graph.operators.record import Kind, Operator, Sign, built_by

_OPS = "dipo.graph.ops.sampling"

_sampling = partial(
    Operator,
    kind=Kind.SAMPLING,
    sign=Sign.ANY,
    homogeneous=False,
    keeps_shifts=False,
    channels=None,
    moments=None,
    full_integer=True,
    resizes=True,
)

OPERATORS = (
    _sampling(name="GridSample", torch=built_by(f"{_OPS}:grid_sample")),
    _sampling(name="AffineGrid", sized_by=(1,), torch=built_by(f"{_OPS}:affine_grid")),
    _sampling(name="Col2Im", sized_by=(1, 2), torch=built_by(f"{_OPS}:col_to_im")),
    _sampling(name="MaxUnpool", sized_by=(2,), torch=built_by(f"{_OPS}:max_unpool")),
    _sampling(name="RoiAlign", torch=built_by(f"{_OPS}:roi_align")),
)
