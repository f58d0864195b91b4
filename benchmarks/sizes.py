"""Bytes of the written files over those of the float file.

    python benchmarks/sizes.py

One network of 12 MB, four convolutions with weights of a normal distribution: sizes do not depend on what weights say.
Each row is one job without reconstruction. Writes `sizes.txt` beside this script.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnx.parser
from onnx.numpy_helper import from_array

import dipo
from dipo.config import compose_config
from dipo.stages.pipeline import run_silently

NETWORK = """<ir_version: 8, opset_import: ["": 13]> large (float[N,8,8,8] x) => (float[N,256,4,4] y) {
    [conv1] a = Conv<pads=[1,1,1,1], strides=[2,2]>(x, w1, b1)
    [relu1] r = Relu(a)
    [conv2] b = Conv<pads=[1,1,1,1]>(r, w2, b2)
    [relu2] s = Relu(b)
    [conv3] c = Conv(s, w3, b3)
    [relu3] t = Relu(c)
    [conv4] y = Conv<pads=[1,1,1,1]>(t, w4, b4)
}"""
SHAPES = {
    "w1": (512, 8, 3, 3), "b1": (512,), "w2": (512, 512, 3, 3), "b2": (512,), "w3": (256, 512, 1, 1), "b3": (256,),
    "w4": (256, 256, 3, 3), "b4": (256,),
}  # fmt: skip
ROWS = (
    "precision=w8a8",
    "precision=w8a8 export.format=qop",
    "precision=w4a8",
    "precision=w4a8 export.weights=packed",
    "precision=w4a8 export.weights=packed export.format=qop",
    "precision=w4a8 export.weights=packed precision.weight_block=32",
    "precision=w4a8 export.weights=packed precision.first_last_bits=null",
    "precision=w4a8 platform=openvino",
    "precision=w8a8 platform=trt",
)


def write_network(path: Path) -> None:
    """The float network."""
    model = onnx.parser.parse_model(NETWORK)
    rng = np.random.default_rng(0)
    for name, shape in SHAPES.items():
        numbers = rng.normal(scale=(2 / np.prod(shape[1:])) ** 0.5, size=shape)
        model.graph.initializer.append(from_array(numbers.astype(np.float32), name))
    onnx.save(model, path)


def main() -> None:
    """Prints and writes the table, line by line."""
    target = Path(__file__).with_suffix(".txt")
    with tempfile.TemporaryDirectory() as scratch:
        model, samples = Path(scratch) / "large.onnx", Path(scratch) / "samples.npy"
        write_network(model)
        np.save(samples, np.random.default_rng(1).normal(size=(16, 8, 8, 8)).astype(np.float32))
        whole = model.stat().st_size
        lines = [
            f"python benchmarks/sizes.py\ndipo {dipo.__version__}, float file {whole / 1e6:.1f} MB, quantized.onnx:"
        ]
        for number, extra in enumerate(ROWS):
            folder = Path(scratch) / str(number)
            words = [f"model.path={model}", f"data.path={samples}", "cluster=inline", *extra.split()]
            run_silently(compose_config(words), folder)
            size = (folder / "quantized.onnx").stat().st_size
            lines.append(f"{extra:72}{size / 1e6:6.2f} MB  {size / whole:.3f}")
            print(lines[-1], flush=True)
            target.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
