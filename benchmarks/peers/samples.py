"""What the peers' scripts share: their arguments, the same samples that dipo takes, and a graph that they accept."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Task:
    """What one run of a peer has to do."""

    source: Path
    target: Path
    setting: str
    x: NDArray[np.float32]
    """Calibration samples [N, C, H, W], as the network wants them."""

    def batches(self, size: int) -> Iterator[dict[str, NDArray[np.float32]]]:
        """The samples by the name of the network's input."""
        name = onnx.load(self.source, load_external_data=False).graph.input[0].name
        for start in range(0, len(self.x), size):
            yield {name: self.x[start : start + size]}


def task(doc: str | None, settings: Sequence[str]) -> Task:
    """Reads the command line and the calibration samples."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="float ONNX file")
    parser.add_argument("samples", type=Path, help=".npz with calib_x, or a folder with calib/*.jpg")
    parser.add_argument("target", type=Path, help="file to write")
    parser.add_argument("--setting", choices=settings, required=True)
    parser.add_argument("--num", type=int, help="calibration samples; all unless given")
    add_normalization(parser)
    args = parser.parse_args()
    pixels = images(args.samples, "calib", args.num)
    return Task(args.source, args.target, args.setting, normalized(pixels, args.mean, args.std))


def add_normalization(parser: argparse.ArgumentParser) -> None:
    """Adds the options that turn pixels into the network's input."""
    parser.add_argument("--mean", type=float, nargs="+", required=True, help="of each channel, of pixels / 255")
    parser.add_argument("--std", type=float, nargs="+", required=True, help="of each channel, of pixels / 255")


def images(path: Path, part: str, num: int | None = None) -> Pixels:
    """The first `num` images [N, H, W, C] of the part `calib`, `test` (in an .npz) or `val` (in a folder)."""
    if path.is_dir():
        files = sorted((path / part).glob("*.jpg"))[:num]
        return np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])
    with np.load(path) as arrays:
        stored: Pixels = arrays[f"{part}_x"][:num]
    return stored


def labels(path: Path, part: str) -> NDArray[np.int64]:
    """The classes of the same images; in a folder they end the files' names."""
    if path.is_dir():
        return np.array([int(file.stem.split("_")[1]) for file in sorted((path / part).glob("*.jpg"))])
    with np.load(path) as arrays:
        return np.asarray(arrays[f"{part}_y"], dtype=np.int64)


def normalized(pixels: Pixels, mean: Sequence[float], std: Sequence[float]) -> NDArray[np.float32]:
    """(pixels / 255 - mean) / std as [N, C, H, W]."""
    x = (pixels.astype(np.float32) / np.float32(255) - np.float32(mean)) / np.float32(std)
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2))


def clean(source: Path) -> onnx.ModelProto:
    """The model with BatchNormalization and Pad folded: most peers stop, or quantize badly, where they are not."""
    import onnx_ir as ir
    from onnxscript import optimizer

    model = ir.load(source)
    optimizer.optimize(model)
    return ir.to_proto(model)
