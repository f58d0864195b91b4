"""Networks that classify images."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.architecture import Architecture, Input, images
from models.blocks import Inverted, Lambda, Residual, SqueezeExcite, Sum, conv, head

PIXELS = {"x": Input(images())}


def mobilenet_v2() -> nn.Module:
    blocks = [Inverted(8, 8), Inverted(8, 16, s=2), Inverted(16, 16), Inverted(16, 24, s=2)]
    return nn.Sequential(conv(3, 8, 3, 2, act=nn.ReLU6), *blocks, conv(24, 48, 1, act=nn.ReLU6), head(48, 10))


def mobilenet_v3() -> nn.Module:
    h, gate = nn.Hardswish, nn.Hardsigmoid
    blocks = [
        Inverted(8, 8, se=gate, act=nn.ReLU), Inverted(8, 16, s=2, k=5, act=nn.ReLU),
        Inverted(16, 16, se=gate, act=h), Inverted(16, 24, s=2, act=h, se=gate),
    ]  # fmt: skip
    return nn.Sequential(conv(3, 8, 3, 2, act=h), *blocks, conv(24, 48, 1, act=h), head(48, 10))


def efficientnet() -> nn.Module:
    blocks = [Inverted(8, 8, act=nn.SiLU, se=nn.Sigmoid), Inverted(8, 16, s=2, k=5, act=nn.SiLU, se=nn.Sigmoid)]
    blocks += [Inverted(16, 16, k=5, act=nn.SiLU, se=nn.Sigmoid)]
    return nn.Sequential(conv(3, 8, 3, 2, act=nn.SiLU), *blocks, conv(16, 32, 1, act=nn.SiLU), head(32, 10))


class ShuffleUnit(nn.Module):
    """ShuffleNetV2's unit: half of the channels pass, then both halves are interleaved."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        c = channels // 2
        self.branch = nn.Sequential(conv(c, c, 1), conv(c, c, g=c, act=None), conv(c, c, 1))

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, dim=1)
        x = torch.cat([a, self.branch(b)], dim=1)
        n, c, h, w = x.shape
        return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


def shufflenet() -> nn.Module:
    units = [ShuffleUnit(16), ShuffleUnit(16), conv(16, 32, 3, 2), ShuffleUnit(32)]
    return nn.Sequential(conv(3, 16, 3, 2), nn.MaxPool2d(3, 2, 1), *units, head(32, 10))


def resnet(*, se: bool) -> nn.Module:
    return nn.Sequential(
        conv(3, 8), Residual(8, 8, se=se), Residual(8, 16, 2, se=se), Residual(16, 32, 2), head(32, 10)
    )


class Dense(nn.Module):
    """DenseNet's layer: what it makes is joined to what it reads."""

    def __init__(self, i: int, grow: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.BatchNorm2d(i), nn.ReLU(), nn.Conv2d(i, grow, 3, 1, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.inner(x)], dim=1)


def densenet() -> nn.Module:
    first = [Dense(8 + 4 * i, 4) for i in range(4)]
    second = [Dense(12 + 4 * i, 4) for i in range(4)]
    between = [nn.BatchNorm2d(24), nn.ReLU(), nn.Conv2d(24, 12, 1, bias=False), nn.AvgPool2d(2)]
    return nn.Sequential(conv(3, 8, 3, 2), *first, *between, *second, nn.BatchNorm2d(28), nn.ReLU(), head(28, 10))


class Inception(nn.Module):
    """Four branches that are joined."""

    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        self.a, self.b = conv(i, o, 1), nn.Sequential(conv(i, o, 1), conv(o, o))
        self.c = nn.Sequential(conv(i, o, 1), conv(o, o), conv(o, o))
        self.d = nn.Sequential(nn.AvgPool2d(3, 1, 1, count_include_pad=False), conv(i, o, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.a(x), self.b(x), self.c(x), self.d(x)], dim=1)


def inception() -> nn.Module:
    pool = nn.MaxPool2d(3, 2, ceil_mode=True)
    return nn.Sequential(conv(3, 8, 3, 2), Inception(8, 6), pool, Inception(24, 8), head(32, 10))


