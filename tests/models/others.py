"""Audio, volumes and videos, tables, sets of points, pairs, and graphs with branches."""

from __future__ import annotations

import math

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import Tensor, nn

from models.architecture import DYNAMO, SCRIPT, Architecture, Input, images, normal, tokens, waves
from models.blocks import Sum, conv, head


class LogMel(nn.Module):
    """A keyword spotter on raw sound: STFT, mel bands, logarithm, separable convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("window", torch.hann_window(64))
        self.register_buffer("mel", torch.rand(33, 12, generator=torch.Generator().manual_seed(1)) ** 4)
        separable = lambda i, o: nn.Sequential(conv(i, i, 3, 1, g=i), conv(i, o, 1))  # noqa: E731
        self.body = nn.Sequential(conv(1, 12, 3, 2), separable(12, 16), separable(16, 16), head(16, 6))

    def forward(self, x: Tensor) -> Tensor:
        spectrum = torch.stft(x, 64, 32, window=self.window, center=True, return_complex=False, onesided=True)
        power = spectrum.pow(2).sum(-1)
        bands = torch.log(power.transpose(1, 2) @ self.mel + 1e-4)
        return self.body(bands.unsqueeze(1))


class FourierByConvolution(nn.Module):
    """The same front end as a convolution with cosines and sines, as exported speech models have it; in decibel."""

    def __init__(self) -> None:
        super().__init__()
        time, bins = torch.arange(64), torch.arange(33)[:, None]
        angle = 2 * math.pi * bins * time / 64
        kernel = torch.cat([angle.cos(), -angle.sin()]) * torch.hann_window(64)
        self.register_buffer("kernel", kernel.unsqueeze(1))
        self.body = nn.Sequential(
            nn.Conv1d(33, 16, 3, 1, 1), nn.BatchNorm1d(16), nn.ReLU(), nn.Conv1d(16, 16, 3, 2, 1), nn.ReLU()
        )
        self.last = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.pad(x.unsqueeze(1), (32, 32), mode="reflect")
        real, imaginary = nn.functional.conv1d(x, self.kernel, stride=32).chunk(2, 1)
        decibel = torch.log10(torch.clamp(real**2 + imaginary**2, min=1e-6)) * 10
        y = self.body((decibel + 20) / 20)
        return self.last(torch.cat([y.mean(2), y.std(2)], 1))


class WaveFront(nn.Module):
    """wav2vec's convolutions on raw sound, with GroupNormalization, and a convolution for places."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv1d(1, 16, 10, 5, bias=False), nn.GroupNorm(16, 16)
        self.rest = nn.Sequential(
            nn.Conv1d(16, 16, 3, 2, bias=False), nn.GELU(), nn.Conv1d(16, 16, 3, 2, bias=False), nn.GELU()
        )
        self.layer, self.place, self.last = (
            nn.LayerNorm(16),
            nn.Conv1d(16, 16, 4, padding=2, groups=4),
            nn.Linear(16, 8),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.rest(nn.functional.gelu(self.norm(self.first(x.unsqueeze(1)))))
        y = self.layer(y.transpose(1, 2))
        place = nn.functional.gelu(self.place(y.transpose(1, 2))[:, :, :-1])
        return self.last(y + place.transpose(1, 2)).log_softmax(-1)


class WaveUNet(nn.Module):
    """A denoiser of sound: strided convolutions, their transposes, a gated skip."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv1d(1, 8, 8, 4, 2), nn.Conv1d(8, 16, 8, 4, 2)
        self.c, self.d = nn.ConvTranspose1d(16, 8, 8, 4, 2), nn.ConvTranspose1d(16, 1, 8, 4, 2)

    def forward(self, x: Tensor) -> Tensor:
        a = nn.functional.leaky_relu(self.a(x.unsqueeze(1)), 0.1)
        c = torch.tanh(self.c(nn.functional.leaky_relu(self.b(a), 0.1)))
        return torch.tanh(self.d(torch.cat([a, c], 1))).squeeze(1)


def keyword_spotter() -> nn.Module:
    separable = lambda i, o: nn.Sequential(conv(i, i, 3, 1, g=i), conv(i, o, 1))  # noqa: E731
    first = [nn.Conv2d(1, 16, (10, 4), (2, 2), (4, 1), bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    return nn.Sequential(*first, separable(16, 16), separable(16, 16), nn.Dropout(0.2), head(16, 8))


def volume() -> nn.Module:
    block = lambda i, o, s: nn.Sequential(nn.Conv3d(i, o, 3, s, 1), nn.BatchNorm3d(o), nn.ReLU())  # noqa: E731
    return nn.Sequential(
        block(1, 8, 1), nn.MaxPool3d(2), block(8, 12, 1), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(12, 4)
    )


class VolumeUNet(nn.Module):
    """Segmentation of volumes with transposed convolutions and instance norms."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv3d(1, 8, 3, 1, 1), nn.Conv3d(8, 12, 3, 2, 1)
        self.na, self.nb = nn.InstanceNorm3d(8, affine=True), nn.InstanceNorm3d(12, affine=True)
        self.up, self.last = nn.ConvTranspose3d(12, 8, 2, 2), nn.Conv3d(16, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = nn.functional.leaky_relu(self.na(self.a(x)))
        b = nn.functional.leaky_relu(self.nb(self.b(a)))
        return self.last(torch.cat([a, self.up(b)], 1))


class Video(nn.Module):
    """R(2+1)D's factors and a mean over time."""

    def __init__(self) -> None:
        super().__init__()
        space = nn.Sequential(nn.Conv3d(3, 8, (1, 3, 3), (1, 2, 2), (0, 1, 1)), nn.BatchNorm3d(8), nn.ReLU())
        time = nn.Sequential(nn.Conv3d(8, 12, (3, 1, 1), 1, (1, 0, 0)), nn.BatchNorm3d(12), nn.ReLU())
        self.body, self.last = nn.Sequential(space, time, nn.AvgPool3d((1, 2, 2))), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.body(x).mean((2, 3, 4)))


class FramesInBatch(nn.Module):
    """A video whose frames are put into the batch for two-dimensional layers, with a shift over time (TSM)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = conv(3, 8, 3, 2), conv(8, 12, 3, 2), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        b, t, c, h, w = x.shape
        y = self.first(x.reshape(b * t, c, h, w))
        y = y.view(b, t, *y.shape[1:])
        ahead = torch.cat([y[:, 1:, :2], torch.zeros_like(y[:, :1, :2])], 1)
        y = torch.cat([ahead, y[:, :, 2:]], 2)
        y = self.second(y.flatten(0, 1)).mean((2, 3))
        return self.last(y.view(b, t, -1).mean(1))


class Siamese(nn.Module):
    """Two pictures through the same layers; their distance and the cosine."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv(3, 8, 3, 2), conv(8, 16, 3, 2), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 16)
        )

    def forward(self, x: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        a, b = (nn.functional.normalize(self.body(each), dim=1) for each in (x, other))
        return (a * b).sum(1), (a - b).pow(2).sum(1).add(1e-6).sqrt()


class WideDeep(nn.Module):
    """A recommender: embedded categories and numbers into an MLP, beside a linear part."""

    def __init__(self) -> None:
        super().__init__()
        self.tables, self.wide = nn.ModuleList(nn.Embedding(20, 6) for _ in range(4)), nn.Embedding(80, 1)
        self.deep = nn.Sequential(
            nn.Linear(32, 24), nn.ReLU(), nn.BatchNorm1d(24), nn.Linear(24, 12), nn.ReLU(), nn.Linear(12, 1)
        )
        self.register_buffer("offsets", torch.arange(4) * 20)

    def forward(self, numbers: Tensor, categories: Tensor) -> Tensor:
        deep = torch.cat([numbers, *(table(categories[:, i]) for i, table in enumerate(self.tables))], 1)
        wide = self.wide(categories + self.offsets).sum(1)
        return torch.sigmoid(wide + self.deep(deep)).squeeze(1)


class Dlrm(nn.Module):
    """DLRM: products of all pairs of embeddings, of which the lower triangle goes on."""

    def __init__(self) -> None:
        super().__init__()
        self.bottom = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 6), nn.ReLU())
        self.tables = nn.ModuleList(nn.Embedding(20, 6) for _ in range(4))
        self.top = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 1), nn.Sigmoid())
        rows, columns = torch.tril_indices(5, 5, -1)
        self.register_buffer("pairs", rows * 5 + columns)

    def forward(self, numbers: Tensor, categories: Tensor) -> Tensor:
        dense = self.bottom(numbers)
        all_ = torch.stack([dense, *(table(categories[:, i]) for i, table in enumerate(self.tables))], 1)
        products = torch.bmm(all_, all_.transpose(1, 2)).flatten(1)[:, self.pairs]
        return self.top(torch.cat([dense, products], 1))


