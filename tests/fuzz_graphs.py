"""Graphs for the fuzz tests, made by hypothesis: most of them valid, some nearly."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from hypothesis import strategies as st
from networks import network, tiny_cnn
from onnx import TensorProto, helper, numpy_helper

Shape = tuple[int | str, ...]
FLOATS = {TensorProto.FLOAT: np.float32, TensorProto.FLOAT16: np.float16, TensorProto.DOUBLE: np.float64}
OPSETS = [17] * 12 + [13] * 4 + [11, 11, 18, 18, 20, 21] + list(range(6, 24))
ODD_NAMES = ["a/b:0", "with space", "ünïcödé", "x" * 300, "line\nbreak", "'quoted'", "%s {0}", "../up", "-", "input"]
ONE_TENSOR = (
    "Abs Acos Asin Atan Ceil Celu Cos Elu Erf Exp Floor Gelu HardSigmoid HardSwish Identity LeakyRelu Log Mish Neg"
)
ONE_TENSOR += " Reciprocal Relu Round Selu Sigmoid Sign Sin Softplus Softsign Sqrt Swish Tan Tanh ThresholdedRelu"
SCHEMAS = sorted({schema.name for schema in onnx.defs.get_all_schemas() if schema.domain == ""})


@dataclass
class Known:
    """A value of the graph; `shape` is None where it was not followed."""

    name: str
    shape: Shape | None
    dtype: int = TensorProto.FLOAT


@dataclass
class Builder:
    """A graph in the making."""

    draw: Callable[[st.SearchStrategy[Any]], Any]
    opset: int
    dtype: int
    values: list[Known] = field(default_factory=list)
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: list[onnx.TensorProto] = field(default_factory=list)
    taken: set[str] = field(default_factory=set)

    def one_of(self, *choices: Any) -> Any:
        return self.draw(st.sampled_from(choices))

    def whole(self, low: int, high: int) -> int:
        return self.draw(st.integers(low, high))

    def seldom(self) -> bool:
        return self.draw(st.integers(0, 7)) == 7

    def name(self, stem: str) -> str:
        wish = self.one_of(*ODD_NAMES) if self.draw(st.integers(0, 15)) == 15 else stem
        while wish in self.taken:
            wish += "_"
        self.taken.add(wish)
        return wish

    def constant(self, values: Any, dtype: Any = None) -> str:
        """Add a constant, as an initializer or a node."""
        array = np.asarray(values, dtype or FLOATS[self.dtype])
        name = self.name("const")
        if self.seldom():
            attributes = {"value": numpy_helper.from_array(array)}
            self.nodes.append(helper.make_node("Constant", [], [name], **attributes))
        else:
            self.initializers.append(numpy_helper.from_array(array, name))
        return name

    def weight(self, *shape: int) -> str:
        rng = np.random.default_rng(self.whole(0, 99))
        return self.constant(rng.normal(size=shape) / math.sqrt(max(1, math.prod(shape[1:]))))

    def add(
        self, op: str, inputs: list[str], shape: Shape | None, *, dtype: int | None = None, **attributes: Any
    ) -> Known:
        made = Known(self.name(op.lower()), shape, self.dtype if dtype is None else dtype)
        node_name = self.one_of("", "node") if self.seldom() else f"{op}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [made.name], name=node_name, **attributes))
        self.values.append(made)
        return made

    def any_float(self, *ranks: int) -> Known | None:
        """Return a float value, late ones preferred; with a known shape of one of the ranks, if any are given."""
        fitting = [
            value
            for value in self.values
            if value.dtype == self.dtype and (not ranks or (value.shape is not None and len(value.shape) in ranks))
        ]
        if not fitting:
            return None
        return fitting[-1] if self.draw(st.booleans()) else self.one_of(*fitting)


def _size(value: Known, axis: int) -> int | None:
    size = value.shape[axis] if value.shape is not None else None
    return size if isinstance(size, int) else None


def _conv(g: Builder) -> None:
    x = g.any_float(3, 4, 5)
    channels = None if x is None else _size(x, 1)
    if x is None or x.shape is None or not channels:
        return
    spatial = len(x.shape) - 2
    group = g.one_of(1, 1, channels)
    out = g.one_of(1, 2, 4) * group
    kernel = g.one_of(1, 2, 3)
    pad, stride = g.one_of(0, 1), g.one_of(1, 1, 2)
    attributes: dict[str, Any] = {"group": group, "strides": [stride] * spatial}
    attributes |= {"auto_pad": "SAME_UPPER"} if g.seldom() else {"pads": [pad] * 2 * spatial}
    transposed = g.seldom()
    weight = g.weight(channels, out // group, *[kernel] * spatial) if transposed else g.weight(
        out, channels // group, *[kernel] * spatial
    )  # fmt: skip
    inputs = [x.name, weight, *([g.weight(out)] if g.draw(st.booleans()) else [])]
    sizes: list[int | str] = []
    for axis in range(spatial):
        size = _size(x, 2 + axis)
        if size is None or "auto_pad" in attributes:
            sizes.append("s")
        else:
            sizes.append(
                (size - 1) * stride + kernel - 2 * pad if transposed else (size + 2 * pad - kernel) // stride + 1
            )
    known = all(isinstance(size, int) and size > 0 for size in sizes)
    if "auto_pad" not in attributes and not known:
        return
    shape = (x.shape[0], out, *sizes) if known else None
    g.add("ConvTranspose" if transposed else "Conv", inputs, shape, **attributes)


def _linear(g: Builder) -> None:
    x = g.any_float(2, 3, 4)
    width = None if x is None else _size(x, -1)
    if x is None or x.shape is None or not width:
        return
    out = g.one_of(1, 3, 8)
    if len(x.shape) == 2 and g.draw(st.booleans()):
        flipped = g.one_of(0, 1)
        weight = g.weight(out, width) if flipped else g.weight(width, out)
        factors = {"alpha": g.one_of(1.0, 0.5), "beta": g.one_of(1.0, 2.0)} if g.seldom() else {}
        g.add("Gemm", [x.name, weight, g.weight(out)], (x.shape[0], out), transB=flipped, **factors)
    else:
        g.add("MatMul", [x.name, g.weight(width, out)], (*x.shape[:-1], out))


def _attention(g: Builder) -> None:
    x = g.any_float(2, 3, 4)
    if x is None or x.shape is None:
        return
    rank = len(x.shape)
    order = [*range(rank - 2), rank - 1, rank - 2]
    turned = g.add("Transpose", [x.name], tuple(x.shape[axis] for axis in order), perm=order)
    scores = g.add("MatMul", [x.name, turned.name], (*x.shape[:-1], x.shape[-2]))
    soft = g.add("Softmax", [scores.name], scores.shape, axis=rank - 1)
    g.add("MatMul", [soft.name, x.name], x.shape)


def _activation(g: Builder) -> None:
    x = g.any_float()
    if x is None:
        return
    kind = g.one_of("plain", "plain", "plain", "clip", "prelu", "swish", "pad")
    if kind == "plain":
        g.add(g.one_of(*ONE_TENSOR.split()), [x.name], x.shape)
    elif kind == "clip" and g.opset >= 11:
        limits = [g.constant(g.one_of(0.0, [0.0])), g.one_of("", g.constant(6.0))]
        g.add("Clip", [x.name, *limits], x.shape)
    elif kind == "clip":
        g.add("Clip", [x.name], x.shape, min=0.0, max=6.0)
    elif kind == "prelu":
        g.add("PRelu", [x.name, g.weight(1)], x.shape)
    elif kind == "swish":
        gate = g.add("Sigmoid", [x.name], x.shape)
        g.add("Mul", [x.name, gate.name], x.shape)


def _arithmetic(g: Builder) -> None:
    x = g.any_float()
    if x is None:
        return
    op = g.one_of("Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Mean", "Sum")
    others = [value.name for value in g.values if value.shape == x.shape and value.dtype == x.dtype]
    operand = g.one_of(*others) if g.draw(st.booleans()) else g.constant(g.one_of(2.0, [0.5], 0.0, [[1.0]]))
    g.add(op, [x.name, operand] if g.draw(st.booleans()) else [operand, x.name], x.shape)


def _norm(g: Builder) -> None:
    x = g.any_float(3, 4)
    channels = None if x is None else _size(x, 1)
    if x is None or x.shape is None or not channels:
        return
    kind = g.one_of("batch", "batch", "layer", "instance", "group", "lrn", "lp")
    if kind == "batch":
        g.add(
            "BatchNormalization", [x.name, *(g.constant(np.full(channels, v)) for v in (1.5, 0.1, 0.2, 2.0))], x.shape
        )
    elif kind == "layer" and _size(x, -1):
        g.add("LayerNormalization", [x.name, g.weight(_size(x, -1) or 1)], x.shape, axis=-1)
    elif kind == "instance":
        g.add("InstanceNormalization", [x.name, g.weight(channels), g.weight(channels)], x.shape)
    elif kind == "group":
        g.add("GroupNormalization", [x.name, g.weight(channels), g.weight(channels)], x.shape, num_groups=1)
    elif kind == "lrn":
        g.add("LRN", [x.name], x.shape, size=3)
    else:
        g.add("LpNormalization", [x.name], x.shape, axis=1)


def _pool(g: Builder) -> None:
    x = g.any_float(3, 4)
    if x is None or x.shape is None:
        return
    spatial = len(x.shape) - 2
    if g.draw(st.booleans()):
        op = g.one_of("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")
        g.add(op, [x.name], (*x.shape[:2], *[1] * spatial))
        return
    sizes = [size // 2 if isinstance(size, int) else "s" for size in x.shape[2:]]
    if 0 in sizes:
        return
    op = g.one_of("MaxPool", "AveragePool", "LpPool")
    ceil = {"ceil_mode": 1} if g.seldom() and g.opset >= 10 else {}
    shape = None if ceil else (*x.shape[:2], *sizes)
    g.add(op, [x.name], shape, kernel_shape=[2] * spatial, strides=[2] * spatial, **ceil)


def _reduce(g: Builder) -> None:
    x = g.any_float(2, 3, 4)
    if x is None or x.shape is None:
        return
    axis = g.whole(1, len(x.shape) - 1) - g.one_of(0, 0, len(x.shape))
    keeps = g.one_of(0, 1)
    kept = [*x.shape]
    kept[axis : axis + 1 or None] = [1] if keeps else []
    op = g.one_of("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL2", "ReduceProd", "ReduceLogSumExp")
    if g.opset >= (13 if op == "ReduceSum" else 18):
        g.add(op, [x.name, g.constant([axis], np.int64)], tuple(kept), keepdims=keeps)
    else:
        g.add(op, [x.name], tuple(kept), axes=[axis], keepdims=keeps)


def _reshape(g: Builder) -> None:
    x = g.any_float()
    if x is None:
        return
    kind = g.one_of("flat", "minus", "computed", "expand", "squeeze", "transpose", "tile")
    known = None if x.shape is None else [size for size in x.shape[1:] if isinstance(size, int)]
    whole = math.prod(known) if x.shape is not None and known is not None and len(known) == len(x.shape) - 1 else None
    first = x.shape[0] if x.shape else "N"
    if kind == "flat":
        g.add("Flatten", [x.name], (first, whole) if whole else None)
    elif kind == "minus" and whole:
        target = g.one_of([0, -1], [-1, whole], [0, whole, 1], [0, 1, whole, 1], [1, -1], [whole, -1])
        shape: Shape | None = tuple(first if size == 0 else whole if size == -1 else size for size in target)
        g.add("Reshape", [x.name, g.constant(target, np.int64)], shape if target[0] == 0 else None)
    elif kind == "computed":
        size = g.add("Shape", [x.name], None, dtype=TensorProto.INT64)
        batch = g.add("Gather", [size.name, g.constant([0], np.int64)], (1,), dtype=TensorProto.INT64)
        rest = g.constant([-1], np.int64)
        target = g.add("Concat", [batch.name, rest], (2,), dtype=TensorProto.INT64, axis=0)
        g.add("Reshape", [x.name, target.name], (first, whole) if whole else None)
    elif kind == "expand" and x.shape:
        g.add("Expand", [x.name, g.constant([1] * len(x.shape), np.int64)], x.shape)
    elif kind == "squeeze" and x.shape:
        axis = g.constant([1], np.int64)
        if g.opset >= 13:
            g.add("Unsqueeze", [x.name, axis], (first, 1, *x.shape[1:]))
        else:
            g.add("Unsqueeze", [x.name], (first, 1, *x.shape[1:]), axes=[1])
    elif kind == "transpose" and x.shape:
        order = g.draw(st.permutations(range(1, len(x.shape))))
        order = [0, *order] if not g.seldom() else [*order, 0]
        g.add("Transpose", [x.name], tuple(x.shape[axis] for axis in order), perm=order)
    elif kind == "tile" and x.shape:
        g.add("Tile", [x.name, g.constant([1] * len(x.shape), np.int64)], x.shape)


def _join(g: Builder) -> None:
    x = g.any_float()
    if x is None or not x.shape or len(x.shape) < 2:
        return
    size = _size(x, 1)
    kind = g.one_of("concat", "concat", "split", "slice", "pad", "gather", "resize", "where", "cast")
    if kind == "concat":
        others = [value.name for value in g.values if value.shape == x.shape and value.dtype == x.dtype]
        g.add("Concat", [x.name, g.one_of(*others)], (x.shape[0], 2 * size if size else "c", *x.shape[2:]), axis=1)
    elif kind == "split" and size and size % 2 == 0:
        half = (x.shape[0], size // 2, *x.shape[2:])
        second = g.name("half")
        made = g.add("Split", [x.name], half, axis=1)
        g.nodes[-1].output.append(second)
        g.values.append(Known(second, half, made.dtype))
        if g.opset >= 18:
            g.nodes[-1].attribute.append(helper.make_attribute("num_outputs", 2))
    elif kind == "slice" and size and g.opset >= 10:
        bounds = [g.constant([number], np.int64) for number in (0, g.one_of(1, size, 1 << 62), 1)]
        g.add("Slice", [x.name, *bounds], None)
    elif kind == "pad" and g.opset >= 11:
        pads = [0] * len(x.shape) * 2
        pads[-1] = 1
        mode = g.one_of("constant", "reflect", "edge")
        g.add("Pad", [x.name, g.constant(pads, np.int64)], None, mode=mode)
    elif kind == "gather" and size:
        g.add("Gather", [x.name, g.constant([0, size - 1], np.int64)], (x.shape[0], 2, *x.shape[2:]), axis=1)
    elif kind == "resize" and g.opset >= 11 and len(x.shape) == 4:
        mode = g.one_of("nearest", "linear", "cubic")
        g.add("Resize", [x.name, "", g.constant([1, 1, 2, 2], np.float32)], None, mode=mode)
    elif kind == "where" and g.opset >= 9:
        above = g.add("Greater", [x.name, g.constant(0.0)], x.shape, dtype=TensorProto.BOOL)
        g.add("Where", [above.name, x.name, g.constant(-1.0)], x.shape)
    elif kind == "cast":
        to = g.one_of(TensorProto.INT64, TensorProto.INT32, TensorProto.FLOAT16, TensorProto.BOOL, TensorProto.DOUBLE)
        there = g.add("Cast", [x.name], x.shape, dtype=to, to=to)
        g.add("Cast", [there.name], x.shape, to=g.dtype)


def _recurrent(g: Builder) -> None:
    x = g.any_float(3)
    width = None if x is None else _size(x, -1)
    if x is None or x.shape is None or not width:
        return
    op, gates = g.one_of(("LSTM", 4), ("GRU", 3), ("RNN", 1))
    hidden = 2
    weights = [g.weight(1, gates * hidden, width), g.weight(1, gates * hidden, hidden)]
    made = g.add(op, [x.name, *weights], (x.shape[0], 1, x.shape[1], hidden), hidden_size=hidden)
    if g.opset >= 13:
        g.add("Squeeze", [made.name, g.constant([1], np.int64)], (*x.shape[:2], hidden))


def _control(g: Builder) -> None:
    x = g.any_float()
    if x is None:
        return
    out = helper.make_tensor_value_info
    branches = {}
    for key, op in (("then_branch", "Relu"), ("else_branch", "Neg")):
        name = f"{key}_{len(g.nodes)}"
        node = helper.make_node(op, [x.name], [name])
        branches[key] = helper.make_graph([node], key, [], [out(name, g.dtype, None)])
    if g.draw(st.booleans()):
        condition = g.constant(g.draw(st.booleans()), np.bool_)
    else:
        total = g.add("ReduceMax", [x.name], (), keepdims=0)
        condition = g.add("Greater", [total.name, g.constant(0.0)], (), dtype=TensorProto.BOOL).name
    if g.draw(st.booleans()):
        g.add("If", [condition], x.shape, **branches)
        return
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["going"], ["goes_on"]),
            helper.make_node("Add", ["held", "held"], ["next"]),
        ],
        "body",
        [out("turn", TensorProto.INT64, []), out("going", TensorProto.BOOL, []), out("held", g.dtype, None)],
        [out("goes_on", TensorProto.BOOL, []), out("next", g.dtype, None)],
    )
    g.add("Loop", [g.constant(2, np.int64), "", x.name], x.shape, body=body)


def _foreign(g: Builder) -> None:
    x = g.any_float()
    if x is None:
        return
    domain, op = g.one_of(
        ("com.microsoft", "Gelu"), ("com.microsoft", "BiasGelu"), ("my.own", "Thing"), ("ai.onnx.ml", "Scaler")
    )
    g.add(op, [x.name], x.shape, domain=domain)


def _anything(g: Builder) -> None:
    """Add a node of any of ONNX's operators, with inputs and attributes that need not fit it."""
    op = g.one_of(*SCHEMAS)
    schema = onnx.defs.get_schema(op)
    count = g.whole(schema.min_input, min(schema.max_input, schema.min_input + 3))
    inputs = []
    for _ in range(count):
        inputs.append(
            g.one_of(*g.values).name
            if g.values and g.draw(st.booleans())
            else g.constant(
                g.one_of(0, 1, [1], [0, 1], [-1], [2.5], [[1, 2]]), g.one_of(np.int64, np.float32, np.bool_)
            )
        )
    graph = helper.make_graph([helper.make_node("Identity", [g.one_of(*g.values).name], ["b"])], "b", [], [])
    kinds = {
        "INT": g.one_of(0, 1, -1, 2, 1 << 40),
        "INTS": g.one_of([], [1], [0, 1], [-1, -1], [2, 2, 2, 2], [1 << 33]),
        "FLOAT": g.one_of(0.0, 1.0, -1.0, math.nan, math.inf),
        "FLOATS": g.one_of([1.0], [0.5, 0.5]),
        "STRING": g.one_of("", "linear", "SAME_UPPER", "constant", "nonsense"),
        "STRINGS": g.one_of(["a"], ["Tanh", "Tanh"]),
        "TENSOR": numpy_helper.from_array(np.zeros((1,), g.one_of(np.float32, np.int64))),
        "GRAPH": graph,
    }
    made = g.add(op, inputs, None)
    for name, attribute in schema.attributes.items():
        kind = str(attribute.type).rsplit(".", 1)[-1]
        if kind in kinds and (attribute.required or g.seldom()):
            number = onnx.AttributeProto.AttributeType.Value(kind)
            g.nodes[-1].attribute.append(helper.make_attribute(name, kinds[kind], attr_type=number))
    more = schema.max_output - 1
    g.nodes[-1].output.extend(f"{made.name}_{index}" for index in range(g.whole(0, min(more, 2))))


