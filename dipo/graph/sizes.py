"""Values that hold sizes, or are computed from sizes alone: they depend on no number of any sample."""

from __future__ import annotations

from collections.abc import Container

import onnx_ir as ir

SHAPE_OPERATORS = frozenset({"Shape", "Size"})
"""Operators whose result does not depend on the numbers that they read."""
SIZED_BY_NUMBERS = frozenset({"Compress", "NonMaxSuppression", "NonZero", "Unique"})
"""Operators whose result has a size that depends on the numbers that they read."""
_RANDOM = frozenset(
    {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
)


def computed_from_sizes(model: ir.Model) -> frozenset[str]:
    """Return the names of the values of a network that are computed from sizes and constants alone.

    The size of what was itself sized by numbers, such as the boxes that are left of a detector's, does not count; nor
    does anything behind operators of which nothing is known.
    """
    sizes: set[ir.Value] = set()
    unsized: set[ir.Value] = set()
    for node in model.graph:
        read = [value for value in node.inputs if value is not None and value.const_value is None]
        if any(value in unsized for value in read) or _makes_sizes(node, sizes):
            unsized.update(node.outputs)
        elif node.op_type in SHAPE_OPERATORS or (node.op_type not in _RANDOM and all(v in sizes for v in read)):
            sizes.update(node.outputs)
    return frozenset(value.name for value in sizes if value.name)


def _makes_sizes(node: ir.Node, sizes: Container[ir.Value]) -> bool:
    """Return whether the sizes of the node's outputs may depend on the numbers that it reads."""
    if node.op_type in SIZED_BY_NUMBERS or node.op_type in _WITH_GRAPHS or node.domain != "":
        return True
    options = [node.inputs[port] for port in _SIZED_BY.get(node.op_type, ()) if port < len(node.inputs)]
    return any(value is not None and value.const_value is None and value not in sizes for value in options)


_WITH_GRAPHS = frozenset({"If", "Loop", "Scan", "SequenceMap"})
_SIZED_BY: dict[str, tuple[int, ...]] = {
    "AffineGrid": (1,), "BlackmanWindow": (0,), "CenterCropPad": (1,), "Col2Im": (1, 2), "ConstantOfShape": (0,),
    "DFT": (1,), "Expand": (1,), "HammingWindow": (0,), "HannWindow": (0,), "MaxUnpool": (2,),
    "MelWeightMatrix": (0, 1, 2, 3, 4), "OneHot": (1,), "Pad": (1, 3), "Range": (0, 1, 2), "Reshape": (1,),
    "Resize": (2, 3), "STFT": (1, 3), "Slice": (1, 2, 3, 4), "Split": (1,), "SplitToSequence": (1,), "Squeeze": (1,),
    "Tile": (1,), "TopK": (1,), "Unsqueeze": (1,), "Upsample": (1,),
}  # fmt: skip
"""Inputs whose numbers are sizes or decide on them, by operator; those of reductions, axes, are constants."""
