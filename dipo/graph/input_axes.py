"""The axis on which each of a network's inputs counts the samples, by the shapes that its file declares."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Shape = tuple[int | str | None, ...]
"""Sizes of a declared shape: numbers, names of dynamic dimensions, or None for dynamic ones without a name."""
InputAxes = Mapping[str, int | None]
"""The axis of the samples by name of the input; None for one that is the same for all samples, as a rate is."""


def find_input_axes(shapes: Mapping[str, Shape]) -> dict[str, int | None]:
    """Return the axis on which each input counts the samples.

    Most inputs begin with the batch. A recurrent state has it on another axis, where the others' batch stands; an input
    without it, such as a mask, a sampling rate or a threshold, holds for all samples of a batch.

    Args:
        shapes: Declared shapes by name of the input, in their order.
    """
    ranked = {name: shape for name, shape in shapes.items() if shape}
    dynamic = {name: shape for name, shape in ranked.items() if not isinstance(shape[0], int)}
    if dynamic:
        names = Counter(shape[0] for shape in dynamic.values() if shape[0] is not None)
        batch: int | str | None = names.most_common(1)[0][0] if names else None
    else:
        sizes = Counter(shape[0] for shape in ranked.values())
        batch = sizes.most_common(1)[0][0] if sizes else None
    inner = {size for shape in ranked.values() for size in shape[1:] if isinstance(size, str)}
    return {name: _axis(shape, batch, inner) for name, shape in shapes.items()}


def _axis(shape: Shape, batch: int | str | None, inner: set[str]) -> int | None:
    if not shape:
        return None
    if shape[0] == batch:
        return 0
    if batch in shape:
        return shape.index(batch)
    if isinstance(shape[0], str):
        # Another name for the batch, unless it is that of something else, such as the length of a sequence.
        return None if shape[0] in inner else 0
    if shape[0] is None:
        return 0
    # A dynamic dimension without the batch's name is the batch, where it is the only one.
    free = [axis for axis, size in enumerate(shape) if size is None or (isinstance(size, str) and size not in inner)]
    return free[0] if len(free) == 1 and not isinstance(batch, int) else None


def samples_first(shape: Shape, axis: int | None) -> Shape:
    """Return the shape of an input with the samples on its first axis, dynamic where it had none."""
    if axis is None:
        return ("batch", *shape)
    return (shape[axis], *shape[:axis], *shape[axis + 1 :])


def in_file(arrays: Mapping[str, NDArray[Any]], axes: InputAxes) -> dict[str, NDArray[Any]]:
    """Return inputs as a file takes them.

    Args:
        arrays: Inputs [samples, ...] by name; those without an axis have the same row for all samples.
        axes: Axes of the samples; inputs that are not named begin with them.
    """
    found = {}
    for name, array in arrays.items():
        axis = axes.get(name, 0)
        found[name] = np.ascontiguousarray(array[0] if axis is None else np.moveaxis(array, 0, axis))
    return found
