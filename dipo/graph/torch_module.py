"""A part of the graph, or all of it, as a torch module."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import torch
from numpy.typing import NDArray

from dipo.errors import UserError
from dipo.graph.accessors import array_of, name_of, node_name
from dipo.graph.ops.reader import TorchOp
from dipo.graph.program import Bound, bind_all

Hook = Callable[[str, torch.Tensor], torch.Tensor]
"""Function of a value's name and the value that returns the tensor for the nodes that read it."""


@dataclass(frozen=True)
class Step:
    """A node's function, with the names of the values that it reads, writes, and reads for the last time."""

    node: str
    """Name of the node; of the first one for a region that runs in ONNX Runtime."""
    function: TorchOp
    inputs: tuple[str | None, ...]
    outputs: tuple[str, ...]
    last_reads: tuple[str, ...]


class GraphModule(torch.nn.Module):
    """A sequence of nodes in topological order, as a torch module.

    Constants are buffers under their position; `forward` takes the values that the nodes read from outside and returns
    those that were asked for. Constants of four dimensions are kept channels_last, which convolutions prefer.
    """

    def __init__(
        self, model: ir.Model, *, nodes: Sequence[ir.Node] | None = None, outputs: Iterable[str] | None = None
    ) -> None:
        """Bind `nodes` (by default all of the model) to torch functions.

        Args:
            model: A model that `graph.load` has normalised.
            nodes: The nodes to run, in topological order.
            outputs: Names of the values to return; by default those that are read outside `nodes` or leave the network.

        """
        super().__init__()
        nodes = list(model.graph) if nodes is None else list(nodes)
        inside = {node_name(node) for node in nodes}
        produced = [value for node in nodes for value in node.outputs if value.name]
        self.outputs = (
            tuple(outputs) if outputs is not None else tuple(name_of(v) for v in produced if _leaves(v, inside))
        )
        self._constants: dict[str, str] = {}
        program = bind_all(model, nodes, wanted=self.outputs)
        for value in dict.fromkeys(value for bound in program for value in bound.constants):
            buffer = f"constant_{len(self._constants)}"
            self._constants[name_of(value)] = buffer
            self.register_buffer(buffer, _to_tensor(array_of(value)))
        self.steps = _schedule(program, constants=set(self._constants))
        made = {name_of(value) for value in produced}
        self._read = dict.fromkeys(name for step in self.steps for name in step.inputs if name is not None)
        passed = (name for name in self.outputs if name not in made)
        self.inputs = tuple(
            name for name in dict.fromkeys((*self._read, *passed)) if name not in made and name not in self._constants
        )

    def constant(self, name: str) -> torch.Tensor:
        """Return a constant by name."""
        tensor = self.get_buffer(self._constants[name])
        assert isinstance(tensor, torch.Tensor)
        return tensor

    @property
    def constant_names(self) -> tuple[str, ...]:
        """Names of the constants that the nodes read."""
        return tuple(self._constants)

    def forward(
        self,
        values: Mapping[str, torch.Tensor],
        *,
        hook: Hook | None = None,
        constants: Mapping[str, torch.Tensor] | None = None,
    ) -> dict[str, torch.Tensor]:
        """Run the nodes.

        Args:
            values: The values of `inputs`.
            hook: Called with each of `inputs` and each computed value; nodes read its result, `outputs` keep the value.
            constants: Tensors that stand in for constants of those names (weights under training).

        Returns:
            The values of `outputs`, by name.
        """
        found = dict(self.walk(values, hook=hook, constants=constants))
        passed = {name: found.pop(name) for name in self.inputs if name in found}
        return found | passed

    def walk(
        self,
        values: Mapping[str, torch.Tensor],
        *,
        hook: Hook | None = None,
        constants: Mapping[str, torch.Tensor] | None = None,
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """Run the nodes as `forward` does, and yield each of `outputs` with its name as soon as it is there."""
        live: dict[str, torch.Tensor] = {name: self.get_buffer(buffer) for name, buffer in self._constants.items()}
        live.update(constants or {})
        missing = dict.fromkeys(self.outputs)
        for name in self.inputs:
            if name in missing:
                del missing[name]
                yield name, values[name]
        for name in self.inputs:
            live[name] = values[name] if hook is None else hook(name, values[name])
        for step in self.steps:
            made = _run(step, live)
            for name, value in zip(step.outputs, made if isinstance(made, tuple) else (made,), strict=False):
                if name in missing:
                    del missing[name]
                    yield name, value
                is_seen = hook is not None and name and isinstance(value, torch.Tensor)
                seen = hook(name, value) if hook is not None and is_seen else value
                if name in self._read:
                    live[name] = seen
            for name in step.last_reads:
                del live[name]
            # Held here, a value would live until the next node has made its own.
            del made, value, seen


def _run(step: Step, live: Mapping[str, torch.Tensor]) -> Any:
    try:
        return step.function(*(None if name is None else live[name] for name in step.inputs))
    except IndexError as error:
        reason = next(iter(str(error).splitlines()), "no more is known")
        raise UserError(
            f"node {step.node!r} is asked for a row that is not there ({reason}): see that no sample has an index, "
            "such as a token's, beyond the table that it is looked up in"
        ) from error


def channels_last(tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor in memory format channels_last if it has four dimensions, else as it is."""
    if tensor.ndim == 4 and tensor.is_floating_point():
        return tensor.contiguous(memory_format=torch.channels_last)
    return tensor


def _to_tensor(array: NDArray[Any]) -> torch.Tensor:
    return channels_last(torch.tensor(array))


def _leaves(value: ir.Value, inside: set[str]) -> bool:
    return value.is_graph_output() or any(use.node.name not in inside for use in value.uses())


def _schedule(program: Sequence[Bound], *, constants: set[str]) -> list[Step]:
    last_read: dict[str, int] = {}
    for index, bound in enumerate(program):
        last_read |= {name: index for name in bound.inputs if name is not None}
    return [
        Step(
            node=node_name(bound.nodes[0]),
            function=bound.function,
            inputs=bound.inputs,
            outputs=bound.outputs,
            last_reads=tuple(
                name
                for name in dict.fromkeys(bound.inputs)
                if name is not None and last_read[name] == index and name not in constants
            ),
        )
        for index, bound in enumerate(program)
    ]
