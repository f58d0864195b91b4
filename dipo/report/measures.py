"""Measures of the error between two networks' values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dipo.quant.error_sums import ErrorSums

NO_NOISE_DB = 200.0
"""SQNR in dB that is reported where there is no noise: JSON has no infinity."""


@dataclass(frozen=True)
class Distance:
    """The error of a layer's output against the float network's."""

    cosine: float
    sqnr_db: float
    mse: float | None
    """Mean squared difference; null where it is not finite."""

    @staticmethod
    def of(sums: ErrorSums) -> Distance:
        """Compute the measures from the sums over all samples."""
        mse = sums.noise / max(1, sums.count)
        return Distance(
            cosine=cosine(sums.fp_fp, sums.q_q, sums.fp_q),
            sqnr_db=sqnr_db(sums.fp_fp, sums.noise),
            mse=mse if math.isfinite(mse) else None,
        )


@dataclass(frozen=True)
class OutputError:
    """The error of a network against a reference, over all its outputs and samples."""

    agreement: float
    """Per cent of the samples with the same top-1 of the first output."""
    cosine: float
    """Cosine of all output values as one vector."""
    sqnr_db: float
    """10 log10(sum reference^2 / sum (reference - other)^2)."""


def output_error(reference: Mapping[str, NDArray[np.float32]], other: Mapping[str, NDArray[np.float32]]) -> OutputError:
    """Compare the outputs of two networks, by name, each [samples, ...] of at least one sample."""
    first = next(iter(reference))
    sums = ErrorSums()
    for name, array in reference.items():
        a, b = array.reshape(-1).astype(np.float64), other[name].reshape(-1).astype(np.float64)
        sums += ErrorSums(float(a @ a), float(b @ b), float(a @ b), float(((a - b) ** 2).sum()), a.size)
    return OutputError(
        agreement=100.0 * float((_top1(reference[first]) == _top1(other[first])).mean()),
        cosine=cosine(sums.fp_fp, sums.q_q, sums.fp_q),
        sqnr_db=sqnr_db(sums.fp_fp, sums.noise),
    )


def accuracy(outputs: Mapping[str, NDArray[np.float32]], labels: NDArray[np.int64]) -> float:
    """Return the per cent of samples whose top-1 of the first output is their label."""
    return 100.0 * float((_top1(next(iter(outputs.values()))) == labels).mean())


def cosine(fp_fp: float, q_q: float, fp_q: float) -> float:
    """Return the cosine of two vectors from their products; 1 for two zero vectors, 0 where only one is, or for NaN."""
    if fp_fp == 0 and q_q == 0:
        return 1.0
    if not (0 < fp_fp < math.inf and 0 < q_q < math.inf and math.isfinite(fp_q)):
        return 0.0
    return max(-1.0, min(1.0, fp_q / (math.sqrt(fp_fp) * math.sqrt(q_q))))


def sqnr_db(signal: float, noise: float) -> float:
    """Return signal to quantization noise in dB, within +-`NO_NOISE_DB`; the least where one is NaN or infinite."""
    if not (math.isfinite(signal) and math.isfinite(noise)):
        return -NO_NOISE_DB
    if noise <= 0:
        return NO_NOISE_DB
    if signal <= 0:
        return -NO_NOISE_DB
    return max(-NO_NOISE_DB, min(NO_NOISE_DB, 10 * (math.log10(signal) - math.log10(noise))))


def _top1(outputs: NDArray[np.float32]) -> NDArray[np.int64]:
    top: NDArray[np.int64] = np.argmax(outputs.reshape(len(outputs), -1), axis=1)
    return top
