"""Trains the embedded MobileNetV2 on scikit-learn's handwritten digits and writes `mobilenet.onnx` and `digits.npz`.

    python -m dipo.zoo.train_digits

Needs scikit-learn, which nothing else in the package does.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

from dipo.zoo.mobilenet import IMAGE_SIZE, MobileNetV2, to_onnx

FOLDER = Path(__file__).parent
NUM_TEST = 600
NUM_CALIB = 512
NUM_GREYS = 64

MAX_TURN = math.radians(25)
MAX_SCALE = 0.25
MAX_SHIFT_PX = 4

SEED = 2


@dataclass(frozen=True)
class Images:
    """Images, uint8 [N, 32, 32, 1], with their labels, int64 [N]."""

    x: NDArray[np.uint8]
    y: NDArray[np.int64]


@dataclass(frozen=True)
class Split:
    """The three parts, each with every class in proportion.

    `train` holds the digits upright: each epoch places them anew. `calib` and `test` hold them as they are written to
    the file, each placed once. The digits of `calib` are among those of `train`; those of `test` are in neither.
    """

    train: Images
    calib: Images
    test: Images


@dataclass(frozen=True)
class SplitIds:
    """Which of scikit-learn's digits each part holds."""

    train: NDArray[np.int64]
    calib: NDArray[np.int64]
    test: NDArray[np.int64]


def split_ids(y: NDArray[np.int64], *, seed: int) -> SplitIds:
    """Divide the labelled digits by class."""
    train, test = train_test_split(np.arange(len(y)), test_size=NUM_TEST, stratify=y, random_state=seed)
    _, calib = train_test_split(train, test_size=NUM_CALIB, stratify=y[train], random_state=seed)
    return SplitIds(train=train, calib=calib, test=test)


def load_split(*, seed: int) -> Split:
    """Enlarge the 8x8 digits to 32x32 bilinearly, divide them, and place those of the two parts that are kept."""
    digits = load_digits()
    small = torch.from_numpy(digits.images).float().unsqueeze(1) / 16
    x = F.interpolate(small, size=IMAGE_SIZE, mode="bilinear", align_corners=False)
    y = digits.target.astype(np.int64)
    ids = split_ids(y, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    return Split(
        train=Images(to_pixels(x[ids.train], num_greys=256), y[ids.train]),
        calib=Images(to_pixels(place(x[ids.calib], generator), num_greys=NUM_GREYS), y[ids.calib]),
        test=Images(to_pixels(place(x[ids.test], generator), num_greys=NUM_GREYS), y[ids.test]),
    )


def to_pixels(x: Tensor, *, num_greys: int) -> NDArray[np.uint8]:
    """Convert [N, C, H, W] in 0 .. 1 to uint8 [N, H, W, C] of that many grey levels: fewer make a smaller file."""
    levels = (x * (num_greys - 1)).round() * (255 / (num_greys - 1))
    return levels.round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


def from_pixels(x: NDArray[np.uint8]) -> Tensor:
    """Convert uint8 [N, H, W, C] to float32 [N, C, H, W] in 0 .. 1."""
    return torch.from_numpy(x).permute(0, 3, 1, 2).float() / 255


def normalize(x: Tensor) -> Tensor:
    """Normalize pixels in 0 .. 1 with mean 0.5 and standard deviation 0.5."""
    return (x - 0.5) / 0.5


def place(x: Tensor, generator: torch.Generator) -> Tensor:
    """Turn, scale and shift each image by its own draw, uniform up to the `MAX_` constants above.

    Args:
        x: [N, 1, H, W] in 0 .. 1; what comes in from outside is the background, 0.
        generator: The source of the draws.
    """
    turn, size, shift_x, shift_y = 2 * torch.rand(4, len(x), generator=generator) - 1
    angle, scale, reach = turn * MAX_TURN, 1 + size * MAX_SCALE, 2 * MAX_SHIFT_PX / IMAGE_SIZE
    cos, sin = scale * angle.cos(), scale * angle.sin()
    theta = torch.stack([cos, -sin, shift_x * reach, sin, cos, shift_y * reach], dim=1).view(-1, 2, 3)
    return F.grid_sample(x, F.affine_grid(theta, list(x.shape), align_corners=False), align_corners=False)


def train(images: Images, *, epochs: int, batch_size: int, lr: float, weight_decay: float, seed: int) -> MobileNetV2:
    """Train by SGD (momentum 0.9, one-cycle learning rate with peak `lr`); leave the network in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    net = MobileNetV2()
    net.initialize(generator)
    x, y = from_pixels(images.x), torch.from_numpy(images.y)
    steps = len(x) // batch_size
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9, nesterov=True, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=epochs * steps, pct_start=0.1)
    for epoch in range(epochs):
        total = 0.0
        for batch in torch.randperm(len(x), generator=generator)[: steps * batch_size].view(steps, batch_size):
            loss = F.cross_entropy(net(normalize(place(x[batch], generator))), y[batch])
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
            total += loss.item()
        if (epoch + 1) % 10 == 0:
            print(f"epoch {epoch + 1}/{epochs}: loss {total / steps:.4f}", flush=True)
    return net.eval()


def onnx_logits(model: onnx.ModelProto, x: Tensor) -> NDArray[np.float32]:
    """Run ONNX Runtime on normalized images, and return the logits, [N, 10]."""
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    logits: NDArray[np.float32] = session.run(["logits"], {"input": x.numpy()})[0]
    return logits


def replace(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file beside `path`, then rename it: a file of that name is always complete."""
    temporary = path.with_name(f"tmp-{path.name}")
    write(temporary)
    temporary.replace(path)
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


def main() -> None:
    """Train, check the ONNX file against torch, and writes both files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where both files go (default: beside the script)")
    parser.add_argument("--epochs", type=int, default=80)
    parser.add_argument("--seed", type=int, default=SEED)
    cli = parser.parse_args()
    cli.folder.mkdir(parents=True, exist_ok=True)

    torch.set_num_threads(1)  # sums in parallel would make the weights depend on the machine's number of cores
    started = time.perf_counter()
    split = load_split(seed=cli.seed)
    net = train(split.train, epochs=cli.epochs, batch_size=64, lr=0.1, weight_decay=4e-5, seed=cli.seed)
    model = to_onnx(net)
    calib, test = split.calib, split.test
    test_x = normalize(from_pixels(test.x))
    logits = onnx_logits(model, test_x)
    with torch.no_grad():
        np.testing.assert_allclose(logits, net(test_x).numpy(), rtol=1e-4, atol=1e-3)
    accuracy = 100 * float(np.mean(logits.argmax(1) == test.y))
    print(f"accuracy {accuracy:.2f} % of {len(test.y)} images, trained in {time.perf_counter() - started:.0f} s")

    replace(cli.folder / "mobilenet.onnx", lambda path: onnx.save(model, path))
    replace(
        cli.folder / "digits.npz",
        lambda path: np.savez_compressed(path, calib_x=calib.x, calib_y=calib.y, test_x=test.x, test_y=test.y),
    )


if __name__ == "__main__":
    main()
