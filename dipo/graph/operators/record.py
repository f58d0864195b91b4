"""An operator's record: all facts that dipo has about one ONNX operator.

It is data and needs neither torch nor onnx_ir: `dipo.export.rknn_config` reads it beside a vendor's toolkit. Its torch
function is a reference, `built_by("module:function")` or `same_as("torch:tanh")`, that is imported when the first node
is bound.
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
    """The kind of an operator, as the graph around it sees it; each operator has one."""

    WEIGHTED = auto()
    """Multiplies its input by a weight."""
    ACTIVATION = auto()
    """An element-wise activation function of one tensor; it belongs to the layer before it."""
    ELEMENTWISE = auto()
    """Another element-wise function, of one tensor or several."""
    POOLING = auto()
    """Computes each number from some positions of the same channel; interpolations included."""
    REDUCTION = auto()
    """Computes one number from all those along some axes."""
    NORMALIZATION = auto()
    """Normalizes numbers by their own statistics or by given ones."""
    MOVEMENT = auto()
    """Moves numbers without computing any."""
    CONVERSION = auto()
    """Converts numbers to another type."""
    PRODUCT = auto()
    """Sums products of activations, or of them and constants, without being a layer."""
    SAMPLING = auto()
    """Reads or writes an image at places that are computed."""
    GENERATION = auto()
    """Makes numbers from sizes, limits or indices."""
    INDEX = auto()
    """Computes integers or booleans, which have no range: shapes, places, comparisons."""
    RECURRENT = auto()
    """Runs over a sequence with a state."""
    QUANTIZED = auto()
    """Reads or writes integer codes: no part of a float network."""
    OTHER = auto()
    """An operator of which nothing is known."""


class Moves(Enum):
    """The part of its input that an operator moves to its output, where it computes no new numbers."""

    ALL = auto()
    """All numbers, in the same or another order or shape."""
    SOME = auto()
    """Some numbers, selected by position, or each several times."""
    PICKED = auto()
    """Some numbers, selected by value: the largest or the smallest."""
    PADDED = auto()
    """All or some numbers, and padding, mostly zeros."""
    JOINED = auto()
    """All numbers of several inputs."""


class Channels(Enum):
    """The place of an operator's input channels in its output."""

    KEPT = auto()
    """The same place; each is computed from itself alone."""
    REDUCED = auto()
    """The same place with fewer axes behind, depending on the node's axes."""
    REARRANGED = auto()
    """Another place, depending on the node's shapes."""


class Sign(Enum):
    """The sign that an operator's output can have."""

    NEVER_NEGATIVE = auto()
    KEPT = auto()
    """Not negative where no input is."""
    ANY = auto()


class LimitsFrom(Enum):
    """The source of the limits at which an operator clips."""

    ITSELF = auto()
    """`Limits.low` and `Limits.high`."""
    ARGUMENTS = auto()
    """Attributes `min` and `max`, or inputs 1 and 2 in newer operator sets; absent ones set no limit."""
    OPERANDS = auto()
    """The operator's other input tensors."""


@dataclass(frozen=True)
class Limits:
    """The limits to which an operator clips its input."""

    source: LimitsFrom = LimitsFrom.ITSELF
    low: float = -math.inf
    high: float = math.inf


@dataclass(frozen=True)
class Weight:
    """The place and the axes of a layer's weight."""

    channel_axis: int
    """Axis of the output channels (of a group); negative: counted from the end."""
    turned_by: str | None = None
    """Name of the attribute that, if not 0, exchanges the weight's two axes."""
    port: int = 1
    """Index of the weight among the node's inputs."""
    bias_port: int | None = 2
    """Index of the bias among the node's inputs; None if the operator adds none."""
    spatial: bool = False
    """Whether spatial axes follow those of the channels; otherwise the weight is a matrix."""


class Operand(Enum):
    """The role of an operand of a commutative operator."""

    SUMMAND = auto()
    FACTOR = auto()


class Saturation(Enum):
    """The reach that an operator's inputs need, where its output need not reach beyond some limits."""

    PASSED = auto()
    """The same limits: each output number is one of the inputs', or a limit at which they are clipped."""
    SUM = auto()
    """The limits less the other inputs."""
    DIFFERENCE = auto()
    """The limits less the second input, negative; for that, the first less the limits."""
    ROWS = auto()
    """None beyond what still counts beside the largest number of a row: the others become zero, as in a Softmax."""


class IntegerKernel(Enum):
    """The output of ONNX Runtime's integer kernel, which `algo.integer_kernels` computes bit for bit."""

    CODES = auto()
    CODES_OR_FLOATS = auto()
    """Codes, or floats if nothing quantizes its output."""


class MomentRule(Enum):
    """The rule by which an operator's output mean and standard deviation follow from those of its inputs.

    `algo.moment_ops` implements the rules; None in a record: nothing is known of the output without samples.
    """

    SAME = auto()
    """The output has the numbers of the input."""
    POOLED = auto()
    """Mean and deviation of the input: neighbours are assumed to be equal."""
    CURVE = auto()
    """Quadrature over the torch function, which is element-wise."""
    MOVED = auto()
    """The moments, moved by the torch function as it moves numbers."""
    CLIPPED = auto()
    """Clipping to the record's `limits`."""
    LAYER = auto()
    """Mean W E[x] + b, variance W^2 Var[x]."""
    NORMALIZED = auto()
    """The moments that the operator's parameters state."""
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
    """The mean over axes behind the channels; the deviation is assumed to be that of one number."""
    REARRANGED = auto()
    """The channels' moments, moved as by `Channels.REARRANGED`."""


