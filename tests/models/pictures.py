"""Networks that make pictures of pictures: segmentation, resolution, generators, flow, keypoints."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.architecture import Architecture, Input, images, normal
from models.blocks import Residual, Sum, conv

PIXELS = {"x": Input(images(), free={2: "height", 3: "width"})}


class UNet(nn.Module):
    """Down and up with long skips; upsampled by convolutions or by interpolation and cut to size."""

    def __init__(self, *, learned: bool) -> None:
        super().__init__()
        self.a, self.b, self.c = conv(3, 8), conv(8, 16), conv(16, 24)
        self.up1 = nn.ConvTranspose2d(24, 16, 2, 2) if learned else nn.Conv2d(24, 16, 1)
        self.up2 = nn.ConvTranspose2d(16, 8, 2, 2) if learned else nn.Conv2d(16, 8, 1)
        self.d, self.e, self.last = conv(32, 16), conv(16, 8), nn.Conv2d(8, 4, 1)
        self.learned = learned

    def _up(self, x: Tensor, layer: nn.Module, like: Tensor) -> Tensor:
        if self.learned:
            return layer(x)
        x = F.interpolate(layer(x), scale_factor=2, mode="bilinear", align_corners=True)
        high, wide = like.shape[2] - x.shape[2], like.shape[3] - x.shape[3]
        return F.pad(x, [wide // 2, wide - wide // 2, high // 2, high - high // 2])

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        b = self.b(F.max_pool2d(a, 2))
        c = self.c(F.max_pool2d(b, 2))
        d = self.d(torch.cat([self._up(c, self.up1, b), b], 1))
        return self.last(self.e(torch.cat([self._up(d, self.up2, a), a], 1)))


class SuperResolution(nn.Module):
    """ESPCN, beside a bicubic enlargement of the input."""

    def __init__(self) -> None:
        super().__init__()
        body = [nn.Conv2d(3, 16, 5, 1, 2), nn.Tanh(), Sum(nn.Conv2d(16, 16, 3, 1, 1), nn.ReLU())]
        self.body = nn.Sequential(*body, nn.Conv2d(16, 12, 3, 1, 1), nn.PixelShuffle(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + F.interpolate(x, scale_factor=2, mode="bicubic", align_corners=False)


class RestoredPicture(nn.Module):
    """Restoration in a space of depth: PixelUnshuffle, residual blocks, PixelShuffle, limits."""

    def __init__(self) -> None:
        super().__init__()
        blocks = [Sum(nn.Conv2d(16, 16, 3, 1, 1), nn.PReLU(16), nn.Conv2d(16, 16, 3, 1, 1)) for _ in range(2)]
        self.body = nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(12, 16, 3, 1, 1), *blocks, nn.Conv2d(16, 12, 3, 1, 1))
        self.shuffle = nn.PixelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.clamp(x + self.shuffle(self.body(x)), -2.0, 2.0)


class Generator(nn.Module):
    """DCGAN's generator with InstanceNormalizations."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(16, 32 * 16)
        up = lambda i, o: [nn.ConvTranspose2d(i, o, 4, 2, 1), nn.InstanceNorm2d(o, affine=True), nn.LeakyReLU(0.2)]  # noqa: E731
        self.body = nn.Sequential(*up(32, 16), *up(16, 8), nn.ConvTranspose2d(8, 3, 4, 2, 1), nn.Tanh())

    def forward(self, z: Tensor) -> Tensor:
        return self.body(self.first(z).view(-1, 32, 4, 4))


