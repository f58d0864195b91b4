"""A network's logits on the held-out images, and their labels.

    python logits.py MODEL SAMPLES OUT.npz --part test --mean 0.5 --std 0.5

The model runs in ONNX Runtime or, where its name ends in .xml, in OpenVINO.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from samples import add_normalization, images, labels, normalized

BATCH = 64
Run = Callable[[NDArray[np.float32]], NDArray[np.float32]]


def in_onnxruntime(path: Path) -> Run:
    """The network in ONNX Runtime, on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: np.asarray(session.run(None, {name: x})[0])


def in_openvino(path: Path) -> Run:
    """The network in OpenVINO, on the CPU; what is not quantized stays in float32."""
    import openvino

    hint = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.compile_model(openvino.Core().read_model(path), "CPU", hint)
    return lambda x: np.asarray(compiled(x)[0])


def main() -> None:
    """Writes the logits and the labels."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("samples", type=Path, help=".npz with test_x and test_y, or a folder with val/*_CLASS.jpg")
    parser.add_argument("target", type=Path)
    parser.add_argument("--part", choices=("test", "val"), required=True)
    add_normalization(parser)
    args = parser.parse_args()
    x = normalized(images(args.samples, args.part), args.mean, args.std)
    run = in_openvino(args.model) if args.model.suffix == ".xml" else in_onnxruntime(args.model)
    parts = [run(x[start : start + BATCH]) for start in range(0, len(x), BATCH)]
    logits = np.concatenate(parts).reshape(len(x), -1)
    np.savez(args.target, logits=logits, labels=labels(args.samples, args.part))


if __name__ == "__main__":
    main()
