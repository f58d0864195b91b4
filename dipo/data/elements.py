"""Conversion of samples in Python: arrays, tuples and dictionaries, batched or single.

| element | read as |
|---|---|
| an array, a torch tensor, an image of Pillow | the only input |
| a tuple, or a list of arrays | the inputs in their order, then labels, as a torch DataLoader yields them |
| a mapping | the inputs by name; `labels`, `label` or `y` are labels |

The ranks of the network's inputs decide whether an element is a batch or a single sample.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dipo.data.npz import LABELS
from dipo.data.samples import InputSpec, shape_text, stored_name
from dipo.errors import UserError


@dataclass(frozen=True, eq=False)
class Rows:
    """Consecutive samples, as the user gave them."""

    inputs: dict[str, NDArray[Any]]
    """Arrays [n, ...] by name of the input."""
    labels: NDArray[np.integer] | None
    """Class indices [n]; None without labels."""

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    def first(self, num: int) -> Rows:
        """Return the first samples, at most `num`."""
        inputs = {name: array[:num] for name, array in self.inputs.items()}
        return Rows(inputs, None if self.labels is None else self.labels[:num])


def as_array(value: Any, *, source: str) -> NDArray[Any]:
    """Return the numbers of an array, a tensor, an image or a list.

    Args:
        value: The object; a torch tensor may be on a GPU and require gradients.
        source: Name of the object in messages.

    Raises:
        UserError: It does not hold numbers.
    """
    try:
        if hasattr(value, "detach"):
            value = value.detach().cpu()
            if str(value.dtype) == "torch.bfloat16":  # which numpy does not know; float32 holds all its numbers
                value = value.float()
        array = np.asarray(value)
        if array.dtype.name == "bfloat16":
            array = array.astype(np.float32)
    except (TypeError, ValueError, RuntimeError) as error:
        reason = next(iter(str(error).splitlines()), "")
        raise UserError(f"{source} cannot be made a numpy array ({reason}): give arrays of numbers") from error
    if array.dtype.kind not in "biuf":
        raise UserError(f"{source} is {type(value).__name__} of {array.dtype}: give arrays of numbers that numpy knows")
    return array


def rows_of(element: Any, inputs: Sequence[InputSpec], *, source: str) -> Rows:
    """Return the samples of an element, which is a batch or a single sample.

    Args:
        element: An element of the table above.
        inputs: The network's inputs.
        source: Name of the element in messages.

    Raises:
        UserError: It does not name the inputs, or its ranks or its number of parts do not fit the network's inputs.
    """
    values, labels = _sorted(element, inputs, source)
    arrays = {
        spec.name: as_array(value, source=f"{source}, input '{spec.name}'")
        for spec, value in zip(inputs, values, strict=True)
    }
    single = _is_single(arrays, inputs, source)
    if single:
        arrays = {name: array[None] for name, array in arrays.items()}
    num = len(arrays[inputs[0].name])
    for name, array in arrays.items():
        if len(array) != num:
            raise UserError(
                f"{source} has {num} samples for input '{inputs[0].name}', but {len(array)} for '{name}': give as many "
                "of each"
            )
    return Rows(arrays, None if labels is None else _labels(labels, num, single=single, source=source))


def _sorted(element: Any, inputs: Sequence[InputSpec], source: str) -> tuple[list[Any], Any | None]:
    """Return an element's parts in the order of the inputs, and its labels."""
    if isinstance(element, Mapping):
        keys = {str(key): value for key, value in element.items()}
        names = [stored_name(spec.name, set(keys)) for spec in inputs]
        if None in names:
            wanted = ", ".join(f"'{spec.name}'" for spec in inputs)
            raise UserError(
                f"{source} has {', '.join(sorted(keys)) or 'no keys'}, but the model's inputs are {wanted}: give an "
                "array for each of these names"
            )
        values = [keys[name] for name in names if name is not None]
        return values, next((keys[name] for name in LABELS if name in keys and name not in names), None)
    if not _is_positional(element):
        element = (element,)
    values, more = list(element[: len(inputs)]), list(element[len(inputs) :])
    if len(values) < len(inputs) or len(more) > 1:
        wanted = ", ".join(f"'{spec.name}'" for spec in inputs)
        raise UserError(
            f"{source} has {len(element)} parts, but the model's inputs are {wanted}: give one array for each, and at "
            "most one with labels behind them"
        )
    return values, more[0] if more else None


def _is_positional(element: Any) -> bool:
    """Return whether an element is a sequence of parts, not an array written as a list."""
    if isinstance(element, tuple):
        return True
    return isinstance(element, list) and bool(element) and hasattr(element[0], "__array__") and np.ndim(element[0]) > 0


def _is_single(arrays: Mapping[str, NDArray[Any]], inputs: Sequence[InputSpec], source: str) -> bool:
    missing = {len(spec.shape) - arrays[spec.name].ndim for spec in inputs}
    if missing <= {0} or missing <= {1}:
        return missing == {1}
    for spec in inputs:
        array = arrays[spec.name]
        if len(spec.shape) - array.ndim not in (0, 1):
            raise UserError(
                f"{source} has the shape {shape_text(array.shape)} for input '{spec.name}': give batches of "
                f"{shape_text(spec.shape)} or single samples of {shape_text(spec.sample_shape)}"
            )
    raise UserError(f"{source} is a batch of one input and a single sample of another: give the same of each")


def _labels(value: Any, num: int, *, single: bool, source: str) -> NDArray[np.integer]:
    labels = as_array(value, source=f"{source}, labels")
    if labels.dtype.kind not in "iu":
        raise UserError(
            f"{source} has {labels.dtype} behind the model's inputs: labels are class indices, give integers or leave "
            "them out"
        )
    if labels.size != num or labels.ndim > (1 if single else 2):
        raise UserError(
            f"{source} has labels of the shape {shape_text(labels.shape)} for {num} sample(s): give each sample one "
            "class index, or leave them out"
        )
    return labels.reshape(num)