RECIPES: list[Callable[[Builder], None]] = [
    _conv, _conv, _conv, _linear, _linear, _attention, _activation, _activation, _arithmetic, _norm, _pool, _reduce,
    _reshape, _reshape, _join, _join, _join, _activation, _arithmetic, _recurrent, _control, _foreign, _anything,
]  # fmt: skip


def fixed_graphs() -> list[onnx.ModelProto]:
    """Return networks that go in as they are, with operators whose numbers libraries take at their word."""
    residual = """(float[N,3,8,8] image) => (float[N,10] scores) {
      [stem] a = Conv<pads=[1,1,1,1]>(image, w1)
      [norm] b = BatchNormalization(a, s, t, m, v)
      [relu] c = Relu(b)
      [left] d = Conv<pads=[1,1,1,1], strides=[2,2]>(c, w2)
      [pool] p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(c)
      [cut] e = Slice(p, start, stop, axis, step)
      [wide] f = Pad(e, pads)
      [sum] g = Add(d, f)
      [mean] h = GlobalAveragePool(g)
      [flat] i = Reshape(h, rows)
      [head] scores = Gemm<transB=1>(i, w3, b3)
    }"""
    tokens = """(float[1,6,8] x) => (float[1,6,4] y) {
      [query] q = MatMul(x, w)
      [turn] k = Transpose<perm=[0,2,1]>(q)
      [scores] s = MatMul(q, k)
      [soft] p = Softmax<axis=-1>(s)
      [mix] a = MatMul(p, q)
      [halves] l, r = Split<axis=-1>(a, parts)
      [gate] o = Sigmoid(r)
      [gated] g = Mul(l, o)
      [all] c = Concat<axis=2>(g, l)
      [back] z = Reshape(c, shape)
      [some] e = Gather<axis=2>(z, at)
      [last] y = MatMul(e, u)
    }"""
    whole = {name: np.asarray(number, np.int64) for name, number in (("start", [0]), ("stop", [4]), ("axis", [2]))}
    return [
        tiny_cnn(),
        network(
            residual, w1=(4, 3, 3, 3), s=(4,), t=(4,), m=(4,), v=np.full(4, 0.5, np.float32), w2=(4, 4, 3, 3),
            step=np.array([1]), pads=np.zeros(8, np.int64), rows=np.array([-1, 4]), w3=(10, 4), b3=(10,), **whole,
        ),
        network(
            tokens, w=(8, 8), parts=np.array([4, 4]), shape=np.array([1, 6, 8]), at=np.arange(8), u=(8, 4),
        ),
    ]  # fmt: skip


