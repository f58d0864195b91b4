"""Qualcomm SNPE: a float model, and encodings that its converter takes in place of its own calibration.

`snpe-onnx-to-dlc --input_network deploy.onnx --quantization_overrides snpe_encodings.json`, then `snpe-dlc-quantize`.
Biases are no part of the legacy schemas: they are int32, of input step x weight step, with `--bias_bitwidth 32`. Every
version of SNPE reads schema 0.6.1; 2.0.0 has the biases too.
"""

from __future__ import annotations

from dipo.export.target import DEPLOYED, QUANTIZED
from dipo.export.targets.qualcomm import SPEC, Qualcomm, encodings_file


class Snpe(Qualcomm):
    """Qualcomm SNPE."""

    spec = SPEC
    files = (QUANTIZED, DEPLOYED, encodings_file("snpe_encodings.json"))
    default_schema = "0.6.1"


TARGET = Snpe()
