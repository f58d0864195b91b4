"""ONNX Runtime's Entropy calibrator over a folder of ImageNet photographs, calibration alone.

python ort_entropy.py MODEL.onnx FOLDER_OF_JPEGS
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx_ir as ir
from onnxruntime.quantization import CalibrationDataReader
from onnxruntime.quantization.calibrate import CalibrationMethod, create_calibrator
from onnxscript import optimizer
from PIL import Image

source, folder = sys.argv[1:]


class Photographs(CalibrationDataReader):
    """Batches of 16."""

    def __init__(self, name: str, files: list[Path]) -> None:
        """Cuts the batches."""
        self.name, self.rest = name, [files[i : i + 16] for i in range(0, len(files), 16)]

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next batch, None at the end."""
        if not self.rest:
            return None
        pixels = np.stack([np.asarray(Image.open(file)) for file in self.rest.pop(0)]).astype(np.float32) / 127.5 - 1
        return {self.name: np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))}


with tempfile.TemporaryDirectory() as scratch:
    model = ir.load(source)
    optimizer.optimize(model)
    clean = Path(scratch) / "clean.onnx"
    ir.save(model, clean)
    calibrator = create_calibrator(
        clean, calibrate_method=CalibrationMethod.Entropy, augmented_model_path=str(Path(scratch) / "augmented.onnx")
    )
    calibrator.set_execution_providers(["CPUExecutionProvider"])
    calibrator.collect_data(Photographs(str(model.graph.inputs[0].name), sorted(Path(folder).glob("*.jpg"))))
    print(len(calibrator.compute_data().data), "ranges")
