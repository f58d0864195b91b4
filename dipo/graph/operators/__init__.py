"""The operators: one record for each, which everything else asks.

What an operator is to quantization stands in its record (`Operator`), and nowhere else: its torch function, where a
layer's weight is, which kind it is of, what it moves, where it cuts off, which sign it keeps, whether factors and
shifts pass through it, what can be told of its output without samples, which integer kernels there are. Other modules
hold no lists of operators; they ask by node,

    operators.of(node).moves

or for the names of all that have something in common,

    operators.names(lambda operator: operator.clips)

and so an operator that is known to one of them is known to all. A target keeps what its device takes, and code that
reads the attributes of a certain operator names it.

Records are data. Other files of this package have them by family, those of a family made by `functools.partial` of what
they have in common; facts that every operator must decide on have no default. Torch functions stand behind references
that are followed when a node is bound, so that the table costs no import: `dipo.export.rknn_config` reads it where
neither torch nor onnx_ir is installed. Rules that need a whole floor of their own, such as those of `algo.moment_ops`,
are named by an enumeration.

Another package adds an operator, of ONNX's domain or of its own, with one record, which it announces by its key:

    [project.entry-points."dipo.operators"]
    "com.example.Squash" = "mypackage.squash:SQUASH"

    SQUASH = Operator(name="Squash", domain="com.example", kind=Kind.ACTIVATION, torch=..., ...)

Its torch builder and its rule of moments may be functions beside it. It is found in every process of that environment,
Ray's workers as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Set
from typing import Protocol

from dipo.errors import UserError
from dipo.graph.operators import activations, elementwise, movement, normalization, pooling, quantized, weighted
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
    "Sign",
    "Weight",
    "built_by",
    "key_of",
    "names",
    "of",
    "same_as",
    "with_kind",
]

_FAMILIES = (weighted, activations, elementwise, pooling, normalization, movement, quantized)

OPERATORS: Registry[Operator] = Registry(
    "operator",
    {operator.key: operator for family in _FAMILIES for operator in family.OPERATORS},
    group="dipo.operators",
)
"""By key: the name, behind domain and dot where the domain is not ONNX's."""


class Node(Protocol):
    """A node of onnx_ir or of onnx."""

    @property
    def domain(self) -> str:
        """The operator's; empty for ONNX's."""
        ...

    @property
    def op_type(self) -> str:
        """The operator's name."""
        ...


def key_of(node: Node) -> str:
    """Return the key of a node's operator, whether the table has it or not."""
    return key(node.domain, node.op_type)


def of(node: Node) -> Operator:
    """Return the record of a node's operator; one of kind `OTHER`, which promises nothing, where the table has none.

    Raises:
        UserError: Another package announces it, and its record cannot be imported or is another operator's.
    """
    name = key_of(node)
    return _read(name) if name in OPERATORS else _unknown(node)


def names(with_updates: Callable[[Operator], bool]) -> Set[str]:
    """Return the keys of the operators for which `having` holds, those of other packages included.

    The set looks at records when it is asked: a module may have it as a constant without importing what other packages
    announce. Asking raises `UserError` as `of` does.
    """
    return _Keys(with_updates)


class _Keys(Set[str]):
    """The keys of operators that have something in common."""

    def __init__(self, with_updates: Callable[[Operator], bool]) -> None:
        self._having = with_updates

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
    """Keys of the operators of these kinds."""
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
