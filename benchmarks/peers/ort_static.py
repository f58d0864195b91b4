"""ONNX Runtime's static quantization; runs in an environment with onnxruntime.

    python ort_static.py MODEL.onnx SAMPLES OUT.onnx --setting w8a8-entropy --num 256 --mean 0.5 --std 0.5

QDQ, weights signed and per channel, activations unsigned: what its documentation recommends for x86 CPUs.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from samples import clean, task

METHODS = {
    "w8a8-minmax": CalibrationMethod.MinMax,
    "w8a8-entropy": CalibrationMethod.Entropy,
    "w8a8-percentile": CalibrationMethod.Percentile,
}
BATCH = 16


class Reader(CalibrationDataReader):
    """Hands out batches."""

    def __init__(self, batches: Iterator[dict[str, NDArray[np.float32]]]) -> None:
        """Keeps them."""
        self.batches = batches

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        """The next batch, None at the end."""
        return next(self.batches, None)


def main() -> None:
    """Quantizes one model."""
    job = task(__doc__, tuple(METHODS))
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "clean.onnx"
        onnx.save(clean(job.source), path)
        quantize_static(
            path,
            job.target,
            Reader(job.batches(BATCH)),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=METHODS[job.setting],
        )


if __name__ == "__main__":
    main()
