"""How far two networks' outputs are apart."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NO_NOISE_DB = 200.0
"""What an SQNR without any noise is reported as: JSON has no infinity."""


@dataclass(frozen=True)
class OutputError:
    """Distance of a network from a reference, over all its outputs and samples."""

    agreement: float
    """Per cent of the samples with the same top-1 of the first output."""
    cosine: float
    """Of all output values as one vector."""
    sqnr_db: float
    """10 log10(sum reference^2 / sum (reference - other)^2)."""


def output_error(reference: Mapping[str, NDArray[np.float32]], other: Mapping[str, NDArray[np.float32]]) -> OutputError:
    """Compares the outputs of two networks, by name [samples, ...]."""
    first = next(iter(reference))
    num_samples = len(reference[first])
    same = _top1(reference[first]) == _top1(other[first])
    a = np.concatenate([reference[name].reshape(-1) for name in reference]).astype(np.float64)
    b = np.concatenate([other[name].reshape(-1) for name in reference]).astype(np.float64)
    return OutputError(
        agreement=100.0 * float(same.mean()) if num_samples else math.nan,
        cosine=cosine(float(a @ a), float(b @ b), float(a @ b)),
        sqnr_db=sqnr_db(float(a @ a), float(((a - b) ** 2).sum())),
    )


def accuracy(outputs: Mapping[str, NDArray[np.float32]], labels: NDArray[np.int64]) -> float:
    """Per cent of the samples whose top-1 of the first output is their label."""
    return 100.0 * float((_top1(next(iter(outputs.values()))) == labels).mean())


def cosine(fp_fp: float, q_q: float, fp_q: float) -> float:
    """Cosine of two vectors from their products; 1 for two zero vectors, 0 where only one is."""
    if fp_fp == 0 and q_q == 0:
        return 1.0
    return fp_q / math.sqrt(fp_fp * q_q) if fp_fp > 0 and q_q > 0 else 0.0


def sqnr_db(signal: float, noise: float) -> float:
    """Signal to quantization noise ratio, within +-`NO_NOISE_DB`."""
    if noise <= 0:
        return NO_NOISE_DB
    return max(-NO_NOISE_DB, min(NO_NOISE_DB, 10 * math.log10(signal / noise))) if signal > 0 else -NO_NOISE_DB


def _top1(outputs: NDArray[np.float32]) -> NDArray[np.int64]:
    return outputs.reshape(len(outputs), -1).argmax(axis=1)
