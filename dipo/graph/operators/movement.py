"""Operators that move values."""

from __future__ import annotations

from functools import partial

from dipo.graph.operators.record import Channels, Kind, MomentRule, Moves, Operator, Saturation, Sign, built_by, same_as

_OPS = "dipo.graph.ops.shape"

_movement = partial(
    Operator,
    kind=Kind.MOVEMENT,
    sign=Sign.KEPT,
    homogeneous=True,
    keeps_shifts=True,
    channels=None,
    moments=MomentRule.MOVED,
    full_integer=False,
    saturation=Saturation.PASSED,
)
_same = partial(_movement, moves=Moves.ALL, channels=Channels.KEPT, moments=MomentRule.SAME)
_rearrangement = partial(
    _movement,
    moves=Moves.ALL,
    channels=Channels.REARRANGED,
    moments=MomentRule.REARRANGED,
    on_codes=True,
)

OPERATORS = (
    _same(name="Identity", torch=same_as("dipo.graph.ops.elementwise:identity"), on_codes=True),
    _same(name="Dropout", random=True, torch=built_by("dipo.graph.ops.elementwise:dropout")),
    _rearrangement(name="Reshape", sized_by=(1,), torch=built_by(f"{_OPS}:reshape")),
    _rearrangement(name="Flatten", torch=built_by(f"{_OPS}:flatten"), resizes=True),
    _rearrangement(name="Transpose", torch=built_by(f"{_OPS}:transpose")),
    _rearrangement(name="Squeeze", sized_by=(1,), torch=built_by(f"{_OPS}:squeeze")),
    _rearrangement(name="Unsqueeze", sized_by=(1,), torch=built_by(f"{_OPS}:unsqueeze")),
    _movement(name="DepthToSpace", torch=built_by(f"{_OPS}:depth_to_space"), moves=Moves.ALL, resizes=True),
    _movement(name="SpaceToDepth", torch=built_by(f"{_OPS}:space_to_depth"), moves=Moves.ALL, resizes=True),
    _movement(name="Split", sized_by=(1,), torch=built_by(f"{_OPS}:split"), moves=Moves.SOME),
    _movement(name="Slice", sized_by=(1, 2, 3, 4), torch=built_by(f"{_OPS}:slice_"), moves=Moves.SOME, on_codes=True),
    _movement(name="ReverseSequence", torch=built_by(f"{_OPS}:reverse_sequence"), moves=Moves.ALL),
    _movement(name="Expand", sized_by=(1,), torch=built_by(f"{_OPS}:expand"), moves=Moves.SOME),
    _movement(name="Tile", sized_by=(1,), torch=built_by(f"{_OPS}:tile"), moves=Moves.SOME),
    # Gathers as often from a constant table as from activations, so its output has a range of its own.
    _movement(
        name="Gather", torch=built_by(f"{_OPS}:gather"), moves=Moves.SOME, full_integer=True, data_constants=True
    ),
    _movement(
        name="Pad", sized_by=(1, 3), torch=built_by("dipo.graph.ops.padding:pad"), moves=Moves.PADDED, on_codes=True,
        data_inputs=None, homogeneous=False, keeps_shifts=False,
    ),
    # Zeros stand beside what is left.
    _movement(
        name="CenterCropPad", sized_by=(1,), torch=built_by("dipo.graph.ops.padding:center_crop_pad"),
        moves=Moves.PADDED, homogeneous=False, keeps_shifts=False, moments=None,
    ),
    _movement(
        name="Trilu", torch=built_by(f"{_OPS}:trilu"), moves=Moves.PADDED, homogeneous=False, keeps_shifts=False,
        moments=None,
    ),
    # The ranges of its inputs may differ.
    _movement(
        name="Concat", torch=built_by(f"{_OPS}:concat"), moves=Moves.JOINED, full_integer=True, data_inputs=None,
        data_constants=True, qoperator="QLinearConcat",
    ),
)  # fmt: skip
