"""Trains the embedded MobileNetV2 on scikit-learn's handwritten digits and writes `mobilenet.onnx` and `digits.npz`.

    python -m dipo.zoo.train_digits

The network is MobileNetV2 (Sandler et al., 2018, https://arxiv.org/abs/1801.04381) at 32x32 pixels and one channel. The
ONNX file keeps Conv, BatchNormalization and Clip apart, as a training framework leaves them. Needs scikit-learn, which
nothing else in the package does.
"""

from __future__ import annotations

import argparse
import math
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

FOLDER = Path(__file__).parent
IMAGE_SIZE = 32
NUM_CLASSES = 10
NUM_TEST = 600
NUM_CALIB = 512
BN_EPS = 1e-5
OPSET = 18


@dataclass(frozen=True)
class Stage:
    """One row of the paper's table 2: `repeats` inverted residuals, the first of them with `stride`."""

    expansion: int
    channels: int
    repeats: int
    stride: int


STEM_CHANNELS = 16
STAGES = (Stage(1, 12, 1, 1), Stage(6, 16, 2, 2), Stage(6, 24, 3, 2), Stage(6, 32, 3, 1), Stage(6, 40, 2, 1))
HEAD_CHANNELS = 160


@dataclass(frozen=True)
class Images:
    """Images, uint8 [N, 32, 32, 1], with their labels, int64 [N]."""

    x: NDArray[np.uint8]
    y: NDArray[np.int64]


@dataclass(frozen=True)
class Split:
    """The three parts, each with every class in proportion. `calib` is a part of `train`; `test` is apart from both."""

    train: Images
    calib: Images
    test: Images


def load_split(*, seed: int) -> Split:
    """Enlarges the 8x8 digits to 32x32 bilinearly and divides them."""
    digits = load_digits()
    small = torch.from_numpy(digits.images).float().unsqueeze(1) * (255 / 16)
    large = F.interpolate(small, size=IMAGE_SIZE, mode="bilinear", align_corners=False)
    x = large.round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
    y = digits.target.astype(np.int64)
    train_x, test_x, train_y, test_y = train_test_split(x, y, test_size=NUM_TEST, stratify=y, random_state=seed)
    _, calib_x, _, calib_y = train_test_split(
        train_x, train_y, test_size=NUM_CALIB, stratify=train_y, random_state=seed + 1
    )
    return Split(train=Images(train_x, train_y), calib=Images(calib_x, calib_y), test=Images(test_x, test_y))


def to_unit(x: NDArray[np.uint8]) -> Tensor:
    """Pixels uint8 [N, H, W, C] as float32 [N, C, H, W] in 0 .. 1."""
    return torch.from_numpy(x).permute(0, 3, 1, 2).float() / 255


def normalize(x: Tensor) -> Tensor:
    """What the network reads: mean 0.5 and standard deviation 0.5 taken from pixels in 0 .. 1."""
    return (x - 0.5) / 0.5


