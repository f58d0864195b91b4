"""The loss of a unit's outputs.

The error is sum |out - target|^p over a sample's channels, meaned over samples and positions (BRECQ, arXiv:2102.05426,
eq. 10), each element weighted by its Fisher information where that was asked for.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dipo.quant.kernels import Kernels


@dataclass(frozen=True, eq=False)
class ErrorLoss:
    """The loss factor / 2 * sum(weight |out - target|^exponent), with its gradient."""

    factor: torch.Tensor
    exponent: float
    power: torch.Tensor
    """The exponent as a tensor on the factor's device."""
    plain: bool
    """Whether it is a squared error without weights."""
    kernels: Kernels
    infinite: bool = False
    """Whether targets may be infinite; their elements are left out."""

    @staticmethod
    def of(
        factor: torch.Tensor, exponent: float, *, weighted: bool, kernels: Kernels, infinite: bool = False
    ) -> ErrorLoss:
        """Make the loss with all tensors on the factor's device, so that no step copies from the host."""
        power = torch.tensor(exponent, device=factor.device)
        return ErrorLoss(factor, exponent, power, exponent == 2 and not weighted, kernels, infinite)

    def gradient(self, out: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:
        """Return the gradient for flat outputs; `weight` has each element's, None stands for equal ones."""
        if self.infinite:
            out = torch.where(torch.isinf(target), 0.0, out)
            target = torch.where(torch.isinf(target), 0.0, target)
        if self.plain:
            gradient: torch.Tensor = self.kernels.loss_gradient(out, target, self.factor)
        else:
            gradient = self.kernels.shaped_gradient(out, target, weight, self.factor, self.power)
        return gradient

    def value(self, out: torch.Tensor, target: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        """Return the loss itself, computed from its gradient."""
        if self.plain:
            return gradient.square().sum() / (2 * self.factor)
        # The gradient of |d|^p is p |d|^p / d.
        difference = torch.where(torch.isinf(target), 0.0, out - target) if self.infinite else out - target
        return (gradient * difference).sum() / self.exponent
