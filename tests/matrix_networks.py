"""Small networks of the kinds that users bring, with samples: windows, a detector's head, attention masks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from networks import network
from numpy.typing import NDArray

CALIB, EVAL = 32, 96
CHANNELS, TOKENS = 8, 16


@dataclass(frozen=True)
class Part:
    """A piece of an output that has a meaning of its own, such as the scores of a joined output."""

    output: str
    start: int = 0
    stop: int | None = None
    """Of axis 1."""
    joined: str | None = None
    """Value within the network whose numbers these are, where it is joined with others."""

    @property
    def values(self) -> set[str]:
        """Names of values under which a report may speak of the piece."""
        return {self.output, self.joined or self.output}

    def of(self, outputs: Mapping[str, NDArray[np.float32]]) -> NDArray[np.float32]:
        """Return the piece, [samples, ...]."""
        return outputs[self.output][:, self.start : self.stop]


@dataclass(frozen=True)
class Case:
    """A network, samples for its inputs, and the parts of its outputs."""

    model: onnx.ModelProto
    samples: Mapping[str, NDArray[np.float32]]
    """By name of the input, those of calibration before those of the evaluation."""
    parts: Mapping[str, Part]

    @property
    def num_eval(self) -> int:
        """Samples of the evaluation."""
        return EVAL

    def calib(self) -> dict[str, NDArray[np.float32]]:
        """Return the samples of calibration."""
        return {name: array[:CALIB] for name, array in self.samples.items()}

    def eval(self) -> dict[str, NDArray[np.float32]]:
        """Return the samples of the evaluation."""
        return {name: array[CALIB:] for name, array in self.samples.items()}


def _normal(*shape: int, seed: int) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(CALIB + EVAL, *shape)) * np.linspace(0.5, 1.5, shape[0])[:, None]).astype(np.float32)


def _norms(*names: str) -> dict[str, NDArray[np.float32]]:
    """Return scales and shifts of LayerNormalizations: `<name>s` and `<name>b`."""
    rng = np.random.default_rng(len(names))
    scales = {f"{name}s": rng.uniform(0.5, 1.5, CHANNELS).astype(np.float32) for name in names}
    return scales | {f"{name}b": rng.normal(0, 0.2, CHANNELS).astype(np.float32) for name in names}


def windows(*, batch: int | str = "N") -> Case:
    """Make two blocks of Swin's kind: 16 tokens in 4 windows, which stand in the first axis, attention and an MLP."""
    blocks = "".join(
        f"""
          [n{i}] n{i} = LayerNormalization({x}, g{i}s, g{i}b)
          [grid{i}] a{i} = Reshape(n{i}, to_grid)
          [swap{i}] b{i} = Transpose<perm=[0,1,3,2,4,5]>(a{i})
          [cut{i}] c{i} = Reshape(b{i}, to_windows)
          [q{i}] q{i} = MatMul(c{i}, wq{i})
          [k{i}] k{i} = MatMul(c{i}, wk{i})
          [v{i}] v{i} = MatMul(c{i}, wv{i})
          [turn{i}] t{i} = Transpose<perm=[0,2,1]>(k{i})
          [score{i}] s{i} = MatMul(q{i}, t{i})
          [soft{i}] p{i} = Softmax(s{i})
          [mix{i}] o{i} = MatMul(p{i}, v{i})
          [proj{i}] r{i} = MatMul(o{i}, wo{i})
          [shift{i}] d{i} = Add(r{i}, bo{i})
          [ungrid{i}] e{i} = Reshape(d{i}, to_grid)
          [unswap{i}] f{i} = Transpose<perm=[0,1,3,2,4,5]>(e{i})
          [join{i}] h{i} = Reshape(f{i}, to_tokens)
          [sum{i}] x{i} = Add({x}, h{i})
          [m{i}] m{i} = LayerNormalization(x{i}, l{i}s, l{i}b)
          [flat{i}] m1{i} = Reshape(m{i}, to_rows)
          [up{i}] m2{i} = Gemm(m1{i}, wu{i}, bu{i})
          [act{i}] m3{i} = Relu(m2{i})
          [down{i}] m4{i} = Gemm(m3{i}, wd{i}, bd{i})
          [rows{i}] m5{i} = Reshape(m4{i}, to_tokens)
          [more{i}] y{i} = Add(x{i}, m5{i})"""
        for i, x in enumerate(("x", "y0"))
    )
    c = CHANNELS
    shapes = {"wq": (c, c), "wk": (c, c), "wv": (c, c), "wo": (c, c), "bo": (c,), "wu": (c, 2 * c), "bu": (2 * c,)}
    model = network(
        f"""(float[{batch},{TOKENS},{c}] x) => (float[{batch},{TOKENS},{c}] tokens, float[{batch},5] scores) {{{blocks}
          [last] tokens = Identity(y1)
          [pool] w = ReduceMean<axes=[1], keepdims=0>(y1)
          [head] scores = Gemm(w, wh, bh)
        }}""",
        to_grid=np.array([-1, 2, 2, 2, 2, c]),
        to_windows=np.array([-1, 4, c]),
        to_tokens=np.array([-1, TOKENS, c]),
        to_rows=np.array([-1, c]),
        wh=(c, 5),
        bh=(5,),
        **{f"{name}{i}": shape for i in range(2) for name, shape in shapes.items()},
        **{f"{name}{i}": shape for i in range(2) for name, shape in {"wd": (2 * c, c), "bd": (c,)}.items()},
        **_norms("g0", "l0", "g1", "l1"),
    )
    return Case(model, {"x": _normal(TOKENS, c, seed=1)}, {"tokens": Part("tokens"), "scores": Part("scores")})


