"""MobileNetV2 (Sandler et al., 2018, https://arxiv.org/abs/1801.04381) for 32x32 pixels, one channel; its ONNX form.

The ONNX form keeps Conv, BatchNormalization and Clip apart, as a training framework leaves them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

import onnx
from torch import Generator, Tensor, nn, tensor

IMAGE_SIZE = 32
NUM_CLASSES = 10
OPSET = 18


@dataclass(frozen=True)
class Stage:
    """One row of the paper's table 2: `repeats` inverted residuals, the first of them with `stride`."""

    expansion: int
    channels: int
    repeats: int
    stride: int


STEM_CHANNELS = 16
STAGES = (Stage(1, 8, 1, 1), Stage(6, 12, 2, 2), Stage(6, 16, 3, 2), Stage(6, 24, 2, 1), Stage(6, 40, 2, 2))
HEAD_CHANNELS = 128


class ConvBn(nn.Sequential):
    """Conv without a bias, BatchNorm, and ReLU6 unless the layer is linear."""

    def __init__(self, in_ch: int, out_ch: int, kernel: int, *, stride: int = 1, groups: int = 1, relu6: bool = True):
        conv = nn.Conv2d(in_ch, out_ch, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
        layers = OrderedDict[str, nn.Module](conv=conv, bn=nn.BatchNorm2d(out_ch, eps=1e-3))
        if relu6:
            layers["relu6"] = nn.ReLU6()
        super().__init__(layers)


class InvertedResidual(nn.Module):
    """1x1 expansion, 3x3 depthwise, linear 1x1 projection; added to its input where the shapes agree."""

    def __init__(self, in_ch: int, out_ch: int, *, expansion: int, stride: int):
        super().__init__()
        hidden = in_ch * expansion
        self.expand = ConvBn(in_ch, hidden, 1) if expansion != 1 else None
        self.depthwise = ConvBn(hidden, hidden, 3, stride=stride, groups=hidden)
        self.project = ConvBn(hidden, out_ch, 1, relu6=False)
        self.residual = stride == 1 and in_ch == out_ch

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, in_ch, H, W] to [N, out_ch, H / stride, W / stride]."""
        hidden = x if self.expand is None else self.expand(x)
        y: Tensor = self.project(self.depthwise(hidden))
        return x + y if self.residual else y


class MobileNetV2(nn.Module):
    """The stem and the stages leave 2x2 pixels, which the classifier reads averaged."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvBn(1, STEM_CHANNELS, 3, stride=2)
        blocks: list[InvertedResidual] = []
        channels = STEM_CHANNELS
        for stage in STAGES:
            for repeat in range(stage.repeats):
                stride = stage.stride if repeat == 0 else 1
                blocks.append(InvertedResidual(channels, stage.channels, expansion=stage.expansion, stride=stride))
                channels = stage.channels
        self.features = nn.Sequential(*blocks)
        self.head = ConvBn(channels, HEAD_CHANNELS, 1)
        self.classifier = nn.Linear(HEAD_CHANNELS, NUM_CLASSES)

    def initialize(self, generator: Generator) -> None:
        """Draw the weights as the paper's reference implementations do."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", generator=generator)
        nn.init.normal_(self.classifier.weight, std=0.01, generator=generator)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, 1, 32, 32] normalized pixels to [N, 10] logits."""
        pooled = self.head(self.features(self.stem(x))).mean((2, 3))
        logits: Tensor = self.classifier(pooled)
        return logits


@dataclass
class GraphBuilder:
    """A list of nodes and initializers. A node `/a/b` writes the value `/a/b_output`."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: list[onnx.TensorProto] = field(default_factory=list)

    def constant(self, name: str, value: Tensor) -> str:
        """Add an initializer."""
        self.initializers.append(onnx.numpy_helper.from_array(value.detach().numpy(), name))
        return name

    def node(self, op: str, name: str, inputs: Sequence[str], **attributes: int | float | Sequence[int]) -> str:
        """Add a node with one output, and return that output's name."""
        output = f"{name}_output"
        node = onnx.helper.make_node(op, inputs, [output], name=name)
        node.attribute.extend(onnx.helper.make_attribute(key, value) for key, value in attributes.items())
        self.nodes.append(node)
        return output

    def conv_bn(self, name: str, layer: ConvBn, x: str) -> str:
        """Add Conv -> BatchNormalization, and -> Clip where the layer is not linear."""
        conv, bn = layer.get_submodule("conv"), layer.get_submodule("bn")
        assert isinstance(conv, nn.Conv2d)
        assert isinstance(bn, nn.BatchNorm2d)
        kernel, stride = list(conv.weight.shape[2:]), list(conv.stride)
        pads = [kernel[0] // 2, kernel[1] // 2] * 2
        weight = self.constant(f"{name}/conv.weight", conv.weight)
        x = self.node(
            "Conv", f"{name}/conv", [x, weight], kernel_shape=kernel, strides=stride, pads=pads, group=conv.groups
        )
        state = bn.state_dict()
        keys = ("weight", "bias", "running_mean", "running_var")
        parameters = [self.constant(f"{name}/bn.{key}", state[key]) for key in keys]
        x = self.node("BatchNormalization", f"{name}/bn", [x, *parameters], epsilon=bn.eps)
        if "relu6" not in dict(layer.named_children()):
            return x
        return self.node("Clip", f"{name}/relu6", [x, "relu6.min", "relu6.max"])


def to_onnx(net: MobileNetV2) -> onnx.ModelProto:
    """Return the trained network as ONNX: `input` [batch, 1, 32, 32] to `logits` [batch, 10], nothing folded."""
    graph = GraphBuilder()
    graph.constant("relu6.min", tensor(0.0))
    graph.constant("relu6.max", tensor(6.0))
    x = graph.conv_bn("/stem", net.stem, "input")
    for index, block in enumerate(net.features):
        assert isinstance(block, InvertedResidual)
        name = f"/features/{index}"
        y = x if block.expand is None else graph.conv_bn(f"{name}/expand", block.expand, x)
        y = graph.conv_bn(f"{name}/depthwise", block.depthwise, y)
        y = graph.conv_bn(f"{name}/project", block.project, y)
        x = graph.node("Add", f"{name}/add", [x, y]) if block.residual else y
    x = graph.node("GlobalAveragePool", "/pool", [graph.conv_bn("/head", net.head, x)])
    x = graph.node("Flatten", "/flatten", [x], axis=1)
    weight = graph.constant("/classifier.weight", net.classifier.weight)
    bias = graph.constant("/classifier.bias", net.classifier.bias)
    graph.node("Gemm", "/classifier", [x, weight, bias], transB=1)
    graph.nodes[-1].output[0] = "logits"
    shape: list[str | int | None] = ["batch", 1, IMAGE_SIZE, IMAGE_SIZE]
    inputs = [onnx.helper.make_tensor_value_info("input", onnx.TensorProto.FLOAT, shape)]
    outputs = [onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["batch", NUM_CLASSES])]
    model = onnx.helper.make_model(
        onnx.helper.make_graph(graph.nodes, "mobilenet_v2_digits", inputs, outputs, graph.initializers),
        opset_imports=[onnx.helper.make_opsetid("", OPSET)],
        ir_version=10,
        producer_name="dipo.zoo",
    )
    onnx.checker.check_model(model, full_check=True)
    return model
