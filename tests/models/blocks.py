"""What several of the torch modules are made of."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Lambda(nn.Module):
    """A function as a module."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(*inputs)


class Sum(nn.Module):
    """x + inner(x)."""

    def __init__(self, *inner: nn.Module) -> None:
        super().__init__()
        self.inner = nn.Sequential(*inner)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


def conv(i: int, o: int, k: int = 3, s: int = 1, *, g: int = 1, act: type[nn.Module] | None = nn.ReLU) -> nn.Sequential:
    """Convolution, BatchNormalization and activation; the sizes stay but for the stride."""
    layers = [nn.Conv2d(i, o, k, s, k // 2, groups=g, bias=False), nn.BatchNorm2d(o)]
    return nn.Sequential(*layers, *([act()] if act else []))


class SqueezeExcite(nn.Module):
    """Channels weighed by what their means say."""

    def __init__(self, channels: int, *, gate: type[nn.Module] = nn.Sigmoid) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.down, self.up, self.gate = (
            nn.Conv2d(channels, channels // 4, 1),
            nn.Conv2d(channels // 4, channels, 1),
            gate(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(self.up(torch.relu(self.down(self.pool(x)))))


class Inverted(nn.Module):
    """MobileNetV2's block, with V3's squeeze and excitation."""

    def __init__(self, i: int, o: int, *, grow: int = 3, k: int = 3, s: int = 1, act=nn.ReLU6, se=None) -> None:
        super().__init__()
        wide = i * grow
        middle = [SqueezeExcite(wide, gate=se)] if se else []
        self.inner = nn.Sequential(
            conv(i, wide, 1, act=act), conv(wide, wide, k, s, g=wide, act=act), *middle, conv(wide, o, 1, act=None)
        )
        self.skip = s == 1 and i == o

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x) if self.skip else self.inner(x)


class Residual(nn.Module):
    """ResNet's basic block, with a squeeze and excitation where asked."""

    def __init__(self, i: int, o: int, s: int = 1, *, se: bool = False) -> None:
        super().__init__()
        self.inner = nn.Sequential(conv(i, o, 3, s), conv(o, o, 3, act=None), *([SqueezeExcite(o)] if se else []))
        self.short = conv(i, o, 1, s, act=None) if s > 1 or i != o else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.inner(x) + self.short(x))


def head(channels: int, classes: int) -> nn.Sequential:
    """Mean of each channel, and classes."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Linear(channels, classes))


class Attention(nn.Module):
    """Attention of several heads as networks spell it out: one product for all three, Reshapes and Transposes."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, (width // heads) ** -0.5
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        b, t, c = x.shape
        q, k, v = self.qkv(x).reshape(b, t, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-2, -1) * self.scale
        if mask is not None:
            scores = scores + mask
        return self.out((scores.softmax(-1) @ v).transpose(1, 2).reshape(b, t, c))


class Block(nn.Module):
    """A transformer's block, norms first."""

    def __init__(self, width: int, heads: int, *, act: type[nn.Module] = nn.GELU) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), act(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = x + self.attention(self.norm1(x), mask)
        return x + self.mlp(self.norm2(x))
