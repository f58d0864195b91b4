"""Spectra, windows and the mel scale."""

from __future__ import annotations

import math
from collections.abc import Sequence

import onnx_ir as ir
import torch
from torch import Tensor

from dipo.graph.ops.reader import Builder, NodeReader, Numbers, TorchOp
from dipo.graph.ops.types import dtype_of


def dft(node: NodeReader) -> TorchOp:
    """DFT of x [..., 1 or 2], real or complex, along an axis; to [..., 2], or to real numbers [..., 1]."""
    inverse, onesided = bool(node.get_int("inverse", 0)), bool(node.get_int("onesided", 0))
    length = node.ints(1)
    if inverse and onesided and not length.absent:
        raise node.refusal("runtimes differ on the length of an inverse of one side")
    axes = Numbers((node.get_int("axis", 1),)) if node.opset < 20 else node.ints(2)

    def run(x: Tensor, *behind: Tensor | None) -> Tensor:
        (axis,) = axes.among(behind) or (-2,)
        axis %= x.dim()
        (size,) = length.among(behind) or (None,)
        signal = torch.view_as_complex(x.contiguous()) if x.shape[-1] == 2 else x[..., 0]
        if inverse and onesided:
            made: Tensor = torch.fft.irfft(signal, size, axis)
            return made.unsqueeze(-1)
        if inverse:
            return torch.view_as_real(torch.fft.ifft(signal, size, axis).resolve_conj())
        spectrum = torch.fft.fft(signal, size, axis)
        if onesided:
            spectrum = spectrum.narrow(axis, 0, spectrum.shape[axis] // 2 + 1)
        return torch.view_as_real(spectrum)

    return run


def stft(node: NodeReader) -> TorchOp:
    """STFT of x [batch, length, 1 or 2] to [batch, frames, frequencies, 2]."""
    onesided = bool(node.get_int("onesided", 1))
    steps, lengths = node.require(node.ints(1), "frame_step"), node.ints(3)

    def run(x: Tensor, *behind: Tensor | None) -> Tensor:
        (step,) = steps.among(behind) or (1,)
        window = behind[1] if len(behind) > 1 else None
        (length,) = lengths.among(behind) or (x.shape[1] if window is None else len(window),)
        signal = torch.view_as_complex(x.contiguous()) if x.shape[-1] == 2 else x.reshape(x.shape[:2])
        frames = signal.unfold(1, length, step)
        spectrum = torch.fft.fft(frames if window is None else frames * window)
        return torch.view_as_real(spectrum[..., : length // 2 + 1] if onesided else spectrum)

    return run


def _window(*terms: float) -> Builder:
    """Return a window: the sum of terms[i] * (-1)^i * cos(2 pi i n / N), N its size, or that less 1 if symmetric."""

    def build(node: NodeReader) -> TorchOp:
        dtype = dtype_of(node, ir.DataType(node.get_int("output_datatype", 1)))
        shorter = 0 if node.get_int("periodic", 1) else 1
        sizes = node.ints(0).known

        def run(size: Tensor) -> Tensor:
            (num,) = sizes or (int(size),)
            angle = torch.arange(num, dtype=torch.float64, device=size.device) * (2 * math.pi / (num - shorter))
            waves = ((-1) ** i * term * torch.cos(i * angle) for i, term in enumerate(terms))
            return torch.stack(list(waves)).sum(0).to(dtype)

        return run

    return build


hann_window = _window(0.5, 0.5)
hamming_window = _window(25 / 46, 21 / 46)
blackman_window = _window(0.42, 0.5, 0.08)


def mel_weight_matrix(node: NodeReader) -> TorchOp:
    """MelWeightMatrix: triangles of equal width on the mel scale, [frequencies, bands]."""
    dtype = dtype_of(node, ir.DataType(node.get_int("output_datatype", 1)))

    def run(*inputs: Tensor) -> Tensor:
        num_bands, length, rate, low, high = (tensor.item() for tensor in inputs)
        first, last = (2595 * math.log10(1 + hertz / 700) for hertz in (low, high))
        step = (last - first) / (num_bands + 2)
        hertz = [700 * (10 ** ((first + i * step) / 2595) - 1) for i in range(int(num_bands) + 2)]
        bins = [int((length + 1) * each // rate) for each in hertz]
        columns = [_triangle(bins[i : i + 3], int(length) // 2 + 1) for i in range(int(num_bands))]
        return torch.tensor(columns, dtype=torch.float64, device=inputs[0].device).t().to(dtype)

    return run


def _triangle(bins: Sequence[int], num: int) -> list[float]:
    """Return numbers that rise from 0 at the first bin to 1 at the second and fall to 0 at the third."""
    first, middle, last = bins
    row = [0.0] * num
    if middle == first:
        row[middle] = 1.0
    for j in range(first, middle + 1) if middle > first else ():
        row[j] = (j - first) / (middle - first)
    for j in range(middle, last):
        row[j] = (last - j) / (last - middle)
    return row
