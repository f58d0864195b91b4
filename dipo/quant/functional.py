"""Quantize and dequantize, exactly as ONNX's QuantizeLinear and DequantizeLinear define them, without gradients."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dipo.quant.spec import QParams


@dataclass(frozen=True, eq=False)
class TorchQParams:
    """`QParams` on a device, shaped to broadcast against their tensor."""

    scale: torch.Tensor
    """Scale, float32."""
    zero_point: torch.Tensor
    """Zero point, an integer held as float32 so that arithmetic needs no conversion."""
    qmin: int
    qmax: int

    @staticmethod
    def of(qparams: QParams, *, num_dims: int, device: torch.device) -> TorchQParams:
        """Move `qparams` to a device, for a tensor of `num_dims` dimensions."""
        scale, zero_point = qparams.broadcast_to(num_dims)
        return TorchQParams(
            scale=torch.tensor(scale, dtype=torch.float32, device=device),
            zero_point=torch.tensor(zero_point, device=device).to(torch.float32),
            qmin=qparams.qmin,
            qmax=qparams.qmax,
        )

    @property
    def code_dtype(self) -> torch.dtype:
        """The narrowest type that holds the codes."""
        if self.qmin >= 0 and self.qmax <= 255:
            return torch.uint8
        return torch.int8 if self.qmin >= -128 and self.qmax <= 127 else torch.int32


def quantize(x: torch.Tensor, qparams: TorchQParams) -> torch.Tensor:
    """Return `clip(round_half_even(x / scale) + zero_point, qmin, qmax)` in the narrowest type, shaped like `x`."""
    return _codes(x, qparams).to(qparams.code_dtype)


def dequantize(codes: torch.Tensor, qparams: TorchQParams) -> torch.Tensor:
    """Return the float32 numbers `(code - zero_point) * scale`."""
    return codes.to(torch.float32).sub_(qparams.zero_point).mul_(qparams.scale)


def fake_quantize(x: torch.Tensor, qparams: TorchQParams) -> torch.Tensor:
    """Return `dequantize(quantize(x))`: a new tensor with the shape and memory layout of `x`."""
    return _codes(x, qparams).sub_(qparams.zero_point).mul_(qparams.scale)


def _codes(x: torch.Tensor, qparams: TorchQParams) -> torch.Tensor:
    # A division, not a product with the reciprocal: the two differ in the last bit, and then in a code.
    return x.div(qparams.scale).round_().add_(qparams.zero_point).clamp_(qparams.qmin, qparams.qmax)