class StyleTransfer(nn.Module):
    """Johnson's network: reflected borders, instance norms, nearest enlargement."""

    def __init__(self) -> None:
        super().__init__()
        norm = lambda c: nn.InstanceNorm2d(c, affine=True)  # noqa: E731
        self.body = nn.Sequential(
            nn.ReflectionPad2d(2), nn.Conv2d(3, 8, 5), norm(8), nn.ReLU(),
            nn.Conv2d(8, 16, 3, 2, 1), norm(16), nn.ReLU(),
            Sum(nn.ReflectionPad2d(1), nn.Conv2d(16, 16, 3), norm(16), nn.ReLU()),
            nn.Upsample(scale_factor=2, mode="nearest"), nn.ReflectionPad2d(1), nn.Conv2d(16, 3, 3),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class AutoEncoder(nn.Module):
    """A variational one: mean, log variance, and the picture that the mean gives."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(conv(3, 8, 3, 2), conv(8, 16, 3, 2), nn.Flatten())
        self.mean, self.variance, self.back = nn.Linear(1024, 8), nn.Linear(1024, 8), nn.Linear(8, 1024)
        up = lambda i, o: nn.ConvTranspose2d(i, o, 3, 2, 1, output_padding=1)  # noqa: E731
        self.decoder = nn.Sequential(nn.Unflatten(1, (16, 8, 8)), up(16, 8), nn.ELU(), up(8, 3), nn.Sigmoid())

    def forward(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = self.encoder(x)
        mean, variance = self.mean(h), self.variance(h)
        z = mean + torch.exp(0.5 * variance) * noise
        return self.decoder(F.relu(self.back(z))), mean, variance


class Keypoints(nn.Module):
    """Heat maps, where each has its largest number, and the centre of its Softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(3, 16, 3, 2), Residual(16, 16), nn.ConvTranspose2d(16, 5, 4, 2, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        maps = self.body(x)
        n, k, h, w = maps.shape
        flat = maps.reshape(n, k, h * w)
        odds = flat.softmax(-1).reshape(n, k, h, w)
        rows = torch.arange(h, dtype=odds.dtype)[:, None]
        columns = torch.arange(w, dtype=odds.dtype)[None]
        centre = torch.stack([(odds * columns).sum((2, 3)), (odds * rows).sum((2, 3))], -1)
        return maps, flat.argmax(-1), centre


class Flow(nn.Module):
    """Two pictures, a field of displacements, and the second picture displaced by it."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(6, 16), Residual(16, 16), nn.Conv2d(16, 2, 3, 1, 1), nn.Tanh())

    def forward(self, x: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        flow = self.body(torch.cat([x, other], 1)) * 0.2
        h, w = x.shape[2:]
        ys, xs = torch.meshgrid(torch.linspace(-1, 1, h), torch.linspace(-1, 1, w), indexing="ij")
        grid = torch.stack([xs, ys], -1).unsqueeze(0) + flow.permute(0, 2, 3, 1)
        return F.grid_sample(other, grid, mode="bilinear", padding_mode="border", align_corners=True), flow


class Pyramid(nn.Module):
    """DeepLab's head: dilated convolutions, the mean of the picture, enlarged to its size; classes of each pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv(3, 12, 3, 2), conv(12, 16, 3, 2))
        self.rates = nn.ModuleList(nn.Conv2d(16, 8, 3, padding=d, dilation=d) for d in (1, 2, 3))
        self.mean, self.last = nn.Conv2d(16, 8, 1), nn.Conv2d(32, 5, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.stem(x)
        mean = F.interpolate(self.mean(F.adaptive_avg_pool2d(y, 1)), size=y.shape[-2:], mode="bilinear")
        joined = torch.cat([F.relu(rate(y)) for rate in self.rates] + [mean], 1)
        logits = F.interpolate(self.last(joined), size=x.shape[-2:], mode="bilinear", align_corners=False)
        return logits, logits.argmax(1)


class Diffusion(nn.Module):
    """A step of a diffusion model: GroupNormalizations, an embedded time, attention over the pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 16, 3, 1, 1), nn.Conv2d(16, 3, 3, 1, 1)
        self.norm1, self.conv1 = nn.GroupNorm(4, 16), nn.Conv2d(16, 16, 3, 1, 1)
        self.norm2, self.qkv, self.out = nn.GroupNorm(4, 16), nn.Conv2d(16, 48, 1), nn.Conv2d(16, 16, 1)
        self.time = nn.Sequential(nn.Linear(16, 32), nn.SiLU(), nn.Linear(32, 16))
        self.register_buffer("speed", torch.exp(-torch.arange(8) / 2.0))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        angle = t[:, None] * self.speed[None]
        time = self.time(torch.cat([torch.sin(angle), torch.cos(angle)], -1))
        h = self.first(x)
        h = h + self.conv1(F.silu(self.norm1(h))) + time[:, :, None, None]
        b, c, height, width = h.shape
        q, k, v = self.qkv(self.norm2(h)).reshape(b, 3, c, height * width).unbind(1)
        weights = (torch.einsum("bci,bcj->bij", q, k) * c**-0.5).softmax(-1)
        h = h + self.out(torch.einsum("bij,bcj->bci", weights, v).reshape(b, c, height, width))
        return self.last(F.silu(h))


def times(rng: np.random.Generator, n: int) -> np.ndarray:
    """Draw times of a diffusion, [n]."""
    return rng.uniform(0, 10, n).astype(np.float32)


LATENT, NOISE = {"z": Input(normal(16))}, Input(normal(8))
ARCHITECTURES = [
    Architecture("unet", lambda: UNet(learned=True), PIXELS),
    Architecture("unet_bilinear", lambda: UNet(learned=False), PIXELS),
    Architecture("super_resolution", SuperResolution, PIXELS),
    Architecture("restoration", RestoredPicture, PIXELS),
    Architecture("gan_generator", Generator, LATENT),
    Architecture("style_transfer", StyleTransfer, PIXELS),
    Architecture("vae", AutoEncoder, {"x": Input(images()), "noise": NOISE}, ("y", "mean", "variance")),
    Architecture("keypoints", Keypoints, {"x": Input(images())}, ("maps", "where", "centre")),
    Architecture("optical_flow", Flow, {"x": Input(images()), "other": Input(images())}, ("moved", "flow")),
    Architecture("deeplab", Pyramid, PIXELS, ("logits", "classes")),
    Architecture("diffusion", Diffusion, {"x": Input(images(3, 8, 8)), "t": Input(times)}),
]  # fmt: skip