MomentFunction = Callable[["ir.Node", "Sequence[Moments]"], "Moments"]
"""An operator's own rule: maps the node and the moments of its non-constant inputs to the moments of its output.
It raises `UserError` if they are not known."""


@dataclass(frozen=True, kw_only=True)
class Operator:
    """The facts that dipo has about an ONNX operator.

    Every operator has to decide on the fields without a default; the others concern few operators.
    """

    name: str
    domain: str = ""
    kind: Kind
    torch: Builder | None
    """Builder of a node's torch function (`graph.ops.reader`); None if torch does not compute it."""
    sign: Sign
    homogeneous: bool
    """Whether f(s x) = s f(x) for s > 0, with x all its inputs: a factor on a channel passes through it."""
    keeps_shifts: bool
    """Whether f(x + c) = f(x) + c for x, c >= 0: a constant taken off a channel before it can be added after it."""
    channels: Channels | None
    """Place of the input's channels in the output; None if they are mixed, or not tracked."""
    moments: MomentRule | MomentFunction | None
    full_integer: bool
    """Whether targets that run whole networks on integers compute it with a range of its own for its output. Operators
    that only move values, or clip them within the kernel before, have none."""

    reads_shape: bool = False
    """Whether it reads the shapes of its inputs alone, not the numbers in them."""
    sized_by: tuple[int, ...] = ()
    """Indices of the inputs whose numbers are sizes or decide on the sizes of its outputs; axes, which are constants in
    practice, left out."""
    sized_by_numbers: bool = False
    """Whether the sizes of its outputs depend on the numbers of its data."""
    random: bool = False
    """Whether its outputs may differ from call to call."""
    distribution: bool = False
    """Whether its output is a distribution, or the logarithm of one, over what its `axis` counts."""
    data_inputs: int | None = 1
    """Number of leading inputs that are data; options and parameters follow. None: all inputs are data."""
    data_constants: bool = False
    """Whether its constant inputs, other than a layer's weight and bias, are data that a device keeps as integers;
    otherwise they are options, such as the scales of a Resize."""
    operand: Operand | None = None
    """Role of each of two operands, whose order does not matter."""
    neutral: int | None = None
    """Number that leaves the other operand as it is; the second one, unless the order does not matter (`operand`)."""
    weight: Weight | None = None
    recurrent_weights: tuple[int, ...] = ()
    """Indices of the inputs that are weights, [directions, rows, inputs], of an operator that computes step by step. No
    quantized kernel multiplies them, but they may be stored as integers."""
    moves: Moves | None = None
    on_codes: bool = False
    """Whether runtimes apply it to its input's codes unchanged: a value quantized before it is so after it."""
    limits: Limits | None = None
    output_range: tuple[float, float] | None = None
    """Smallest and largest number that its output can have for any input; None: unbounded."""
    own_grid: bool = False
    """Whether integer kernels write a fixed grid over `output_range`, in steps of a power of two."""
    saturation: Saturation | None = None
    """Reach of its data inputs, if its output's is limited; None: unlimited."""
    resizes: bool = False
    """Whether it changes the resolution without strides."""
    interpolates: bool = False
    """Whether it resizes by given factors or sizes, to numbers between those of the input."""
    integer_kernel: IntegerKernel | None = None
    qoperator: str | None = None
    """Integer operator, ONNX's own or ONNX Runtime's, that can replace it in a file."""

    @property
    def key(self) -> str:
        """Its name in the table and in sets of operators; prefixed by `<domain>.` if the domain is not ONNX's."""
        return key(self.domain, self.name)

    @property
    def clips(self) -> bool:
        """Whether it only clips to constant limits, which the kernel before it does by the limits of its codes."""
        return self.limits is not None and self.limits.source is not LimitsFrom.OPERANDS

    @property
    def keeps_range(self) -> bool:
        """Whether its output has the range of its input on a device, because it only moves values."""
        return self.moves is not None and not self.full_integer


def key(domain: str, name: str) -> str:
    """Return an operator's name in the table: `Relu`, `com.microsoft.QuickGelu`."""
    return name if domain in {"", "ai.onnx"} else f"{domain}.{name}"


def built_by(reference: str) -> Builder:
    """Return a builder that is imported when it is needed.

    Args:
        reference: `module:function`; the function takes a `NodeReader`.
    """
    return functools.partial(_build, reference)


def same_as(reference: str) -> Builder:
    """Return the builder of an operator without attributes that a torch function computes as it is.

    Args:
        reference: `module:function`; the function takes the operator's inputs.
    """
    return functools.partial(_same, reference)


def _build(reference: str, node: NodeReader) -> TorchOp:
    builder: Any = pkgutil.resolve_name(reference)
    function: TorchOp = builder(node)
    return function


def _same(reference: str, _: NodeReader) -> TorchOp:
    function: TorchOp = pkgutil.resolve_name(reference)
    return function
