"""Encodings files as they lie on the disk, in one form for all schemas."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dipo.verify.verdict import Refused


@dataclass(frozen=True, eq=False)
class Encoded:
    """A tensor's grid: `x = (code + offset) * scale`, codes from 0 up."""

    bits: int
    scale: NDArray[np.float64]
    offset: NDArray[np.int64]

    @staticmethod
    def of(bits: int, scale: Any, offset: Any) -> Encoded:
        """From numbers or lists of them, one for each channel."""
        whole = np.rint(np.asarray(offset, np.float64)).astype(np.int64)
        return Encoded(bits, np.asarray(scale, np.float64).reshape(-1), whole.reshape(-1))

    def same(self, other: Encoded) -> bool:
        """Whether both are one grid, but for rounding of the scale."""
        return (
            self.bits == other.bits
            and self.scale.size == other.scale.size
            and bool(np.array_equal(self.offset, other.offset))
            and bool(np.allclose(self.scale, other.scale, rtol=1e-5, atol=0))
        )


def read_encodings(file: Path) -> dict[str, Encoded]:
    """The grids of a file, by name of the tensor.

    Raises:
        Refused: The file is none of the schemas.
    """
    try:
        return dict(entries_of(json.loads(file.read_text(encoding="utf-8"))))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Refused(f"no encodings of a known schema: {type(error).__name__} {error}") from error


def entries_of(content: Mapping[str, Any]) -> Iterator[tuple[str, Encoded]]:
    """The tensors of a file's content and their grids."""
    if content["version"] == "2.0.0":
        yield from ((each["name"], _onnx(each)) for each in content["encodings"])
        return
    for kind in ("activation_encodings", "param_encodings"):
        if content["version"] == "1.0.0":
            yield from ((each["name"], Encoded.of(each["bw"], each["scale"], each["offset"])) for each in content[kind])
        else:
            for name, channels in content[kind].items():
                scales, offsets = ([each[key] for each in channels] for key in ("scale", "offset"))
                yield name, Encoded.of(channels[0]["bitwidth"], scales, offsets)


def _onnx(entry: Mapping[str, Any]) -> Encoded:
    kind = entry["output_dtype"]
    bits = int(kind.removeprefix("u").removeprefix("int"))
    low = 0 if kind.startswith("u") else -(1 << (bits - 1))
    scale = np.asarray(entry["y_scale"], np.float64).reshape(-1)
    zero = np.broadcast_to(np.asarray(entry.get("y_zero_point", 0)).reshape(-1), scale.shape)
    return Encoded.of(bits, scale, low - zero)
