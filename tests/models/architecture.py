"""What an architecture is here: a torch module or an ONNX network, its inputs, and samples for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import nn

CALIB, EVAL = 16, 16
"""Samples of the calibration and of the evaluation."""
SCRIPT, DYNAMO, MADE = "script", "dynamo", "made"
FIXED, FREE = "fixed", "free"
Array = NDArray[np.generic]
Draw = Callable[[np.random.Generator, int], Array]


@dataclass(frozen=True)
class Input:
    """An input of a network, and how samples of it are drawn."""

    draw: Draw
    """Function of a generator and a number of samples that returns them, put together along the axis of the batch."""
    axis: int | None = 0
    """Axis of the batch; None: the input is the same for all samples, and has none."""
    free: Mapping[int, str] = field(default_factory=dict)
    """Further axes that are free where the batch is, by their names: lengths of sequences and sizes of images."""

    def rows(self, array: Array, start: int, stop: int) -> Array:
        """Return some samples of all."""
        return array if self.axis is None else np.take(array, np.arange(start, stop), axis=self.axis)


@dataclass(frozen=True)
class Architecture:
    """A network that can be exported, with samples for it."""

    name: str
    build: Callable[[], nn.Module]
    inputs: Mapping[str, Input]
    outputs: tuple[str, ...] = ("y",)
    exporters: tuple[str, ...] = (SCRIPT, DYNAMO)
    batches: tuple[str, ...] = (FREE, FIXED)
    finish: Callable[[onnx.ModelProto], onnx.ModelProto] | None = None
    """What is put behind the exported network with ONNX's own helper, such as a NonMaxSuppression."""
    made: Callable[[], onnx.ModelProto] | None = None
    """The network itself where no torch module is its source."""
    requires: str | None = None
    """A package beyond those of dipo's tests."""
    varying: frozenset[str] = frozenset()
    """Outputs whose size depends on the numbers."""
    out_axes: Mapping[str, int] = field(default_factory=dict)
    """Axis of the batch of outputs in which it is not the first."""
    lengths: tuple[str, ...] = (SCRIPT, DYNAMO)
    """Exporters that are able to leave `Input.free` free, too."""
    opset: int = 17
    """Of the older exporter."""
    seed: int = 0

    @property
    def variants(self) -> tuple[str, ...]:
        """Ways in which the network is exported: exporter and batch."""
        if self.made is not None:
            return (MADE,)
        return tuple(f"{exporter}-{batch}" for exporter in self.exporters for batch in self.batches)

    def samples(self) -> dict[str, Array]:
        """Return the samples of calibration, and behind them those of the evaluation."""
        rng = np.random.default_rng(self.seed + 1)
        return {name: each.draw(rng, CALIB + EVAL) for name, each in self.inputs.items()}

    def part(self, samples: Mapping[str, Array], start: int, stop: int) -> dict[str, Array]:
        """Return some samples, for all inputs."""
        return {name: self.inputs[name].rows(array, start, stop) for name, array in samples.items()}

    def module(self) -> nn.Module:
        """Build the module with its seeded weights; BatchNormalizations have the samples' statistics."""
        torch.manual_seed(self.seed)
        module = self.build()
        norms = [each for each in module.modules() if isinstance(each, nn.modules.batchnorm._BatchNorm)]
        for norm in norms:
            norm.momentum = None
            nn.init.uniform_(norm.weight, 0.6, 1.4)
            nn.init.normal_(norm.bias, 0, 0.3)
        if norms:
            module.train()
            for each in module.modules():
                if isinstance(each, nn.Dropout):
                    each.eval()
            with torch.no_grad():
                module(*(torch.from_numpy(each) for each in self.part(self.samples(), 0, CALIB).values()))
        return module.eval()


def normal(*shape: int, scale: float = 1.0) -> Draw:
    """Draw independent numbers, [n, *shape]."""
    return lambda rng, n: (rng.normal(size=(n, *shape)) * scale).astype(np.float32)


def images(channels: int = 3, height: int = 32, width: int = 32) -> Draw:
    """Draw smooth fields with a colour, an edge and a little noise, [n, channels, height, width]."""

    def draw(rng: np.random.Generator, n: int) -> Array:
        coarse = torch.from_numpy(rng.normal(size=(n, channels, 5, 5)))
        smooth = nn.functional.interpolate(coarse, size=(height, width), mode="bicubic", align_corners=True).numpy()
        edge = np.arange(width)[None, None, None] > rng.integers(width // 4, 3 * width // 4, (n, 1, 1, 1))
        colour = rng.normal(size=(n, channels, 1, 1)) * 0.5
        noise = rng.normal(size=(n, channels, height, width)) * 0.1
        return (smooth + edge * rng.normal(size=(n, channels, 1, 1)) + colour + noise).astype(np.float32)

    return draw


def waves(*shape: int) -> Draw:
    """Draw sums of decaying tones with a little noise, [n, *shape], time last."""

    def draw(rng: np.random.Generator, n: int) -> Array:
        time, lead = np.arange(shape[-1]), (n, *shape[:-1], 3, 1)
        tones = np.sin(time * rng.uniform(0.02, 0.9, lead) + rng.uniform(0, 6, lead)) * rng.uniform(0.1, 1, lead)
        decay = np.exp(-time * rng.uniform(0, 3, lead) / shape[-1])
        return ((tones * decay).sum(-2) + rng.normal(size=(n, *shape)) * 0.03).astype(np.float32)

    return draw


def series(length: int, features: int) -> Draw:
    """Draw slowly changing vectors, [n, length, features]."""

    def draw(rng: np.random.Generator, n: int) -> Array:
        steps = rng.normal(size=(n, length, features)) * np.linspace(0.5, 1.5, features)
        rows = [steps[:, 0]]
        for step in range(1, length):
            rows.append(0.8 * rows[-1] + 0.6 * steps[:, step])
        return np.stack(rows, axis=1).astype(np.float32)

    return draw


def tokens(length: int, vocabulary: int) -> Draw:
    """Draw identifiers, small ones more often, [n, length] int64."""
    return lambda rng, n: np.minimum(rng.zipf(1.3, (n, length)), vocabulary - 1).astype(np.int64)


def ones_then_zeros(length: int, least: int, kind: type = np.int64) -> Draw:
    """Draw masks of sequences that end early, [n, length]."""
    return lambda rng, n: (np.arange(length) < rng.integers(least, length + 1, (n, 1))).astype(kind)


def constant(value: object, kind: type) -> Draw:
    """Give an input that is the same for all samples, without a batch."""
    return lambda rng, n: np.asarray(value, kind)