def detector(*, batch: int | str = "N") -> Case:
    """Make a head that joins boxes in pixels and scores in 0..1; the scores and a feature map are outputs, too."""
    model = network(
        f"""(float[{batch},3,8,8] image)
            => (float[{batch},7,16] found, float[{batch},3,16] odds, float[{batch},8,4,4] map) {{
          [stem] a = Conv<pads=[1,1,1,1], strides=[2,2]>(image, w1, b1)
          [gate] a1 = Sigmoid(a)
          [swish] b = Mul(a, a1)
          [down] c = Conv<pads=[1,1,1,1], strides=[2,2]>(b, w2, b2)
          [relu] d = Relu(c)
          [up] e = Resize<mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor">(d, , twice)
          [join] f = Concat<axis=1>(b, e)
          [neck] h = Conv(f, w3, b3)
          [relu2] map = Relu(h)
          [head] o = Conv(map, w4, b4)
          [flat] o1 = Reshape(o, flat)
          [part] xy, wh, cls = Split<axis=1>(o1, sizes)
          [centre] xy1 = Sigmoid(xy)
          [cells] xy2 = Add(xy1, cell)
          [pixels] xy3 = Mul(xy2, stride)
          [size] wh1 = Sigmoid(wh)
          [large] wh2 = Mul(wh1, anchor)
          [odds] odds = Sigmoid(cls)
          [found] found = Concat<axis=1>(xy3, wh2, odds)
        }}""",
        w1=(8, 3, 3, 3), b1=(8,), w2=(8, 8, 3, 3), b2=(8,), w3=(8, 16, 1, 1), b3=(8,), w4=(7, 8, 1, 1),
        b4=np.float32([0, 0, 0, 0, -1, -1, -1]),
        twice=np.float32([1, 1, 2, 2]),
        flat=np.array([-1 if batch == "N" else batch, 7, 16]),
        sizes=np.array([2, 2, 3]),
        cell=np.stack(np.meshgrid(np.arange(4), np.arange(4))).reshape(1, 2, 16).astype(np.float32),
        stride=np.float32(160),
        anchor=np.float32([400, 300]).reshape(1, 2, 1),
    )  # fmt: skip
    image = np.random.default_rng(2).normal(size=(CALIB + EVAL, 3, 8, 8)).astype(np.float32)
    parts = {
        "boxes": Part("found", 0, 4),
        "joined scores": Part("found", 4, joined="odds"),
        "odds": Part("odds"),
        "map": Part("map"),
    }
    return Case(model, {"image": image}, parts)


def masked(*, batch: int | str = "N") -> Case:
    """Make two attention blocks: the first adds the lowest float32 where `mask` is 0, the second has a causal -inf."""
    blocks = "".join(
        f"""
          [q{i}] q{i} = MatMul({x}, wq{i})
          [k{i}] k{i} = MatMul({x}, wk{i})
          [v{i}] v{i} = MatMul({x}, wv{i})
          [turn{i}] t{i} = Transpose<perm=[0,2,1]>(k{i})
          [score{i}] s{i} = MatMul(q{i}, t{i})
          {mask}
          [soft{i}] p{i} = Softmax(z{i})
          [mix{i}] o{i} = MatMul(p{i}, v{i})
          [proj{i}] r{i} = MatMul(o{i}, wo{i})
          [sum{i}] x{i} = Add({x}, r{i})
          [norm{i}] y{i} = LayerNormalization(x{i}, g{i}s, g{i}b)"""
        for i, (x, mask) in enumerate(
            (("x", "[masked] z0 = Add(s0, low)"), ("y0", "[causal] z1 = Where(causal, s1, infinite)"))
        )
    )
    c, length = CHANNELS, 6
    model = network(
        f"""(float[{batch},{length},{c}] x, float[{batch},1,{length}] mask) => (float[{batch},{length},{c}] y) {{
          [hidden] hidden = Sub(one, mask)
          [low] low = Mul(hidden, lowest){blocks}
          [last] y = MatMul(y1, wy)
        }}""",
        one=np.float32(1),
        lowest=np.finfo(np.float32).min,
        causal=np.tril(np.ones((length, length), bool)),
        infinite=np.float32(-np.inf),
        wy=(c, c),
        **{f"w{letter}{i}": (c, c) for i in range(2) for letter in "qkvo"},
        **_norms("g0", "g1"),
    )
    mask = np.ones((CALIB + EVAL, 1, length), np.float32)
    for row, each in enumerate(mask):
        each[0, 3 + row % 4 :] = 0
    return Case(model, {"x": _normal(length, c, seed=3), "mask": mask}, {"y": Part("y")})


CASES = {"windows": windows, "detector": detector, "masked": masked}