class Ghost(nn.Module):
    """GhostNet's module: half of the channels come from cheap depthwise convolutions of the others."""

    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        self.first, self.cheap = conv(i, o // 2, 1), conv(o // 2, o // 2, 3, g=o // 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return torch.cat([y, self.cheap(y)], dim=1)


def ghostnet() -> nn.Module:
    blocks = [Sum(Ghost(12, 24), SqueezeExcite(24), Ghost(24, 12)), Sum(Ghost(12, 24), Ghost(24, 12))]
    return nn.Sequential(conv(3, 12, 3, 2), *blocks, conv(12, 24, 3, 2), head(24, 10))


class HighResolution(nn.Module):
    """HRNet: two resolutions side by side that are exchanged."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 12, 3, 2)
        self.fine, self.coarse, self.down = Residual(12, 12), Residual(24, 24), conv(12, 24, 3, 2)
        self.to_fine, self.to_coarse = conv(24, 12, 1, act=None), conv(12, 24, 3, 2, act=None)
        self.last = nn.Conv2d(36, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.stem(x)
        a, b = self.fine(a), self.coarse(self.down(a))
        up = nn.functional.interpolate(self.to_fine(b), size=a.shape[2:], mode="bilinear", align_corners=False)
        a, b = torch.relu(a + up), torch.relu(b + self.to_coarse(a))
        b = nn.functional.interpolate(b, size=a.shape[2:], mode="bilinear", align_corners=True)
        return self.last(torch.cat([a, b], dim=1))


def convmixer() -> nn.Module:
    def mix() -> list[nn.Module]:
        deep = Sum(nn.Conv2d(16, 16, 5, groups=16, padding="same"), nn.GELU(), nn.BatchNorm2d(16))
        return [deep, nn.Conv2d(16, 16, 1), nn.GELU(), nn.BatchNorm2d(16)]

    return nn.Sequential(nn.Conv2d(3, 16, 4, 4), nn.GELU(), nn.BatchNorm2d(16), *mix(), *mix(), head(16, 10))


class ConvNextBlock(nn.Module):
    """ConvNeXt's block: channels last within, a LayerNormalization, a scale of each channel."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.deep, self.norm = nn.Conv2d(c, c, 7, padding=3, groups=c), nn.LayerNorm(c)
        self.mlp = nn.Sequential(nn.Linear(c, 4 * c), nn.GELU(), nn.Linear(4 * c, c))
        self.gamma = nn.Parameter(torch.full((c,), 0.3))

    def forward(self, x: Tensor) -> Tensor:
        y = self.deep(x).permute(0, 2, 3, 1)
        return x + (self.gamma * self.mlp(self.norm(y))).permute(0, 3, 1, 2)


def convnext() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 16, 4, 4), ConvNextBlock(16), ConvNextBlock(16), head(16, 10))


def group_norm_net() -> nn.Module:
    layer = lambda i, o: nn.Sequential(nn.Conv2d(i, o, 3, 2, 1), nn.GroupNorm(4, o), nn.SiLU())  # noqa: E731
    return nn.Sequential(layer(3, 16), layer(16, 32), head(32, 10))


def vgg() -> nn.Module:
    layers = [nn.Conv2d(3, 8, 3, 1, 1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3, 1, 1), nn.ReLU()]
    dense = [nn.Flatten(), nn.Linear(16 * 64, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 10)]
    return nn.Sequential(*layers, nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(8), *dense)


def channels_last() -> nn.Module:
    """A network that is fed channels last and works between Transposes, as converters from Keras write it."""
    turn, back = Lambda(lambda x: x.permute(0, 3, 1, 2)), Lambda(lambda x: x.permute(0, 2, 3, 1))
    pad = Lambda(lambda x: nn.functional.pad(x, (0, 1, 0, 1)))
    tail = [Lambda(lambda x: x.mean((1, 2))), nn.Linear(16, 10), nn.Softmax(-1)]
    return nn.Sequential(turn, pad, conv(3, 8, 3, 2), back, turn, conv(8, 16), back, *tail)


def alexnet() -> nn.Module:
    norm = nn.LocalResponseNorm(5, alpha=1e-2, k=2.0)
    layers = [nn.Conv2d(3, 16, 5, 2, 2), nn.ReLU(), norm, nn.MaxPool2d(3, 2), nn.Conv2d(16, 24, 3, 1, 1, groups=2)]
    return nn.Sequential(*layers, nn.ReLU(), nn.Flatten(), nn.Linear(24 * 49, 10))


NHWC = {"x": Input(lambda rng, n: images()(rng, n).transpose(0, 2, 3, 1).copy())}
ARCHITECTURES = [
    *(Architecture(build.__name__, build, PIXELS) for build in (
        mobilenet_v2, mobilenet_v3, efficientnet, shufflenet, densenet, inception, ghostnet, convmixer, convnext,
        group_norm_net, vgg, alexnet,
    )),
    Architecture("resnet", lambda: resnet(se=False), PIXELS),
    Architecture("se_resnet", lambda: resnet(se=True), PIXELS),
    Architecture("hrnet", HighResolution, PIXELS),
    Architecture("channels_last", channels_last, NHWC),
]  # fmt: skip
