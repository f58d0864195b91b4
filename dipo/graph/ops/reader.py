"""Reading of a node by its operator's builder: attributes, constant inputs, shapes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import torch
from numpy.typing import NDArray

from dipo.errors import UserError

TorchOp = Callable[..., torch.Tensor | tuple[torch.Tensor, ...]]
"""A function of a node's inputs, in ONNX order; None for an absent optional one."""


@dataclass(frozen=True)
class Numbers:
    """Numbers that a node takes as an option: known when it is bound, or computed while the model runs."""

    known: tuple[Any, ...] | None
    """The numbers, flat; None if they are computed, or absent."""
    port: int | None = None
    """Index, behind the node's first input, of the input that holds them while the model runs; None if known."""

    @property
    def absent(self) -> bool:
        """Whether the node does without them."""
        return self.known is None and self.port is None

    def among(self, behind: Sequence[torch.Tensor | None]) -> tuple[Any, ...] | None:
        """Return the numbers; None if absent.

        Args:
            behind: The node's inputs behind its first, which are read only where the numbers are computed.
        """
        if self.port is None:
            return self.known
        tensor = behind[self.port]
        return None if tensor is None else tuple(tensor.reshape(-1).tolist())


class NodeReader:
    """A reader of one node that keeps track of attributes not read.

    An attribute that its builder does not read would be ignored silently; `check_all_read` refuses it instead.
    """

    def __init__(self, node: ir.Node, opset: int) -> None:
        self.node = node
        self.opset = opset
        self._read: set[str] = set()

    @property
    def num_outputs(self) -> int:
        """Number of outputs up to the last one that has a name."""
        return max((i + 1 for i, output in enumerate(self.node.outputs) if output.name), default=0)

    def get_int(self, name: str, default: int) -> int:
        """Return an integer attribute."""
        value = self._attribute(name)
        return default if value is None else int(value)

    def get_float(self, name: str, default: float) -> float:
        """Return a float attribute."""
        value = self._attribute(name)
        return default if value is None else float(value)

    def get_string(self, name: str, default: str) -> str:
        """Return a string attribute."""
        value = self._attribute(name)
        return default if value is None else str(value)

    def get_ints(self, name: str) -> tuple[int, ...] | None:
        """Return an attribute that is a list of integers; None where absent."""
        value = self._attribute(name)
        return None if value is None else tuple(int(v) for v in value)

    def get_floats(self, name: str) -> tuple[float, ...] | None:
        """Return an attribute that is a list of floats; None where absent."""
        value = self._attribute(name)
        return None if value is None else tuple(float(v) for v in value)

    def get_tensor(self, name: str) -> NDArray[Any] | None:
        """Return an attribute that is a tensor; None where absent."""
        value = self._attribute(name)
        return None if value is None else value.numpy()

    def ignore(self, *names: str) -> None:
        """Declare that these attributes do not affect inference."""
        self._read.update(names)

    def choice(self, name: str, default: str, choices: Sequence[str]) -> str:
        """Return a string attribute that must be one of `choices`.

        Raises:
            UserError: It is none of them.
        """
        value = self.get_string(name, default)
        if value not in choices:
            raise self.refusal(f"{name} '{value}' is not computed in torch, only {', '.join(choices)}")
        return value

    def has_input(self, index: int) -> bool:
        """Return whether the input is present; optional ones may be absent."""
        return index < len(self.node.inputs) and self.node.inputs[index] is not None

    def known(self, index: int) -> NDArray[Any] | None:
        """Return an input's value if it is known before the model runs; else None."""
        tensor = ir.convenience.get_const_tensor(self._input(index)) if self.has_input(index) else None
        return None if tensor is None else tensor.numpy()

    def constant(self, index: int) -> NDArray[Any] | None:
        """Return the value of an input that must be known before the model runs; None if the input is absent.

        Raises:
            UserError: The input is present but not constant.
        """
        value = self.known(index)
        if value is None and self.has_input(index):
            name = self._input(index).name
            raise self.refusal(f"input {index} '{name}' is computed while the model runs, but has to be a constant")
        return value

    def constant_ints(self, index: int) -> tuple[int, ...] | None:
        """Return `constant` as a flat tuple of integers."""
        value = self.constant(index)
        return None if value is None else tuple(int(v) for v in value.reshape(-1))

    def constant_floats(self, index: int) -> tuple[float, ...] | None:
        """Return `constant` as a flat tuple of floats."""
        value = self.constant(index)
        return None if value is None else tuple(float(v) for v in value.reshape(-1))

    def constant_scalar(self, index: int) -> int | float | None:
        """Return `constant` as a number; it must have one element."""
        value = self.constant(index)
        if value is None:
            return None
        scalar: int | float = value.reshape(()).item()
        return scalar

    def ints(self, index: int, attribute: str | None = None) -> Numbers:
        """Return integers of an input, which may be computed, or of the attribute that older opsets have instead."""
        value = None if attribute is None else self.get_ints(attribute)
        return self._numbers(index, int) if value is None else Numbers(value)

    def floats(self, index: int) -> Numbers:
        """Return the floats of an input, which may be computed."""
        return self._numbers(index, float)

    def require(self, numbers: Numbers, what: str) -> Numbers:
        """Return the numbers.

        Raises:
            UserError: They are absent.
        """
        if numbers.absent:
            raise self.refusal(f"it has no {what}")
        return numbers

    def shape(self, index: int) -> tuple[int | None, ...] | None:
        """Return the shape of an input, with None for unknown sizes; None if not even the rank is known."""
        shape = self._input(index).shape
        return None if shape is None else tuple(size if isinstance(size, int) else None for size in shape)

    def rank(self, index: int) -> int:
        """Return the number of dimensions of an input.

        Raises:
            UserError: It is not known.
        """
        shape = self.shape(index)
        if shape is None:
            raise self.refusal(f"the rank of '{self._input(index).name}' is not known: infer shapes first")
        return len(shape)

    def require_one_output(self) -> None:
        """Refuse a node whose optional outputs are used.

        Raises:
            UserError: There is more than one output.
        """
        if self.num_outputs > 1:
            raise self.refusal("only its first output is computed in torch")

    def check_all_read(self) -> None:
        """Refuse attributes that the builder has not read.

        Raises:
            UserError: There is one.
        """
        for name in self.node.attributes:
            if name not in self._read:
                raise self.refusal(f"attribute '{name}' is not known at opset {self.opset}")

    def refusal(self, why: str) -> UserError:
        """Return an error that names this node."""
        return UserError(f"node '{self.node.name}' ({self.node.op_type}): {why}")

    def dtype(self, index: int) -> ir.DataType | None:
        """Return the element type of an input; None if it is not known, or the input is absent."""
        return self._input(index).dtype if self.has_input(index) else None

    def _numbers(self, index: int, kind: type[int] | type[float]) -> Numbers:
        value = self.known(index)
        if value is not None:
            return Numbers(tuple(kind(v) for v in value.reshape(-1)))
        return Numbers(None, index - 1 if self.has_input(index) else None)

    def _input(self, index: int) -> ir.Value:
        value = self.node.inputs[index] if index < len(self.node.inputs) else None
        if value is None:
            raise self.refusal(f"input {index} is missing")
        return value

    def _attribute(self, name: str) -> Any:
        self._read.add(name)
        attribute = self.node.attributes.get(name)
        if attribute is None:
            return None
        if attribute.is_ref():
            raise self.refusal(f"attribute '{name}' refers to a function's parameter: inline functions first")
        return attribute.value


Builder = Callable[[NodeReader], TorchOp]
"""A function that reads a node once and returns its torch function; raises UserError if torch cannot compute it."""