class PointNet(nn.Module):
    """Points through the same layers, turned by a matrix of their own, and their maximum."""

    def __init__(self) -> None:
        super().__init__()
        self.turn = nn.Sequential(
            nn.Conv1d(3, 12, 1), nn.ReLU(), nn.AdaptiveMaxPool1d(1), nn.Flatten(), nn.Linear(12, 9)
        )
        self.body = nn.Sequential(
            nn.Conv1d(3, 16, 1), nn.BatchNorm1d(16), nn.ReLU(), nn.Conv1d(16, 24, 1), nn.BatchNorm1d(24)
        )
        self.last = nn.Sequential(nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 5))

    def forward(self, x: Tensor) -> Tensor:
        turn = self.turn(x).view(-1, 3, 3) + torch.eye(3).view(1, 3, 3)
        y = torch.bmm(x.transpose(1, 2), turn).transpose(1, 2)
        return self.last(self.body(y).max(2)[0]).log_softmax(1)


class GraphNet(nn.Module):
    """A graph convolution with a normalised matrix of neighbours that is an input."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        edges = edges + torch.eye(edges.shape[-1])
        degree = edges.sum(-1, keepdim=True).pow(-0.5)
        edges = degree * edges * degree.transpose(1, 2)
        return self.last(torch.relu(edges @ self.second(torch.relu(edges @ self.first(x)))))


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(12, 32), nn.ReLU(), Sum(nn.Linear(32, 32), nn.ReLU()), nn.Linear(32, 4))


class Policy(nn.Module):
    """Actor and critic: a Tanh policy with its deviation, and a value."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(12, 24), nn.Tanh(), nn.Linear(24, 24), nn.Tanh())
        self.mean, self.value, self.log_std = nn.Linear(24, 3), nn.Linear(24, 1), nn.Parameter(torch.full((3,), -0.5))
        self.register_buffer("shift", torch.linspace(-1, 1, 12))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y = self.body(torch.clamp((x - self.shift) / 1.5, -5, 5))
        return torch.tanh(self.mean(y)), self.log_std.exp().expand(x.shape[0], -1), self.value(y)


