"""TensorRT: QDQ with symmetric int8 for every version, and the range files that versions up to 10 can read instead.

TensorRT 10 and later also read the weights of matrix products in int4, with a scale for each channel or block, and
compute these products in float. Other layers' weights of up to 4 bits are stored in int8.

Version 11 has no calibrators and no `set_dynamic_range` any more: it reads `quantized.onnx` alone. Up to 10, the ranges
belong to `deploy.onnx`, the float network with dequantized weights.

`trt_clip_val.json` is `{"blob_range": {tensor: amax}}`, for a script that calls `set_dynamic_range(-amax, amax)`.
`calibration.cache` is what a calibrator (or `trtexec --int8 --calib=`) reads: a header, then for each tensor
`amax / 127` as the big-endian hexadecimal digits of a float32.
"""

from __future__ import annotations

import dataclasses
import json
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dipo.errors import UserError
from dipo.export.range_file import Claim, Names
from dipo.export.target import DEPLOYED, QUANTIZED, Export, PlatformOptions, Target, TargetFile
from dipo.graph.target_spec import TargetSpec

if TYPE_CHECKING:
    from dipo.graph.plan import QuantizedModel
    from dipo.quant.spec import QParams

_PRODUCTS = frozenset({"Gemm", "MatMul"})
FIRST_VERSION = 5
"""First major version with the calibrator that calibration caches name."""
DEFAULT_VERSION = "10.0.0"
_LAST_WITH_RANGES = 10
"""Last major version that reads calibration caches and dynamic ranges."""
_FIRST_WITH_INT4 = 10
"""First major version that reads int4 weights and blocks."""
_HEADER = re.compile(r"TRT-\d+-\w+Calibration\w*")


@dataclass(frozen=True)
class TensorRtOptions(PlatformOptions):
    """Options of TensorRT."""

    version: str | None = None
    """Version of the target's toolchain, such as 8.6.1, 10.13.0 or 11 (trt, whose versions from 11 on read no range
    files); null: 10.0.0."""

    def __post_init__(self) -> None:
        """Check the type, then that the version is not too old.

        Raises:
            UserError: It is.
        """
        super().__post_init__()
        major = (self.version or "").partition(".")[0]
        if major.isdecimal() and int(major) < FIRST_VERSION:
            raise UserError(
                f"platform.version {self.version!r}: TensorRT reads such files from version {FIRST_VERSION} on, give "
                "yours, such as 8.6.1 or 10.13.0"
            )


def read_cache(text: str, names: Names) -> Iterator[Claim]:
    """Read a calibration cache back."""
    header, *lines = text.splitlines()
    if not _HEADER.fullmatch(header):
        raise ValueError(f"{header!r} is no header of TensorRT's")
    for line in lines:
        name, _, digits = line.rpartition(": ")
        if not re.fullmatch("[0-9a-f]{8}", digits):
            raise ValueError(f"{line!r} has no float32 of 8 digits")
        amax = struct.unpack(">f", bytes.fromhex(digits))[0] * 127
        yield names.claim(name, low=-amax, high=amax)


def read_clip_values(text: str, names: Names) -> Iterator[Claim]:
    """Read the JSON back."""
    for name, amax in json.loads(text)["blob_range"].items():
        yield names.claim(name, low=-float(amax), high=amax)


class TensorRt(Target[TensorRtOptions]):
    """TensorRT."""

    spec = TargetSpec(
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
    options_class = TensorRtOptions
    files = (
        QUANTIZED,
        DEPLOYED,
        TargetFile(
            "trt_clip_val.json",
            read=read_clip_values,
            elsewhere="the user's script for TensorRT up to 10 reads it",
        ),
        TargetFile("calibration.cache", read=read_cache, elsewhere="TensorRT up to 10 reads it, on a GPU alone"),
    )

    def check_options(self, options: TensorRtOptions) -> None:
        """Check that the version is valid.

        Raises:
            UserError: It is not.
        """
        cache_header(options.version or DEFAULT_VERSION)

    def remarks(self, options: TensorRtOptions) -> list[str]:
        """Return a note if the version reads no range files."""
        if options.version is None or cache_header(options.version) is not None:
            return []
        return [
            f"TensorRT {options.version} no longer reads range files (calibration.cache, dynamic ranges): none are "
            "written, its scales are those in quantized.onnx"
        ]

    def write(self, export: Export, options: TensorRtOptions) -> list[Path]:
        """Write `quantized.onnx`, and for versions up to 10 `deploy.onnx` and the range files.

        TensorRT computes operators in float if a value that they read or write has no range, so the files also have
        ranges of values that are not quantized.

        Raises:
            UserError: A tensor is not symmetric int8, a quantized activation has no usable scale, or the version is
                not valid or does not take blocks; nothing is written.
        """
        from dipo.export.ranges import all_ranges

        version, quantized = options.version or DEFAULT_VERSION, export.quantized
        header = cache_header(version)
        _check_int8({**quantized.activations, **{name: layer.qparams for name, layer in quantized.layers.items()}})
        _check_scales(quantized)
        spec = self.spec
        if int(version.partition(".")[0]) < _FIRST_WITH_INT4:
            _check_no_blocks(quantized, version)
            spec = dataclasses.replace(spec, weight_types=frozenset({8}))
        if header is None:
            return export.write_quantized(spec)
        paths = export.write_models(spec)
        grids = all_ranges(export.model, quantized.activations, export.beside)
        amax = {name: _amax(qparams) for name, qparams in grids.items()}
        return [
            *paths,
            export.write_json("trt_clip_val.json", {"blob_range": amax}),
            export.write_text("calibration.cache", _cache(header, amax)),
        ]


TARGET = TensorRt()


def cache_header(version: str) -> str | None:
    """Return the first line of a calibration cache, with its reader's version and algorithm; None from 11 on.

    TensorRT writes version 8.6.1 as 8601, and from 10 on 10.13.0 as 101300.

    Raises:
        UserError: The version is not valid.
    """
    if not re.fullmatch(r"\d+(\.\d+){0,3}", version):
        raise UserError(f"platform.version {version!r}: give TensorRT's version, such as 10.13.0")
    major, minor, patch = ([int(part) for part in version.split(".")] + [0, 0])[:3]
    if major > _LAST_WITH_RANGES:
        return None
    number = major * (10000 if major >= _LAST_WITH_RANGES else 1000) + minor * 100 + patch
    return f"TRT-{number}-EntropyCalibration2"


def _cache(header: str, amax: Mapping[str, float]) -> str:
    lines = [f"{name}: {struct.pack('>f', value / 127).hex()}" for name, value in amax.items()]
    return "\n".join([header, *lines]) + "\n"


def _amax(qparams: QParams) -> float:
    """Return the number of the largest code, 127 steps at 8 bits: a dynamic range is symmetric, without -128."""
    return float(qparams.scale) * qparams.qmax


def _check_scales(quantized: QuantizedModel) -> None:
    import numpy as np

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
    import numpy as np
    import onnx_ir as ir

    from dipo.export.qdq import storage_type

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
