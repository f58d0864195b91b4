"""Small networks for tests, written down as ONNX text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser


def network(text: str, *, opset: int = 17, seed: int = 0, domain: str = "", **constants: object) -> onnx.ModelProto:
    """Make a model from the text of its graph; a constant given as a shape is filled with small random numbers."""
    imports = f'"" : {opset}' + (f', "{domain}" : 1' if domain else "")
    model = onnx.parser.parse_model(f"<ir_version: 8, opset_import: [{imports}]>\ng {text}")
    rng = np.random.default_rng(seed)
    for name, value in constants.items():
        array = np.asarray(value)
        if isinstance(value, tuple):
            array = (rng.normal(size=value) / np.sqrt(max(1, np.prod(value[1:])))).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return model


def saved(model: onnx.ModelProto, folder: Path, name: str = "net.onnx") -> Path:
    path = folder / name
    onnx.save(model, path)
    return path


def tiny_cnn(*, batch: int | str = "N", classes: int = 10) -> onnx.ModelProto:
    """Make a stem, a residual block and a classifier, on images of 3x8x8."""
    return network(
        f"""(float[{batch},3,8,8] image) => (float[{batch},{classes}] scores) {{
          [stem] a = Conv<pads=[1,1,1,1]>(image, w1, b1)
          [relu1] b = Relu(a)
          [left] c = Conv<pads=[1,1,1,1]>(b, w2)
          [relu2] d = Relu(c)
          [right] e = Conv<pads=[1,1,1,1]>(d, w3, b3)
          [sum] f = Add(e, b)
          [relu3] h = Relu(f)
          [pool] i = GlobalAveragePool(h)
          [flat] j = Flatten(i)
          [head] scores = Gemm<transB=1>(j, w4, b4)
        }}""",
        w1=(8, 3, 3, 3),
        b1=(8,),
        w2=(8, 8, 3, 3),
        w3=(8, 8, 3, 3),
        b3=(8,),
        w4=(classes, 8),
        b4=(classes,),
    )


def images(num: int, *, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(num, 3, 8, 8)).astype(np.float32)
