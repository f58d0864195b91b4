"""NNCF's quantization of an ImageNet classifier with full bias correction; runs in an environment with nncf.

    python nncf_bias_correction.py MODEL.onnx FOLDER_OF_JPEGS OUT.onnx

NNCF stops with an error on a file whose BatchNormalization and Pad are not folded, so the model is cleaned first.
"""

from __future__ import annotations

import sys
from pathlib import Path

import nncf
import numpy as np
import onnx
import onnx_ir as ir
from onnxscript import optimizer
from PIL import Image

source, folder, target = sys.argv[1:]
model = ir.load(source)
optimizer.optimize(model)
proto = ir.to_proto(model)
name = proto.graph.input[0].name
files = sorted(Path(folder).glob("*.jpg"))


def read(file: Path) -> dict[str, np.ndarray]:
    """One image as the network wants it."""
    pixels = np.asarray(Image.open(file), dtype=np.float32) / 127.5 - 1
    return {name: np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])}


quantized = nncf.quantize(proto, nncf.Dataset(files, read), subset_size=len(files), fast_bias_correction=False)
onnx.save(quantized, target)
