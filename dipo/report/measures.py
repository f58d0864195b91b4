"""Measures of the error between two networks' values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dipo.quant.error_sums import ErrorSums

NO_NOISE_DB = 200.0
"""SQNR in dB that is reported where there is no noise: JSON has no infinity."""

UNHEARD = 1e-6
"""Difference of two implementations' outputs that is none: a detector that sees nothing gives 1e-13 or zero."""


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

    agreement: float | None
    """Per cent of the positions with the same top-1 in the first output that has classes, else of the equal elements in
    the first output of integers or booleans; null where there is neither."""
    cosine: float
    """Cosine of all values of outputs that hold floats as one vector; of all outputs where none does."""
    sqnr_db: float
    """10 log10(sum reference^2 / sum (reference - other)^2), of the same."""


@dataclass(frozen=True)
class OutputFigures:
    """The error of one output of a network against a reference, over all samples."""

    agreement: float | None
    """Per cent of the positions with the same top-1; null where the output has no classes."""
    cosine: float | None
    """Null, as the two that follow, for integers and booleans."""
    sqnr_db: float | None
    max_error: float | None
    """Largest difference; null where it is not finite."""
    equal: float | None
    """Per cent of the elements that are equal; null for floats."""


Outputs = Mapping[str, NDArray[Any]]
"""Outputs [samples, ...] of a network, by name."""


def output_error(
    reference: Outputs, other: Outputs, *, class_axes: Mapping[str, int | None] | None = None
) -> OutputError:
    """Compare the outputs of two networks, of at least one sample.

    Args:
        reference: Outputs of the network that counts as right.
        other: Outputs of the other one.
        class_axes: Axis of the classes of each output, None where it has none (`graph.class_axes`); None: outputs
            [samples, classes] have classes, others have none.
    """
    compared = {name: each for name, each in reference.items() if is_float(each)} or reference
    sums = ErrorSums()
    for name, array in compared.items():
        sums += _sums(*_pair(array, other[name]))
    axes = {name: class_axis(array, name, class_axes) for name, array in reference.items()}
    agreements = [top1_agreement(reference[name], other[name], axis) for name, axis in axes.items() if axis is not None]
    agreements += [_equal(array, other[name]) for name, array in reference.items() if not is_float(array)]
    return OutputError(
        agreement=next(iter(agreements), None),
        cosine=cosine(sums.fp_fp, sums.q_q, sums.fp_q),
        sqnr_db=sqnr_db(sums.fp_fp, sums.noise),
    )


def output_figures(reference: NDArray[Any], other: NDArray[Any], *, axis: int | None) -> OutputFigures:
    """Compare one output [samples, ...] of two networks.

    Args:
        reference: The output that counts as right.
        other: That of the other network.
        axis: Axis of its classes; None where it has none.
    """
    if not is_float(reference):
        return OutputFigures(None, None, None, None, _equal(reference, other))
    a, b = _pair(reference, other)
    sums, largest = _sums(a, b), float(np.abs(a - b).max(initial=0.0))
    return OutputFigures(
        agreement=None if axis is None else top1_agreement(reference, other, axis),
        cosine=cosine(sums.fp_fp, sums.q_q, sums.fp_q),
        sqnr_db=sqnr_db(sums.fp_fp, sums.noise),
        max_error=largest if math.isfinite(largest) else None,
        equal=None,
    )


def worst_error(reference: Outputs, other: Outputs) -> OutputError:
    """Compare the outputs of two networks, and return the error of the one with the least SQNR.

    Args:
        reference: Outputs of the network that counts as right.
        other: Outputs of the other one.
    """
    heard = [name for name, array in reference.items() if least_sqnr_db({name: array}, other) < NO_NOISE_DB]
    apart = [output_error({name: reference[name]}, other) for name in heard]
    return min(apart, key=lambda error: error.sqnr_db, default=output_error(reference, other))


def least_sqnr_db(reference: Outputs, other: Outputs) -> float:
    """Return the SQNR in dB of the worst output of floats, so that none hides behind another.

    Differences up to `UNHEARD` are none.

    Args:
        reference: Outputs of the network that counts as right.
        other: Outputs of the other one.
    """
    found = NO_NOISE_DB
    for name, array in reference.items():
        a, b = _pair(array, other[name])
        if is_float(array) and not np.abs(a - b).max(initial=0.0) <= UNHEARD:
            sums = _sums(a, b)
            found = min(found, sqnr_db(sums.fp_fp, sums.noise))
    return found


def is_float(array: NDArray[Any]) -> bool:
    """Return whether the array holds floats, of any width."""
    return np.issubdtype(array.dtype, np.floating)


def class_axis(array: NDArray[Any], name: str, axes: Mapping[str, int | None] | None) -> int | None:
    """Return the axis of an output's classes; None where it has none, or only one class."""
    axis = (1 if array.ndim == 2 else None) if axes is None else axes.get(name)
    usable = axis is not None and axis < array.ndim and array.shape[axis] > 1 and is_float(array)
    return axis if usable else None


def top1_agreement(reference: NDArray[Any], other: NDArray[Any], axis: int) -> float:
    """Return the per cent of positions at which both have their largest number at the same place along the axis."""
    same = np.argmax(reference, axis=axis) == np.argmax(other.reshape(reference.shape), axis=axis)
    return 100.0 * float(same.mean())


def has_top1(outputs: Outputs) -> bool:
    """Return whether the first output has numbers along one axis for each sample, as classes have; an image has not."""
    first = next(iter(outputs.values()))
    return first[:1].size == max(first.shape[1:], default=1)


def accuracy(outputs: Outputs, labels: NDArray[np.int64]) -> float:
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


def _pair(reference: NDArray[Any], other: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return both as flat float64, without infinite elements of the reference, such as a mask's, of that sign."""
    a, b = reference.reshape(-1).astype(np.float64), other.reshape(-1).astype(np.float64)
    masked = np.isinf(a) & (b != -a)
    return (a[~masked], b[~masked]) if masked.any() else (a, b)


def _sums(a: NDArray[np.float64], b: NDArray[np.float64]) -> ErrorSums:
    return ErrorSums(float(a @ a), float(b @ b), float(a @ b), float(((a - b) ** 2).sum()), a.size)


def _equal(reference: NDArray[Any], other: NDArray[Any]) -> float:
    """Return the per cent of equal elements."""
    return 100.0 * float((reference == other.reshape(reference.shape)).mean())


def _top1(outputs: NDArray[Any]) -> NDArray[np.int64]:
    """Return the class of each sample: a number that is one already, else the largest of all."""
    rows = outputs.reshape(len(outputs), -1)
    if rows.shape[1] == 1 and not is_float(outputs):
        return rows[:, 0].astype(np.int64)
    top: NDArray[np.int64] = np.argmax(rows, axis=1)
    return top
