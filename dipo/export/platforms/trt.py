"""TensorRT: QDQ with symmetric int8 for every version, and the range files that versions up to 10 can read instead.

TensorRT 10 and later read the weights of matrix products in int4 too, with a scale for each channel or block; it
computes these products in float. Other layers' weights of up to 4 bits lie in int8.

Version 11 has neither calibrators nor `set_dynamic_range` any more: it reads `quantized.onnx` alone. Up to 10, the
ranges go with `deploy.onnx`, the float network with the weights that the codes stand for.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
import onnx_ir as ir

from dipo.errors import UserError
from dipo.export.float_file import write_models
from dipo.export.forms import QDQ, Form, write_quantized
from dipo.export.qdq import storage_type
from dipo.export.ranges import all_ranges
from dipo.export.text_files import write_json, write_text
from dipo.graph.plan import QuantizedModel
from dipo.graph.rules import PlatformRules
from dipo.quant.spec import QParams

_PRODUCTS = frozenset({"Gemm", "MatMul"})

RULES = PlatformRules(
    name="trt",
    operators=frozenset({"Add", "AveragePool", "Conv", "ConvTranspose", "Gemm", "GlobalAveragePool", "MatMul"}),
    weight_symmetric=True,
    weight_per_channel=True,
    act_symmetric=True,
    act_signed=True,
    int32_bias=False,
    fuse_residual_add=True,
    weight_widths=tuple(range(2, 9)),
    act_widths=tuple(range(2, 9)),
    weight_types=frozenset({4, 8}),
    narrow_operators=_PRODUCTS,
    weight_blocks=_PRODUCTS,
    block_bits=4,
    whole_blocks=True,
    ranges_beside=True,
)

_LAST_WITH_RANGES = 10
"""The last major version that reads calibration caches and dynamic ranges."""
_FIRST_WITH_INT4 = 10
"""The first major version that reads int4 weights and blocks."""


def write(
    model: ir.Model,
    quantized: QuantizedModel,
    folder: Path,
    *,
    metadata: Mapping[str, str],
    form: Form = QDQ,
    beside: Mapping[str, QParams] = MappingProxyType({}),
    version: str = "10.0.0",
) -> list[Path]:
    """Write `quantized.onnx`, and for versions up to 10 `deploy.onnx` and the range files.

    Args:
        model: The float graph.
        quantized: Its integer weights and activation scales.
        folder: Where the files go; exists.
        metadata: Goes into the ONNX files.
        form: How `quantized.onnx` is written.
        beside: Grids of values that are not quantized, for the range files: TensorRT computes in float what reads or
            makes a value without a range.
        version: TensorRT's, such as 8.6.1, 10.13.0 or 11: a calibration cache names it in its first line.

    Returns:
        The files written.

    Raises:
        UserError: Something is not symmetric int8, a quantized activation has no usable scale, or the version is none
            or does not take blocks; nothing is written.
    """
    header = cache_header(version)
    _check_int8({**quantized.activations, **{name: layer.qparams for name, layer in quantized.layers.items()}})
    _check_scales(quantized)
    rules = RULES
    if int(version.partition(".")[0]) < _FIRST_WITH_INT4:
        _check_no_blocks(quantized, version)
        rules = dataclasses.replace(RULES, weight_types=frozenset({8}))
    if header is None:
        path = folder / "quantized.onnx"
        write_quantized(model, quantized, path, rules=rules, metadata=metadata, form=form)
        return [path]
    paths = write_models(model, quantized, folder, rules=rules, metadata=metadata, form=form)
    return [*paths, *write_ranges(all_ranges(model, quantized.activations, beside), folder, header=header)]


def cache_header(version: str) -> str | None:
    """First line of a calibration cache: the version and the algorithm that its reader must name; None from 11 on.

    TensorRT writes version 8.6.1 as 8601, and from 10 on 10.13.0 as 101300.

    Raises:
        UserError: That is no version.
    """
    if not re.fullmatch(r"\d+(\.\d+){0,3}", version):
        raise UserError(f"platform.version {version!r}: give TensorRT's version, such as 10.13.0")
    major, minor, patch = ([int(part) for part in version.split(".")] + [0, 0])[:3]
    if major > _LAST_WITH_RANGES:
        return None
    number = major * (10000 if major >= _LAST_WITH_RANGES else 1000) + minor * 100 + patch
    return f"TRT-{number}-EntropyCalibration2"


def write_ranges(
    grids: Mapping[str, QParams], folder: Path, *, header: str = "TRT-100000-EntropyCalibration2"
) -> list[Path]:
    """Write the activations' ranges for the float model, as TensorRT up to version 10 takes them.

    `trt_clip_val.json` is `{"blob_range": {tensor: amax}}`, for a script that calls `set_dynamic_range(-amax, amax)`.
    `calibration.cache` is what a calibrator (or `trtexec --int8 --calib=`) reads: a header, then for each tensor
    `amax / 127` as the big-endian hexadecimal digits of a float32. TensorRT 11 reads neither, only the QDQ model.
    """
    amax = {name: _amax(qparams) for name, qparams in grids.items()}
    ranges = write_json(folder / "trt_clip_val.json", {"blob_range": amax})
    lines = [f"{name}: {np.array(value / 127, '>f4').tobytes().hex()}" for name, value in amax.items()]
    return [ranges, write_text(folder / "calibration.cache", "\n".join([header, *lines]) + "\n")]


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


def _check_no_blocks(quantized: QuantizedModel, version: str) -> None:
    for name, layer in quantized.layers.items():
        if layer.qparams.blocks is not None:
            raise UserError(
                f"platform.version {version}: layer {name!r} has a scale for each block, which TensorRT takes from "
                f"version {_FIRST_WITH_INT4} on, leave out precision.weight_block"
            )
