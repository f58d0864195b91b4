"""An operator's record: all that dipo knows of one ONNX operator, in one place.

It is data and needs neither torch nor onnx_ir: `dipo.export.rknn_config` reads it beside a vendor's toolkit. What
computes in torch stands behind a reference, `built_by("module:function")` or `same_as("torch:tanh")`, that is followed
when the first node is bound.
"""

from __future__ import annotations

import functools
import math
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx_ir as ir

    from dipo.graph.ops.reader import Builder, NodeReader, TorchOp
    from dipo.quant.gaussian import Moments


class Kind(Enum):
    """What an operator does, as far as the graph around it is concerned. Each operator is of one kind."""

    WEIGHTED = auto()
    """Multiplies what it reads by a weight."""
    ACTIVATION = auto()
    """An activation function: of one tensor, element by element. It belongs to the layer before it."""
    ELEMENTWISE = auto()
    """Another function of one or several tensors, element by element."""
    POOLING = auto()
    """Makes each number of those of some positions of its channel; interpolations too."""
    REDUCTION = auto()
    """Makes one number of all those along some axes."""
    NORMALIZATION = auto()
    """Makes each number relative to others, by their statistics or by given ones."""
    MOVEMENT = auto()
    """Moves values."""
    QUANTIZED = auto()
    """Has codes or makes them: no part of a float network."""
    OTHER = auto()
    """Nothing is known of it."""


class Moves(Enum):
    """Which numbers an operator's output holds, where those are numbers of its input alone."""

    ALL = auto()
    """All of them, in the same or another order or shape."""
    SOME = auto()
    """Some, by their position; or each several times."""
    PICKED = auto()
    """Some, by their size: the largest ones or the smallest."""
    PADDED = auto()
    """All or some, and others beside them: zeros, mostly."""
    JOINED = auto()
    """All of several inputs."""


class Channels(Enum):
    """Where the channels of what an operator reads are in what it makes."""

    KEPT = auto()
    """Where they were; each is made of itself alone."""
    REDUCED = auto()
    """There, with fewer axes behind them: it depends on the node's axes whether that is so."""
    REARRANGED = auto()
    """Elsewhere: it depends on the node's shapes where."""


class Sign(Enum):
    """Whether an operator's output can be negative."""

    NEVER_NEGATIVE = auto()
    KEPT = auto()
    """Not where its inputs are not."""
    ANY = auto()


class LimitsFrom(Enum):
    """What says between which limits an operator cuts numbers off."""

    ITSELF = auto()
    """`Limits.low` and `Limits.high` do."""
    ARGUMENTS = auto()
    """Attributes `min` and `max`, or inputs 1 and 2 in newer operator sets; without, there is no limit."""
    OPERANDS = auto()
    """The other tensors that it reads."""


@dataclass(frozen=True)
class Limits:
    """An operator lets numbers between limits pass and cuts others off there."""

    source: LimitsFrom = LimitsFrom.ITSELF
    low: float = -math.inf
    high: float = math.inf


@dataclass(frozen=True)
class Weight:
    """Where the weight of a layer is, and how it lies."""

    channel_axis: int
    """Axis that counts output channels (of a group); a negative one counts from the end."""
    turned_by: str | None = None
    """Name of an attribute: where it is not 0, the weight lies the other way round, with its two axes exchanged."""
    port: int = 1
    """Which of the node's inputs it is."""
    bias_port: int | None = 2
    """The same of the bias; None where the operator adds none."""
    spatial: bool = False
    """A kernel of axes behind the channels moves over positions; otherwise it is a matrix."""


class Operand(Enum):
    """What an operand of a commutative operator is to the other one."""

    SUMMAND = auto()
    FACTOR = auto()


class IntegerKernel(Enum):
    """What ONNX Runtime's integer kernel of an operator gives, which `algo.integer` computes bit for bit."""

    CODES = auto()
    CODES_OR_FLOATS = auto()
    """Floats where nothing quantizes its output."""