@st.composite
def graphs(draw: Any) -> onnx.ModelProto:
    """Return models of one to ten operators."""
    dtype = draw(st.sampled_from([TensorProto.FLOAT] * 14 + [TensorProto.FLOAT16, TensorProto.DOUBLE]))
    g = Builder(draw, draw(st.sampled_from(OPSETS)), dtype)
    batch = draw(st.sampled_from(["N"] * 6 + [1, 1, 1, 2, 4]))
    inputs = []
    for index in range(draw(st.sampled_from([1, 1, 1, 1, 2, 3]))):
        shape: Shape = draw(
            st.sampled_from(
                [(batch, 3, 8, 8)] * 6
                + [(batch, 4, 6), (batch, 8)] * 2
                + [(batch, 2, 4, 4, 4), (batch, 3, "H", "W"), (batch, "T", 8), (batch,), ()]
            )
        )  # fmt: skip
        if not index and len(shape) < 2 and not g.seldom():
            shape = (batch, 8)
        if index and g.seldom():
            shape = (1, 4)
        kind = TensorProto.INT64 if index and g.seldom() else dtype
        value = Known(g.name(f"in{index}"), shape, kind)
        inputs.append(helper.make_tensor_value_info(value.name, kind, shape))
        g.values.append(value)
    _linear(g)
    _conv(g) if draw(st.booleans()) else _linear(g)
    for _ in range(draw(st.integers(0, 9))):
        draw(st.sampled_from(RECIPES))(g)
    made = g.values[len(inputs) :] or g.values
    ends = [made[-1], *(draw(st.sampled_from(made)) for _ in range(draw(st.sampled_from([0, 0, 0, 1, 2]))))]
    outputs = [
        helper.make_tensor_value_info(end.name, end.dtype, None if g.seldom() else end.shape)
        for end in {end.name: end for end in ends}.values()
    ]
    if draw(st.integers(0, 7)) == 7:
        inputs += [helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in g.initializers]
    graph = helper.make_graph(g.nodes, draw(st.sampled_from(["g"] * 8 + ["", "a b"])), inputs, outputs, g.initializers)
    imports = [helper.make_opsetid("", g.opset)]
    imports += [helper.make_opsetid(name, 1) for name in {node.domain for node in g.nodes} - {""}]
    model = helper.make_model(graph, opset_imports=imports)
    model.ir_version = draw(st.sampled_from([8, 8, 8, 3, 4, 7, 10]))
    return model
