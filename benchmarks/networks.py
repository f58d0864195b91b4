"""Networks of known shapes with random weights, for benchmarks in which no figure depends on what was learnt.

Weights are drawn from a seed and scaled so that activations keep their size through the depth, as trained networks' do.
The batch is dynamic.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from dipo.zoo.mobilenet import ConvBn, GraphBuilder, InvertedResidual, Stage

OPSET = 20
NUM_CLASSES = 10
MOBILENET_STAGES = (
    Stage(1, 16, 1, 1), Stage(6, 24, 2, 2), Stage(6, 32, 3, 2), Stage(6, 64, 4, 2),
    Stage(6, 96, 3, 1), Stage(6, 160, 3, 2), Stage(6, 320, 1, 1),
)  # fmt: skip
"""Table 2 of arXiv:1801.04381, width 1.0."""
MOBILENET_STEM, MOBILENET_HEAD = 32, 1280
STATISTICS_SAMPLES = 8


@dataclass(frozen=True)
class EncoderShape:
    """A pre-LN transformer encoder."""

    blocks: int = 48
    width: int = 256
    heads: int = 4
    length: int = 64
    """Tokens of a sequence."""
    mlp: int = 4
    """Width of the hidden layer over `width`."""


def encoder(shape: EncoderShape, *, seed: int = 0) -> onnx.ModelProto:
    """A transformer encoder: `input` [batch, length, width] to `logits` [batch, 10] of the mean token.

    Matrices have a standard deviation of 1/sqrt(fan in); those that end in a residual sum are smaller by the square
    root of the number of such sums.
    """
    writer = _EncoderWriter(shape, seed)
    x = "input"
    for index in range(shape.blocks):
        x = writer.attention(f"/block{index}/attention", x)
        x = writer.perceptron(f"/block{index}/mlp", x)
    graph = writer.graph
    x = graph.node("ReduceMean", "/mean", [writer.norm("/norm", x), writer.ints("/mean.axes", [1])], keepdims=0)
    head = [writer.matrix("/head.weight", shape.width, NUM_CLASSES), writer.zeros("/head.bias", NUM_CLASSES)]
    graph.node("Gemm", "/head", [x, *head])
    return _model(graph, "encoder", ["batch", shape.length, shape.width])


class _EncoderWriter:
    """Writes the parts of an encoder into a graph."""

    def __init__(self, shape: EncoderShape, seed: int) -> None:
        self.shape, self.graph = shape, GraphBuilder()
        self.generator = torch.Generator().manual_seed(seed)
        size = shape.width // shape.heads
        self.split = self.ints("split.shape", [0, shape.length, shape.heads, size])
        self.merge = self.ints("merge.shape", [0, shape.length, shape.width])
        self.temperature = self.graph.constant("temperature", torch.tensor(1 / math.sqrt(size)))

    def attention(self, name: str, x: str) -> str:
        """Multi-head self-attention behind a norm, added to its input."""
        graph, normed = self.graph, self.norm(f"{name}/norm", x)
        heads = {}
        for role, order in (("query", [0, 2, 1, 3]), ("key", [0, 2, 3, 1]), ("value", [0, 2, 1, 3])):
            y = self.dense(f"{name}/{role}", normed, self.shape.width, self.shape.width)
            y = graph.node("Reshape", f"{name}/{role}/split", [y, self.split])
            heads[role] = graph.node("Transpose", f"{name}/{role}/order", [y], perm=order)
        scores = graph.node("MatMul", f"{name}/scores", [heads["query"], heads["key"]])
        scores = graph.node("Mul", f"{name}/scale", [scores, self.temperature])
        shares = graph.node("Softmax", f"{name}/softmax", [scores], axis=-1)
        y = graph.node("MatMul", f"{name}/mix", [shares, heads["value"]])
        y = graph.node("Transpose", f"{name}/order", [y], perm=[0, 2, 1, 3])
        y = graph.node("Reshape", f"{name}/merge", [y, self.merge])
        y = self.dense(f"{name}/out", y, self.shape.width, self.shape.width, gain=self._residual_gain())
        return graph.node("Add", f"{name}/sum", [x, y])

    def perceptron(self, name: str, x: str) -> str:
        """Two layers with a Gelu between them behind a norm, added to their input."""
        hidden = self.shape.width * self.shape.mlp
        y = self.dense(f"{name}/up", self.norm(f"{name}/norm", x), self.shape.width, hidden)
        y = self.graph.node("Gelu", f"{name}/gelu", [y])
        y = self.dense(f"{name}/down", y, hidden, self.shape.width, gain=self._residual_gain())
        return self.graph.node("Add", f"{name}/sum", [x, y])

    def norm(self, name: str, x: str) -> str:
        """LayerNormalization over the last axis."""
        scale = self.graph.constant(f"{name}.weight", torch.ones(self.shape.width))
        return self.graph.node(
            "LayerNormalization", name, [x, scale, self.zeros(f"{name}.bias", self.shape.width)], axis=-1
        )

    def dense(self, name: str, x: str, fan_in: int, fan_out: int, *, gain: float = 1.0) -> str:
        """A matrix product and a bias."""
        weight = self.matrix(f"{name}.weight", fan_in, fan_out, gain=gain)
        y = self.graph.node("MatMul", name, [x, weight])
        return self.graph.node("Add", f"{name}/bias", [y, self.zeros(f"{name}.bias", fan_out)])

    def matrix(self, name: str, fan_in: int, fan_out: int, *, gain: float = 1.0) -> str:
        """[fan_in, fan_out], normal."""
        weight = torch.randn(fan_in, fan_out, generator=self.generator)
        return self.graph.constant(name, weight * (gain / math.sqrt(fan_in)))

    def zeros(self, name: str, size: int) -> str:
        """A bias."""
        return self.graph.constant(name, torch.zeros(size))

    def ints(self, name: str, values: Sequence[int]) -> str:
        """A shape, or axes."""
        return self.graph.constant(name, torch.tensor(values))

    def _residual_gain(self) -> float:
        return 1 / math.sqrt(2 * self.shape.blocks)


def mobilenet_v2(*, size: int = 224, seed: int = 0) -> onnx.ModelProto:
    """MobileNetV2 1.0 (arXiv:1801.04381): `input` [batch, 3, size, size] to `logits` [batch, 10].

    The statistics of the BatchNorms are those of random images, so that every layer's output is normalised.
    """
    generator = torch.Generator().manual_seed(seed)
    parts = _mobilenet_parts()
    for module in parts.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", generator=generator)
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    parts.train()
    with torch.no_grad():
        parts(torch.randn(STATISTICS_SAMPLES, 3, size, size, generator=generator))
    graph = GraphBuilder()
    graph.constant("relu6.min", torch.tensor(0.0))
    graph.constant("relu6.max", torch.tensor(6.0))
    x = "input"
    for index, part in enumerate(parts):
        x = _write_part(graph, f"/features/{index}", part, x)
    x = graph.node("Flatten", "/flatten", [graph.node("GlobalAveragePool", "/pool", [x])], axis=1)
    weight: Tensor = torch.randn(NUM_CLASSES, MOBILENET_HEAD, generator=generator) / math.sqrt(MOBILENET_HEAD)
    head = [graph.constant("/head.weight", weight), graph.constant("/head.bias", torch.zeros(NUM_CLASSES))]
    graph.node("Gemm", "/head", [x, *head], transB=1)
    return _model(graph, "mobilenet_v2", ["batch", 3, size, size])


def _mobilenet_parts() -> nn.Sequential:
    """The stem, the inverted residuals and the last convolution."""
    shapes = [(stage, repeat) for stage in MOBILENET_STAGES for repeat in range(stage.repeats)]
    channels = [MOBILENET_STEM, *(stage.channels for stage, _ in shapes)]
    blocks = [
        InvertedResidual(in_ch, out_ch, expansion=stage.expansion, stride=1 if repeat else stage.stride)
        for (stage, repeat), (in_ch, out_ch) in zip(shapes, pairwise(channels), strict=True)
    ]
    return nn.Sequential(ConvBn(3, MOBILENET_STEM, 3, stride=2), *blocks, ConvBn(channels[-1], MOBILENET_HEAD, 1))


def _write_part(graph: GraphBuilder, name: str, part: nn.Module, x: str) -> str:
    if isinstance(part, ConvBn):
        return graph.conv_bn(name, part, x)
    assert isinstance(part, InvertedResidual)
    y = x if part.expand is None else graph.conv_bn(f"{name}/expand", part.expand, x)
    y = graph.conv_bn(f"{name}/project", part.project, graph.conv_bn(f"{name}/depthwise", part.depthwise, y))
    return graph.node("Add", f"{name}/add", [x, y]) if part.residual else y


def _model(graph: GraphBuilder, name: str, shape: Sequence[str | int]) -> onnx.ModelProto:
    """The graph as a model; what its last node writes is the output."""
    graph.nodes[-1].output[0] = "logits"
    inputs = [onnx.helper.make_tensor_value_info("input", onnx.TensorProto.FLOAT, list(shape))]
    outputs = [onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["batch", NUM_CLASSES])]
    return onnx.helper.make_model(
        onnx.helper.make_graph(graph.nodes, name, inputs, outputs, graph.initializers),
        opset_imports=[onnx.helper.make_opsetid("", OPSET)],
        ir_version=10,
    )


def write(model: onnx.ModelProto, folder: Path, name: str, *, num_samples: int, seed: int = 0) -> list[str]:
    """Writes the model and random samples for it; the launcher's options that name them."""
    shape = [size.dim_value for size in model.graph.input[0].type.tensor_type.shape.dim][1:]
    samples = np.random.default_rng(seed).standard_normal((num_samples, *shape), dtype=np.float32)
    onnx.save(model, folder / f"{name}.onnx")
    np.savez(folder / f"{name}.npz", input=samples)
    return [f"model.path={folder / name}.onnx", f"data.path={folder / name}.npz"]