class MomentRule(Enum):
    """How mean and standard deviation of what an operator makes follow from those of what it reads.

    `algo.moment_ops` has the rules; `None` in a record says that without samples nothing can be told.
    """

    SAME = auto()
    """The numbers are the same."""
    POOLED = auto()
    """Neighbours are taken for equal: mean and deviation are the same."""
    CURVE = auto()
    """A function of one number: quadrature over its torch function."""
    MOVED = auto()
    """The torch function moves the moments as it moves numbers."""
    CLIPPED = auto()
    """By its `limits`."""
    LAYER = auto()
    """W E[x] + b and W^2 Var[x]."""
    NORMALIZED = auto()
    """The parameters say the moments of what it makes."""
    SOFTMAX = auto()
    SUM = auto()
    DIFFERENCE = auto()
    PRODUCT = auto()
    QUOTIENT = auto()
    MINIMUM = auto()
    MAXIMUM = auto()
    LEAKY_RELU = auto()
    PRELU = auto()
    AVERAGED = auto()
    """The mean over axes behind the channels; its deviation is taken for that of one number."""
    REARRANGED = auto()
    """By `Channels.REARRANGED`."""


MomentFunction = Callable[["ir.Node", "Sequence[Moments]"], "Moments"]
"""A rule of an operator's own: from the node and the moments of what it reads, constants aside, to those of its output.
It raises `UserError` where it cannot tell."""


@dataclass(frozen=True, kw_only=True)
class Operator:
    """All that dipo knows of an ONNX operator.

    The facts without a default are those that every operator has to decide on; the others are of few operators.
    """

    name: str
    domain: str = ""
    kind: Kind
    torch: Builder | None
    """Reads a node once and gives its torch function (`graph.ops.reader`); None where torch does not compute it."""
    sign: Sign
    homogeneous: bool
    """f(s x) = s f(x) for s > 0, where x is all that it reads: a factor on a channel passes through it."""
    keeps_shifts: bool
    """f(x + c) = f(x) + c for x >= 0 and c >= 0: what is taken off a channel before it can be given back behind it."""
    channels: Channels | None
    """None where they are mixed, or not followed."""
    moments: MomentRule | MomentFunction | None
    full_integer: bool
    """Targets that run a whole network on integers compute it, with a range of its own for what it makes. What only
    moves values, or cuts them off as part of the kernel before it, has none."""

    data_inputs: int | None = 1
    """So many of its inputs, from the first on, are data; what follows are options and parameters. None: all are."""
    data_constants: bool = False
    """Constants among its inputs that are no layer's weight or bias are data that a device keeps as integers; otherwise
    they are options, such as the scales of a Resize."""
    operand: Operand | None = None
    """What each of two operands is to the other, in whatever order."""
    weight: Weight | None = None
    moves: Moves | None = None
    on_codes: bool = False
    """Runtimes run it on the codes of what it reads as it is: what is quantized before it is so behind it."""
    limits: Limits | None = None
    output_range: tuple[float, float] | None = None
    """All that it makes lies between these, whatever it reads."""
    own_grid: bool = False
    """Integer kernels write a grid of their own, over `output_range` in steps of a power of two."""
    resizes: bool = False
    """Changes the resolution without strides."""
    integer_kernel: IntegerKernel | None = None
    qoperator: str | None = None
    """The integer operator that can take its place in a file, ONNX's own or ONNX Runtime's."""

    @property
    def key(self) -> str:
        """Its name in the table and in sets of operators; behind its domain and a dot where that is not ONNX's."""
        return key(self.domain, self.name)

    @property
    def clips(self) -> bool:
        """Whether it only cuts off at constant limits: the kernel before it does that by the limits of its codes."""
        return self.limits is not None and self.limits.source is not LimitsFrom.OPERANDS

    @property
    def keeps_range(self) -> bool:
        """Whether a device gives what it makes the range of what it reads: it moves values, and that is all."""
        return self.moves is not None and not self.full_integer


def key(domain: str, name: str) -> str:
    """Return an operator's name in the table: `Relu`, `com.microsoft.QuickGelu`."""
    return name if domain in {"", "ai.onnx"} else f"{domain}.{name}"


def built_by(reference: str) -> Builder:
    """Return a builder that is imported when it is needed.

    Args:
        reference: `module:function`, the function being one that takes a `NodeReader`.
    """
    return functools.partial(_build, reference)


def same_as(reference: str) -> Builder:
    """Return the builder of an operator without attributes that torch has under the same meaning.

    Args:
        reference: `module:function`, the function being one of the operator's inputs.
    """
    return functools.partial(_same, reference)


def _build(reference: str, node: NodeReader) -> TorchOp:
    builder: Any = pkgutil.resolve_name(reference)
    function: TorchOp = builder(node)
    return function


def _same(reference: str, _: NodeReader) -> TorchOp:
    function: TorchOp = pkgutil.resolve_name(reference)
    return function
