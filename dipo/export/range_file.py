"""What a range file says of its tensors: the form into which a target's file is read back, to be compared.

Reading it needs neither torch nor onnx_ir.
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
    """What a file says of one tensor, in arrays of shape [n]; None where it says nothing."""

    name: str
    """As the file has it."""
    tensor: str | None
    """Its name in `deploy.onnx`; None: there is none."""
    scale: Numbers | None = None
    low: Numbers | None = None
    """What the smallest code stands for."""
    high: Numbers | None = None
    offset: Numbers | None = None
    """To add to codes that count from 0 up, before they are scaled."""


@dataclass(frozen=True)
class Names:
    """The names in `deploy.onnx`, which say what a file's own names mean."""

    values: Set[str]
    """Constants among them."""
    nodes: Mapping[str, onnx.NodeProto]

    def input_of(self, node: str, index: int) -> str | None:
        """Return what a node reads; None where there is no such node or input."""
        found = self.nodes.get(node)
        return found.input[index] if found is not None and index < len(found.input) else None

    def claim(self, name: str, **said: Any) -> Claim:
        """Return a claim on the tensor of the same name; what is said are numbers, or lists of them.

        Raises:
            ValueError: They are not.
        """
        tensor = name if name in self.values else None
        return Claim(name, tensor, **{key: numbers(value) for key, value in said.items()})


def numbers(value: Any) -> Numbers:
    """Return a number or a list of them as an array of shape [n].

    Raises:
        ValueError: It is something else, or nothing.
    """
    import numpy as np

    array = np.asarray(value, np.float64).reshape(-1)
    if not array.size:
        raise ValueError("a list of numbers is empty")
    return array
