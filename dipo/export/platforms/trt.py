"""TensorRT: QDQ with symmetric int8 for every version, and the range files that versions up to 10 can read instead."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir

from dipo.errors import UserError
from dipo.export.qdq import storage_type, write_qdq
from dipo.graph.plan import QuantizedModel
from dipo.graph.rules import PlatformRules
from dipo.quant.spec import QParams

RULES = PlatformRules(
    name="trt",
    operators=frozenset({"Add", "AveragePool", "Conv", "ConvTranspose", "Gemm", "GlobalAveragePool", "MatMul"}),
    weight_symmetric=True,
    weight_per_channel=True,
    act_symmetric=True,
    act_signed=True,
    int32_bias=False,
    fuse_residual_add=True,
)

_CACHE_HEADER = "TRT-100000-EntropyCalibration2"
"""Version 10.0.0, the last major version that reads calibration caches, and the algorithm that its reader must name."""


def write(model: ir.Model, quantized: QuantizedModel, folder: Path, *, metadata: Mapping[str, str]) -> list[Path]:
    """Write `quantized.onnx` and the range files.

    Args:
        model: The float graph.
        quantized: Its integer weights and activation scales.
        folder: Where the files go; exists.
        metadata: Goes into the ONNX file.

    Returns:
        The files written.

    Raises:
        UserError: Something is not symmetric int8, or a quantized activation has no usable scale; nothing is written.
    """
    _check_int8({**quantized.activations, **{name: layer.qparams for name, layer in quantized.layers.items()}})
    _check_scales(quantized)
    path = folder / "quantized.onnx"
    write_qdq(model, quantized, path, rules=RULES, metadata=metadata)
    return [path, *write_ranges(quantized, folder)]


def write_ranges(quantized: QuantizedModel, folder: Path) -> list[Path]:
    """Write the activations' ranges for the float model, as TensorRT up to version 10 takes them.

    `trt_clip_val.json` is `{"blob_range": {tensor: amax}}`, for a script that calls `set_dynamic_range(-amax, amax)`.
    `calibration.cache` is what a calibrator (or `trtexec --int8 --calib=`) reads: a header, then for each tensor
    `amax / 127` as the big-endian hexadecimal digits of a float32. TensorRT 11 reads neither, only the QDQ model.

    Raises:
        UserError: An activation has no finite positive scale; nothing is written.
    """
    _check_scales(quantized)
    amax = {name: _amax(qparams) for name, qparams in quantized.activations.items()}
    ranges = folder / "trt_clip_val.json"
    _write_text(ranges, json.dumps({"blob_range": amax}, indent=2) + "\n")
    lines = [f"{name}: {np.array(value / 127, '>f4').tobytes().hex()}" for name, value in amax.items()]
    cache = folder / "calibration.cache"
    _write_text(cache, "\n".join([_CACHE_HEADER, *lines]) + "\n")
    return [ranges, cache]


def _amax(qparams: QParams) -> float:
    """The largest number that the codes reach, 127 steps at 8 bits: a dynamic range is symmetric, without -128."""
    return float(qparams.scale) * qparams.qmax


def _check_scales(quantized: QuantizedModel) -> None:
    missing = [
        name
        for name, qparams in quantized.activations.items()
        if not (np.isfinite(qparams.scale) and qparams.scale > 0)
    ]
    if missing:
        raise UserError(
            f"platform=trt: no range for tensors {', '.join(missing)}: "
            "calibrate with samples that reach them, or leave their layers out with precision.skip"
        )


def _check_int8(qparams: Mapping[str, QParams]) -> None:
    for name, each in qparams.items():
        if storage_type(each) != ir.DataType.INT8 or np.any(each.zero_point):
            raise UserError(
                f"platform=trt: {name!r} has codes {each.qmin} to {each.qmax} that are not symmetric int8, all that "
                "TensorRT takes: set precision.weight_bits and precision.act_bits to 8 or less, symmetric"
            )


def _write_text(path: Path, text: str) -> None:
    unfinished = path.with_name(f".{path.name}.unfinished")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)
