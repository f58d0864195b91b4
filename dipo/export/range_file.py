"""Claims of range files about tensors: the form in which targets' files are read back for comparison.

This module needs neither torch nor onnx_ir.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import onnx
    from numpy.typing import NDArray

    Numbers = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Claim:
    """A file's statements on one tensor, arrays of shape [n]; None for each that it does not make."""

    name: str
    """Name of the tensor in the file."""
    tensor: str | None
    """Name of the tensor in `deploy.onnx`; None if it is not there."""
    scale: Numbers | None = None
    low: Numbers | None = None
    """Number of the smallest code."""
    high: Numbers | None = None
    offset: Numbers | None = None
    """Offset that is added to codes counted from 0, before they are scaled."""


@dataclass(frozen=True)
class Names:
    """The names in `deploy.onnx`, to which a file's own names refer."""

    values: Set[str]
    """Names of all values, constants included."""
    nodes: Mapping[str, onnx.NodeProto]

    def input_of(self, node: str, index: int) -> str | None:
        """Return the name of a node's input; None if there is no such node or input."""
        found = self.nodes.get(node)
        return found.input[index] if found is not None and index < len(found.input) else None

    def claim(self, name: str, **said: Any) -> Claim:
        """Return a claim on the tensor of the same name, from numbers or lists of them.

        Raises:
            ValueError: They are no numbers.
        """
        tensor = name if name in self.values else None
        return Claim(name, tensor, **{key: numbers(value) for key, value in said.items()})


def numbers(value: Any) -> Numbers:
    """Return a number or a list of them as an array of shape [n].

    Raises:
        ValueError: It is something else, or an empty list.
    """
    import numpy as np

    array = np.asarray(value, np.float64).reshape(-1)
    if not array.size:
        raise ValueError("a list of numbers is empty")
    return array
