"""The values of a unit by which it is fitted to the float network."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import onnx_ir as ir

from dipo.graph import operators
from dipo.graph.accessors import name_of


def fitted_values(nodes: Sequence[ir.Node], outputs: Iterable[str]) -> tuple[str, ...]:
    """Return the names of the values that have a gradient and stand for the outputs of some nodes, each once.

    That is every output which holds floats of any width. Integers and booleans have no gradient: for such an output
    stand the floats from which the nodes make it, such as the logits before an ArgMax.

    Args:
        nodes: The nodes of the unit.
        outputs: Names of the values that leave it.
    """
    made = {name_of(value): value for node in nodes for value in node.outputs if value.name}
    return tuple(dict.fromkeys(name for output in outputs if output in made for name in _floats(made[output], made)))


def has_gradient(value: ir.Value) -> bool:
    """Return whether the value may hold floats, of any width; one of unknown type may."""
    return value.dtype is None or value.dtype.is_floating_point()


def _floats(value: ir.Value, made: dict[str, ir.Value]) -> Iterator[str]:
    """Yield the nearest values with a gradient among those that the nodes make, from this one upwards."""
    if has_gradient(value):
        yield name_of(value)
        return
    node = value.producer()
    for source in () if node is None or operators.of(node).reads_shape else node.inputs:
        if source is not None and source.name in made:
            yield from _floats(source, made)
