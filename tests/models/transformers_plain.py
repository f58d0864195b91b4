"""Transformers and their relatives in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.architecture import DYNAMO, Architecture, Input, images, normal, ones_then_zeros, series, tokens
from models.blocks import Block

PIXELS = {"x": Input(images())}


class VisionTransformer(nn.Module):
    """ViT with a class token."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.token = nn.Conv2d(3, 24, 8, 8), nn.Parameter(torch.randn(1, 1, 24))
        self.place = nn.Parameter(torch.randn(1, 17, 24) * 0.3)
        self.blocks = nn.Sequential(Block(24, 3), Block(24, 3))
        self.norm, self.last = nn.LayerNorm(24), nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = self.patches(x).flatten(2).transpose(1, 2)
        y = torch.cat([self.token.expand(x.shape[0], -1, -1), y], 1) + self.place
        return self.last(self.norm(self.blocks(y))[:, 0])


class SwinBlock(nn.Module):
    """Attention within windows that are moved by half a window, with their mask and biases of relative places."""

    def __init__(self, width: int, size: int, window: int, shift: int) -> None:
        super().__init__()
        self.block, self.size, self.window, self.shift = Block(width, 2), size, window, shift
        self.bias = nn.Parameter(torch.randn(2, window**2, window**2) * 0.5)
        region = torch.zeros(size, size)
        for index, rows in enumerate((slice(0, -window), slice(-window, -shift or None), slice(-shift, None))):
            for other, columns in enumerate((slice(0, -window), slice(-window, -shift or None), slice(-shift, None))):
                region[rows, columns] = 3 * index + other
        parts = region.view(size // window, window, size // window, window).permute(0, 2, 1, 3).reshape(-1, window**2)
        mask = (parts[:, None] != parts[:, :, None]).float() * (-100.0 if shift else 0.0)
        self.register_buffer("mask", mask.unsqueeze(1))

    def forward(self, x: Tensor) -> Tensor:
        b, h, w, c = x.shape
        k = self.window
        if self.shift:
            x = torch.roll(x, (-self.shift, -self.shift), (1, 2))
        x = x.view(b, h // k, k, w // k, k, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, k * k, c)
        mask = self.mask.repeat(b, 1, 1, 1) + self.bias.unsqueeze(0)
        x = self.block(x, mask)
        x = x.view(b, h // k, w // k, k, k, c).permute(0, 1, 3, 2, 4, 5).reshape(b, h, w, c)
        return torch.roll(x, (self.shift, self.shift), (1, 2)) if self.shift else x


class Swin(nn.Module):
    """Two blocks, one with moved windows, merged patches, classes."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.norm = nn.Conv2d(3, 16, 4, 4), nn.LayerNorm(16)
        self.blocks = nn.Sequential(SwinBlock(16, 8, 4, 0), SwinBlock(16, 8, 4, 2))
        self.merge_norm, self.merge, self.last = nn.LayerNorm(64), nn.Linear(64, 24, bias=False), nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = self.blocks(self.norm(self.patches(x).permute(0, 2, 3, 1)))
        parts = [y[:, i::2, j::2] for j in range(2) for i in range(2)]
        return self.last(self.merge(self.merge_norm(torch.cat(parts, -1))).mean((1, 2)))


class Mixer(nn.Module):
    """MLP-Mixer."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 20, 8, 8)
        mlp = lambda i: nn.Sequential(nn.Linear(i, 2 * i), nn.GELU(), nn.Linear(2 * i, i))  # noqa: E731
        self.places, self.channels = nn.ModuleList(mlp(16) for _ in range(2)), nn.ModuleList(mlp(20) for _ in range(2))
        self.norms, self.last = nn.ModuleList(nn.LayerNorm(20) for _ in range(4)), nn.Linear(20, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = self.patches(x).flatten(2).transpose(1, 2)
        for i in range(2):
            y = y + self.places[i](self.norms[2 * i](y).transpose(1, 2)).transpose(1, 2)
            y = y + self.channels[i](self.norms[2 * i + 1](y))
        return self.last(y.mean(1))


class Encoder(nn.Module):
    """Words and a mask of those that count: BERT's shape, with the lowest float behind the mask."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(60, 24), nn.Embedding(16, 24)
        self.norm, self.blocks = nn.LayerNorm(24), nn.ModuleList(Block(24, 3) for _ in range(2))
        self.pool, self.last = nn.Linear(24, 24), nn.Linear(24, 3)

    def forward(self, words: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        places = torch.arange(words.shape[1]).unsqueeze(0)
        y = self.norm(self.words(words) + self.places(places))
        hidden = (1.0 - mask[:, None, None, :].float()) * torch.finfo(torch.float32).min
        for block in self.blocks:
            y = block(y, hidden)
        return y, self.last(torch.tanh(self.pool(y[:, 0])))


class MaskedEncoder(nn.Module):
    """torch's own encoder layer with a boolean mask, and a mean over the words that count."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(60, 16)
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, 0.0, batch_first=True)
        self.last = nn.Linear(16, 4)

    def forward(self, words: Tensor, mask: Tensor) -> Tensor:
        y = self.layer(self.words(words), src_key_padding_mask=mask == 0)
        weights = mask.unsqueeze(-1).float()
        return self.last((y * weights).sum(1) / weights.sum(1).clamp(min=1e-6))


class Decoder(nn.Module):
    """A language model with a causal mask that the graph makes from the length."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(40, 24), nn.Parameter(torch.randn(32, 24) * 0.3)
        self.blocks, self.norm, self.last = (
            nn.ModuleList([Block(24, 3)]),
            nn.LayerNorm(24),
            nn.Linear(24, 40, bias=False),
        )

    def forward(self, words: Tensor) -> Tensor:
        length = words.shape[1]
        y = self.words(words) + self.places[:length]
        mask = torch.triu(torch.full((length, length), float("-inf")), 1)
        for block in self.blocks:
            y = block(y, mask)
        return self.last(self.norm(y))


class CachedDecoder(nn.Module):
    """One step of a decoder with the keys and values of the steps before, in and out, and rotated places."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.norm = nn.Embedding(40, 16), nn.LayerNorm(16)
        self.q, self.k, self.v, self.out = (nn.Linear(16, 16) for _ in range(4))
        self.up, self.gate, self.down, self.last = (
            nn.Linear(16, 32),
            nn.Linear(16, 32),
            nn.Linear(32, 16),
            nn.Linear(16, 40),
        )
        self.register_buffer("speed", 100.0 ** (-torch.arange(0, 8, 2) / 8))

    def _turn(self, x: Tensor, places: Tensor) -> Tensor:
        angle = places[:, None].float() * self.speed[None]
        cos, sin = torch.cat([angle.cos()] * 2, -1), torch.cat([angle.sin()] * 2, -1)
        a, b = x.chunk(2, -1)
        return x * cos + torch.cat([-b, a], -1) * sin

    def forward(self, words: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.words(words)
        b, t, c = x.shape
        past = keys.shape[2]
        places = torch.arange(past, past + t)
        y = self.norm(x)
        q, k, v = (each(y).view(b, t, 2, 8).transpose(1, 2) for each in (self.q, self.k, self.v))
        keys, values = torch.cat([keys, self._turn(k, places)], 2), torch.cat([values, v], 2)
        weights = (self._turn(q, places) @ keys.transpose(-1, -2) * 8**-0.5).softmax(-1)
        x = x + self.out((weights @ values).transpose(1, 2).reshape(b, t, c))
        x = x + self.down(torch.nn.functional.silu(self.gate(x)) * self.up(x))
        return self.last(x), keys, values


class Conformer(nn.Module):
    """A block of speech recognition: half MLPs, attention, a gated depthwise convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.block = nn.Linear(20, 16), Block(16, 2, act=nn.SiLU)
        self.norm, self.wide, self.deep = (
            nn.LayerNorm(16),
            nn.Conv1d(16, 32, 1),
            nn.Conv1d(16, 16, 5, padding=2, groups=16),
        )
        self.bn, self.narrow, self.last = nn.BatchNorm1d(16), nn.Conv1d(16, 16, 1), nn.Linear(16, 9)

    def forward(self, x: Tensor) -> Tensor:
        y = self.block(self.first(x))
        z = nn.functional.glu(self.wide(self.norm(y).transpose(1, 2)), dim=1)
        y = y + self.narrow(nn.functional.silu(self.bn(self.deep(z)))).transpose(1, 2)
        return self.last(y).log_softmax(-1)


class TimeTransformer(nn.Module):
    """PatchTST: patches of a series by unfold, each variable a sample of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.block, self.last = nn.Linear(8, 16), Block(16, 2), nn.Linear(16 * 5, 6)

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(1, keepdim=True)
        scale = torch.sqrt(x.var(1, keepdim=True, unbiased=False) + 1e-5)
        y = ((x - mean) / scale).transpose(1, 2).unfold(-1, 8, 4)
        b, variables, patches, length = y.shape
        y = self.block(self.first(y.reshape(b * variables, patches, length)))
        y = self.last(y.reshape(b, variables, -1)).transpose(1, 2)
        return y * scale + mean


WORDS = Input(tokens(12, 60), free={1: "words"})
MASK = Input(ones_then_zeros(12, 5), free={1: "words"})
CACHE = Input(normal(2, 6, 8), free={2: "past"})
CACHED = {"words": Input(tokens(1, 40)), "keys": CACHE, "values": CACHE}
ARCHITECTURES = [
    Architecture("vit", VisionTransformer, PIXELS),
    Architecture("swin", Swin, PIXELS),
    Architecture("mlp_mixer", Mixer, PIXELS),
    Architecture("encoder_mask", Encoder, {"words": WORDS, "mask": MASK}, ("y", "classes")),
    Architecture("encoder_bool_mask", MaskedEncoder, {"words": WORDS, "mask": MASK}),
    Architecture("decoder_causal", Decoder, {"words": Input(tokens(12, 40), free={1: "words"})}),
    Architecture("decoder_cache", CachedDecoder, CACHED, ("y", "next_keys", "next_values")),
    Architecture("conformer", Conformer, {"x": Input(series(16, 20), free={1: "time"})}),
    # The older exporter writes patches of a wrong shape.
    Architecture("patch_tst", TimeTransformer, {"x": Input(series(24, 4))}, exporters=(DYNAMO,)),
]
