"""The table of operators: one record for each, the only source of facts about it.

All facts about an operator that quantization needs stand in its record (`Operator`), and nowhere else: its kind, its
torch function, the place of a layer's weight, whether it moves, clips or keeps the sign of values, whether factors and
shifts pass through it, how moments propagate without samples, which integer kernels exist. Other modules hold no lists
of operators; they ask by node,

    operators.of(node).moves

or for the names of all that share a property,

    operators.names(lambda operator: operator.clips)

so an operator known to one module is known to all. Only targets list operators that their device takes, and code that
reads the attributes of one particular operator names it.

Records are data. Other files of this package define them by family, with `functools.partial` for shared fields; fields
that every operator must decide on have no default. Torch functions are references that are imported when a node is
bound, so that the table costs no import: `dipo.export.rknn_config` reads it where neither torch nor onnx_ir is
installed. Rules that a higher layer implements, such as those of `algo.moment_ops`, are named by an enumeration.

Another package adds an operator, of ONNX's domain or of its own, with one record, registered under its key:

    [project.entry-points."dipo.operators"]
    "com.example.Squash" = "mypackage.squash:SQUASH"

    SQUASH = Operator(name="Squash", domain="com.example", kind=Kind.ACTIVATION, torch=..., ...)

Its torch builder and its moment rule may be functions in the same module. It is found in every process of that
environment, Ray's workers included.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Set
from typing import Protocol

from dipo.errors import UserError
from dipo.graph.operators import (
    activations,
    choice,
    conversion,
    elementwise,
    generation,
    index,
    losses,
    movement,
    normalization,
    pooling,
    quantized,
    reduction,
    runtime,
    sampling,
    sequence,
    weighted,
)
from dipo.graph.operators.record import (
    Channels,
    IntegerKernel,
    Kind,
    Limits,
    LimitsFrom,
    MomentFunction,
    MomentRule,
    Moves,
    Operand,
    Operator,
    Saturation,
    Sign,
    Weight,
    built_by,
    key,
    same_as,
)
from dipo.registry import Registry

__all__ = [
    "OPERATORS",
    "Channels",
    "IntegerKernel",
    "Kind",
    "Limits",
    "LimitsFrom",
    "MomentFunction",
    "MomentRule",
    "Moves",
    "Operand",
    "Operator",
    "Saturation",
    "Sign",
    "Weight",
    "built_by",
    "key_of",
    "names",
    "of",
    "same_as",
    "with_kind",
]

_FAMILIES = (
    weighted,
    activations,
    elementwise,
    pooling,
    reduction,
    normalization,
    movement,
    choice,
    conversion,
    generation,
    index,
    sampling,
    sequence,
    losses,
    runtime,
    quantized,
)

OPERATORS: Registry[Operator] = Registry(
    "operator",
    {operator.key: operator for family in _FAMILIES for operator in family.OPERATORS},
    group="dipo.operators",
)
"""Records by key: the operator's name, prefixed by `<domain>.` if the domain is not ONNX's."""


class Node(Protocol):
    """A node, of onnx_ir or of onnx."""

    @property
    def domain(self) -> str:
        """Domain of the operator; empty for ONNX's."""
        ...

    @property
    def op_type(self) -> str:
        """Name of the operator."""
        ...


def key_of(node: Node) -> str:
    """Return the key of a node's operator, which need not be in the table."""
    return key(node.domain, node.op_type)


def of(node: Node) -> Operator:
    """Return the record of a node's operator; one of kind `OTHER`, without any properties, if the table has none.

    Raises:
        UserError: Another package registers it, and its record cannot be imported or is for another operator.
    """
    name = key_of(node)
    return _read(name) if name in OPERATORS else _unknown(node)


def names(predicate: Callable[[Operator], bool]) -> Set[str]:
    """Return the keys of the operators for which `predicate` holds, including those of other packages.

    The set is lazy and reads the records at each query, so that a module can keep it as a constant without importing
    other packages' operators. Queries raise `UserError` as `of` does.
    """
    return _Keys(predicate)


class _Keys(Set[str]):
    """The keys of the operators for which a predicate holds, as a lazy set."""

    def __init__(self, predicate: Callable[[Operator], bool]) -> None:
        self._having = predicate

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name in OPERATORS and self._having(_read(name))

    def __iter__(self) -> Iterator[str]:
        return (name for name in OPERATORS if self._having(_read(name)))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __hash__(self) -> int:
        return self._hash()

    def __repr__(self) -> str:
        return repr(set(self))

    @classmethod
    def _from_iterable(cls, it: Iterable[str]) -> Set[str]:  # type: ignore[override]
        return frozenset(it)


def with_kind(*kinds: Kind) -> Set[str]:
    """Return the keys of the operators of these kinds."""
    return names(lambda operator: operator.kind in kinds)


def _read(name: str) -> Operator:
    operator = OPERATORS[name]
    if not isinstance(operator, Operator) or operator.key != name:
        said = operator.key if isinstance(operator, Operator) else type(operator).__name__
        raise UserError(
            f"operator '{name}' of another package: its entry point gives {said}, announce an Operator by its own key"
        )
    return operator


def _unknown(node: Node) -> Operator:
    return Operator(
        name=node.op_type,
        domain=node.domain,
        kind=Kind.OTHER,
        torch=None,
        sign=Sign.ANY,
        homogeneous=False,
        keeps_shifts=False,
        channels=None,
        moments=None,
        full_integer=False,
        data_inputs=None,
    )
