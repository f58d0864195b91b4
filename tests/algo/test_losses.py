"""Losses against autograd."""

import pytest
import torch

from dipo.algo.losses import ErrorLoss
from dipo.quant import kernels


@pytest.mark.parametrize(("exponent", "weighted"), [(2.0, False), (2.0, True), (2.4, False), (1.0, True)])
def test_the_value_and_the_gradient_of_an_error_belong_together(exponent, weighted):
    out, target = torch.randn(60, dtype=torch.float64), torch.randn(60, dtype=torch.float64)
    weight = torch.rand(60, dtype=torch.float64) if weighted else None
    factor = torch.tensor(0.25, dtype=torch.float64)
    loss = ErrorLoss.of(factor, exponent, weighted=weighted, kernels=kernels.eager())
    leaf = out.clone().requires_grad_()
    expected = (factor / 2) * ((1.0 if weight is None else weight) * (leaf - target).abs() ** exponent).sum()
    expected.backward()
    gradient = loss.gradient(out, target, weight)
    torch.testing.assert_close(gradient, leaf.grad, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(loss.value(out, target, gradient), expected.detach(), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("exponent", [2.0, 2.4])
def test_infinite_targets_have_no_loss_and_no_gradient(exponent):
    eager = kernels.eager()
    loss = ErrorLoss.of(torch.tensor(0.5), exponent, weighted=False, kernels=eager, infinite=True)
    plain = ErrorLoss.of(torch.tensor(0.5), exponent, weighted=False, kernels=eager)
    out, target = torch.tensor([1.0, -torch.inf, 3.0, 2.0]), torch.tensor([0.5, -torch.inf, -torch.inf, 2.5])
    gradient = loss.gradient(out, target, None)
    told = [0, 3]
    expected = plain.gradient(out[told], target[told], None)
    assert torch.equal(gradient[told], expected) and not gradient[1:3].any()
    assert loss.value(out, target, gradient) == plain.value(out[told], target[told], expected)