class ConvBn(nn.Sequential):
    """Conv without a bias, BatchNorm, and ReLU6 unless the layer is linear."""

    def __init__(self, in_ch: int, out_ch: int, kernel: int, *, stride: int = 1, groups: int = 1, relu6: bool = True):
        conv = nn.Conv2d(in_ch, out_ch, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
        layers = OrderedDict[str, nn.Module](conv=conv, bn=nn.BatchNorm2d(out_ch, eps=BN_EPS))
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
        """[N, in_ch, H, W] to [N, out_ch, H / stride, W / stride]."""
        hidden = x if self.expand is None else self.expand(x)
        y: Tensor = self.project(self.depthwise(hidden))
        return x + y if self.residual else y


class MobileNetV2(nn.Module):
    """The stem halves the image; the stages leave 4x4 pixels, which the classifier reads averaged."""

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

    def initialize(self, generator: torch.Generator) -> None:
        """Draws the weights as the paper's reference implementations do."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", generator=generator)
        nn.init.normal_(self.classifier.weight, std=0.01, generator=generator)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 1, 32, 32] normalized pixels to [N, 10] logits."""
        pooled = self.head(self.features(self.stem(x))).mean((2, 3))
        logits: Tensor = self.classifier(pooled)
        return logits


def augment(x: Tensor, generator: torch.Generator) -> Tensor:
    """Turns each image by up to 10 degrees, scales it by up to 10 % and shifts it by up to 2 pixels, all uniform.

    Args:
        x: [N, 1, H, W] in 0 .. 1; what comes in from outside is the background, 0.
        generator: Where the draws come from.
    """
    turn, size, shift_x, shift_y = 2 * torch.rand(4, len(x), generator=generator) - 1
    angle, scale, reach = turn * math.radians(10), 1 + size * 0.1, 2 * 2 / IMAGE_SIZE
    cos, sin = scale * angle.cos(), scale * angle.sin()
    theta = torch.stack([cos, -sin, shift_x * reach, sin, cos, shift_y * reach], dim=1).view(-1, 2, 3)
    return F.grid_sample(x, F.affine_grid(theta, list(x.shape), align_corners=False), align_corners=False)


def train(images: Images, *, epochs: int, batch_size: int, lr: float, weight_decay: float, seed: int) -> MobileNetV2:
    """SGD with momentum 0.9 and a one-cycle learning rate whose peak is `lr`; the network comes back in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    net = MobileNetV2()
    net.initialize(generator)
    x, y = to_unit(images.x), torch.from_numpy(images.y)
    steps = len(x) // batch_size
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9, nesterov=True, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=epochs * steps, pct_start=0.1)
    for epoch in range(epochs):
        total = 0.0
        for batch in torch.randperm(len(x), generator=generator)[: steps * batch_size].split(batch_size):
            loss = F.cross_entropy(net(normalize(augment(x[batch], generator))), y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        if (epoch + 1) % 10 == 0:
            print(f"epoch {epoch + 1}/{epochs}: loss {total / steps:.4f}", flush=True)
    return net.eval()


@dataclass
class GraphBuilder:
    """Collects nodes and initializers. A node `/a/b` writes the value `/a/b_output`."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: list[onnx.TensorProto] = field(default_factory=list)

    def constant(self, name: str, value: Tensor) -> str:
        """Adds an initializer."""
        self.initializers.append(onnx.numpy_helper.from_array(value.detach().numpy(), name))
        return name

    def node(self, op: str, name: str, inputs: list[str], **attributes: object) -> str:
        """Adds a node with one output, and gives that output's name."""
        output = f"{name}_output"
        self.nodes.append(onnx.helper.make_node(op, inputs, [output], name=name, **attributes))
        return output

    def conv_bn(self, name: str, layer: ConvBn, x: str) -> str:
        """Conv -> BatchNormalization, and -> Clip where the layer is not linear."""
        conv, bn = layer.get_submodule("conv"), layer.get_submodule("bn")
        assert isinstance(conv, nn.Conv2d)
        assert isinstance(bn, nn.BatchNorm2d)
        weight = self.constant(f"{name}/conv.weight", conv.weight)
        kernel, pad = conv.kernel_size, list(conv.padding)
        x = self.node(
            "Conv",
            f"{name}/conv",
            [x, weight],
            kernel_shape=kernel,
            strides=conv.stride,
            pads=pad * 2,
            group=conv.groups,
        )
        state = bn.state_dict()
        keys = ("weight", "bias", "running_mean", "running_var")
        parameters = [self.constant(f"{name}/bn.{key}", state[key]) for key in keys]
        x = self.node("BatchNormalization", f"{name}/bn", [x, *parameters], epsilon=bn.eps)
        if len(layer) < 3:
            return x
        return self.node("Clip", f"{name}/relu6", [x, "relu6.min", "relu6.max"])


def to_onnx(net: MobileNetV2) -> onnx.ModelProto:
    """The trained network as ONNX: `input` [batch, 1, 32, 32] to `logits` [batch, 10], nothing folded."""
    graph = GraphBuilder()
    graph.constant("relu6.min", torch.tensor(0.0))
    graph.constant("relu6.max", torch.tensor(6.0))
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
    inputs = [onnx.helper.make_tensor_value_info("input", onnx.TensorProto.FLOAT, ["batch", 1, IMAGE_SIZE, IMAGE_SIZE])]
    outputs = [onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["batch", NUM_CLASSES])]
    model = onnx.helper.make_model(
        onnx.helper.make_graph(graph.nodes, "mobilenet_v2_digits", inputs, outputs, graph.initializers),
        opset_imports=[onnx.helper.make_opsetid("", OPSET)],
        ir_version=10,
        producer_name="dipo.zoo",
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def logits_of(model: onnx.ModelProto, images: Images) -> NDArray[np.float32]:
    """What ONNX Runtime computes, [N, 10]."""
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    logits: NDArray[np.float32] = session.run(["logits"], {"input": normalize(to_unit(images.x)).numpy()})[0]
    return logits


def replace(path: Path, write: Callable[[Path], None]) -> None:
    """Lets `write` fill a temporary file beside `path`, then renames it, so that nothing half-written has that name."""
    temporary = path.with_name(f"tmp-{path.name}")
    write(temporary)
    temporary.replace(path)
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


def main() -> None:
    """Trains, checks the ONNX file against torch, and writes both files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--folder", type=Path, default=FOLDER, help="where the two files go (default: beside the script)"
    )
    parser.add_argument("--epochs", type=int, default=80)
    parser.add_argument("--seed", type=int, default=0)
    cli = parser.parse_args()

    torch.set_num_threads(1)  # sums in parallel would make the weights depend on the machine's number of cores
    started = time.perf_counter()
    split = load_split(seed=cli.seed)
    net = train(split.train, epochs=cli.epochs, batch_size=64, lr=0.1, weight_decay=4e-5, seed=cli.seed)
    model = to_onnx(net)
    with torch.no_grad():
        expected = net(normalize(to_unit(split.test.x))).numpy()
    logits = logits_of(model, split.test)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-3)
    accuracy = 100 * float(np.mean(logits.argmax(1) == split.test.y))
    print(f"accuracy {accuracy:.2f} % of {len(split.test.y)} images, trained in {time.perf_counter() - started:.0f} s")

    calib, test = split.calib, split.test
    replace(cli.folder / "mobilenet.onnx", lambda path: onnx.save(model, path))
    arrays = {"calib_x": calib.x, "calib_y": calib.y, "test_x": test.x, "test_y": test.y}
    replace(cli.folder / "digits.npz", lambda path: np.savez_compressed(path, **arrays))


if __name__ == "__main__":
    main()