def branches() -> onnx.ModelProto:
    """Make a network with an If on the samples' first number, whose branches read values from outside."""
    rng = np.random.default_rng(4)
    weights = {"w1": (8, 3, 3, 3), "b1": (8,), "w2": (8, 8, 3, 3), "b2": (8,), "w3": (6, 8)}
    constants = {
        name: (rng.normal(size=shape) / np.sqrt(np.prod(shape[1:]) or 1)).astype(np.float32)
        for name, shape in weights.items()
    }
    constants |= {"limit": np.float32(1e6), "b3": np.zeros(6, np.float32)}
    value = helper.make_tensor_value_info
    plain = helper.make_graph(
        [helper.make_node("Relu", ["c1"], ["r1"])], "plain", [], [value("r1", 1, ["n", 8, 16, 16])]
    )
    leaky = helper.make_graph(
        [helper.make_node("LeakyRelu", ["c1"], ["r2"])], "leaky", [], [value("r2", 1, ["n", 8, 16, 16])]
    )
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], "first", pads=[1] * 4, strides=[2, 2]),
        helper.make_node("ReduceMax", ["x"], ["most"], "most", keepdims=0),
        helper.make_node("Less", ["most", "limit"], ["small"], "small"),
        helper.make_node("If", ["small"], ["a"], "choose", then_branch=plain, else_branch=leaky),
        helper.make_node("Conv", ["a", "w2", "b2"], ["c2"], "second", pads=[1] * 4, strides=[2, 2]),
        helper.make_node("Relu", ["c2"], ["d"], "relu"),
        helper.make_node("GlobalAveragePool", ["d"], ["e"], "pool"),
        helper.make_node("Flatten", ["e"], ["f"], "flat"),
        helper.make_node("Gemm", ["f", "w3", "b3"], ["y"], "last", transB=1),
    ]
    graph = helper.make_graph(
        nodes, "branches", [value("x", 1, ["n", 3, 32, 32])], [value("y", 1, ["n", 6])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def edges(rng: np.random.Generator, n: int) -> np.ndarray:
    """Draw symmetric neighbourhoods, [n, 7, 7]."""
    made = (rng.random((n, 7, 7)) < 0.3).astype(np.float32)
    return np.maximum(made, made.transpose(0, 2, 1))


SOUND = {"x": Input(waves(512))}
RATED = {"numbers": Input(normal(8)), "categories": Input(tokens(4, 20))}
PAIR = {"x": Input(images()), "other": Input(images())}
ARCHITECTURES = [
    Architecture("log_mel", LogMel, SOUND, exporters=(SCRIPT, DYNAMO)),
    Architecture("fourier_conv", FourierByConvolution, SOUND),
    Architecture("wave_front", WaveFront, {"x": Input(waves(400), free={1: "time"})}),
    Architecture("wave_unet", WaveUNet, SOUND),
    Architecture("keyword_spotter", keyword_spotter, {"x": Input(images(1, 24, 10))}),
    Architecture("volume_3d", volume, {"x": Input(lambda r, n: images(8, 12, 12)(r, n)[:, None].copy())}),
    Architecture("unet_3d", VolumeUNet, {"x": Input(lambda r, n: images(8, 12, 12)(r, n)[:, None].copy())}),
    Architecture("video", Video, {"x": Input(lambda r, n: images(12, 16, 16)(r, n).reshape(n, 3, 4, 16, 16))}),
    Architecture(
        "video_frames", FramesInBatch, {"x": Input(lambda r, n: images(12, 16, 16)(r, n).reshape(n, 4, 3, 16, 16))}
    ),
    Architecture("siamese", Siamese, PAIR, ("cosine", "distance")),
    Architecture("wide_deep", WideDeep, RATED),
    Architecture("dlrm", Dlrm, RATED),
    Architecture("point_net", PointNet, {"x": Input(normal(3, 32))}),
    Architecture("graph_net", GraphNet, {"x": Input(normal(7, 6)), "edges": Input(edges)}),
    Architecture("mlp", mlp, {"x": Input(normal(12))}),
    Architecture("policy", Policy, {"x": Input(normal(12))}, ("action", "deviation", "value")),
    Architecture("branches", nn.Identity, {"x": Input(images())}, made=branches),
]
