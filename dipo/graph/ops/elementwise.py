"""Element-wise operators, and Softmax."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor

from dipo.graph.ops.reader import Builder, NodeReader, TorchOp


def variadic(function: Callable[[Tensor, Tensor], Tensor]) -> Builder:
    """Return an operator on one or more tensors that folds a function of two over them."""

    def build(node: NodeReader) -> TorchOp:
        if len(node.node.inputs) == 2:
            return function
        return lambda *xs: reduce(function, xs)

    return build


minimum = variadic(torch.minimum)
maximum = variadic(torch.maximum)
total = variadic(torch.add)


def average(_node: NodeReader) -> TorchOp:
    """Mean: the element-wise mean of all tensors."""
    return lambda *xs: reduce(torch.add, xs) / len(xs)


def identity(x: Tensor) -> Tensor:
    """Identity: the input itself."""
    return x


def divide(a: Tensor, b: Tensor) -> Tensor:
    """Div: a / b, rounded towards zero for integers."""
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def power(node: NodeReader) -> TorchOp:
    """Pow: x ^ y in the type of x."""
    known = node.known(1)
    if known is not None and known.ndim == 0:
        exponent: int | float = known.item()
        return lambda x, _y: torch.pow(x, exponent).to(x.dtype)
    return lambda x, y: torch.pow(x, y).to(x.dtype)


def clip(node: NodeReader) -> TorchOp:
    """Clip to limits: attributes before opset 11, inputs since; the upper one wins over a lower one above it."""
    if node.opset < 11:
        low: int | float | None = node.get_float("min", float("-inf"))
        high: int | float | None = node.get_float("max", float("inf"))
    elif all(node.known(index) is not None or not node.has_input(index) for index in (1, 2)):
        low, high = (node.constant_scalar(index) for index in (1, 2))
    else:
        return _clip_between
    if low is None and high is None:
        return lambda x, _low=None, _high=None: x
    return lambda x, _low=None, _high=None: torch.clamp(x, low, high)


def _clip_between(x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    x = x if low is None else torch.maximum(x, low.reshape(()))
    return x if high is None else torch.minimum(x, high.reshape(()))


def leaky_relu(node: NodeReader) -> TorchOp:
    """LeakyRelu: alpha * x below zero."""
    alpha = node.get_float("alpha", 0.01)
    return lambda x: F.leaky_relu(x, alpha)


def prelu(x: Tensor, slope: Tensor) -> Tensor:
    """PRelu: slope * x below zero; the slope broadcasts as in numpy."""
    return torch.where(x < 0, slope * x, x)


def elu(node: NodeReader) -> TorchOp:
    """Elu: alpha * (exp(x) - 1) below zero."""
    alpha = node.get_float("alpha", 1.0)
    return lambda x: F.elu(x, alpha)


def selu(node: NodeReader) -> TorchOp:
    """Selu: gamma * (alpha * exp(x) - alpha) below zero, gamma * x from there on."""
    alpha, gamma = (
        node.get_float("alpha", 1.67326319217681884765625),
        node.get_float("gamma", 1.05070102214813232421875),
    )
    return lambda x: gamma * F.elu(x, alpha)


def celu(node: NodeReader) -> TorchOp:
    """Celu: alpha * (exp(x / alpha) - 1) below zero."""
    alpha = node.get_float("alpha", 1.0)
    return lambda x: F.celu(x, alpha)


def thresholded_relu(node: NodeReader) -> TorchOp:
    """ThresholdedRelu: x above alpha, otherwise 0."""
    alpha = node.get_float("alpha", 1.0)
    return lambda x: torch.where(x > alpha, x, torch.zeros_like(x))


def softplus(x: Tensor) -> Tensor:
    """Softplus: ln(exp(x) + 1), without torch's threshold above which it returns x."""
    return torch.logaddexp(x, torch.zeros((), dtype=x.dtype, device=x.device))


def swish(node: NodeReader) -> TorchOp:
    """Swish: x * sigmoid(alpha * x)."""
    alpha = node.get_float("alpha", 1.0)
    return F.silu if alpha == 1 else lambda x: x * torch.sigmoid(alpha * x)


def shrink(node: NodeReader) -> TorchOp:
    """Shrink: x moved by bias towards zero where it is beyond lambd, otherwise 0."""
    bias, limit = node.get_float("bias", 0.0), node.get_float("lambd", 0.5)

    def run(x: Tensor) -> Tensor:
        return torch.where(x < -limit, x + bias, torch.where(x > limit, x - bias, 0.0)).to(x.dtype)

    return run


def swiglu(node: NodeReader) -> TorchOp:
    """SwiGLU: a * sigmoid(alpha * a) * b."""
    alpha = node.get_float("alpha", 1.0)
    return lambda a, b: a * torch.sigmoid(alpha * a) * b


def hard_sigmoid(node: NodeReader) -> TorchOp:
    """HardSigmoid: clip(alpha * x + beta, 0, 1)."""
    alpha, beta = node.get_float("alpha", 0.2), node.get_float("beta", 0.5)
    return lambda x: torch.clamp(alpha * x + beta, 0.0, 1.0)


def gelu(node: NodeReader) -> TorchOp:
    """Gelu: exact, or the approximation by tanh."""
    approximate = node.choice("approximate", "none", ("none", "tanh"))
    return lambda x: F.gelu(x, approximate=approximate)


def hardmax(node: NodeReader) -> TorchOp:
    """Hardmax: 1 at the first largest number, 0 elsewhere; over the axes that a Softmax runs over."""

    def hard(x: Tensor, *, dim: int) -> Tensor:
        return torch.zeros_like(x).scatter(dim, x.argmax(dim, keepdim=True), 1)

    return _over_axis(hard)(node)


def _over_axis(function: Callable[..., Tensor]) -> Builder:
    """Return a Softmax or LogSoftmax: over one axis since opset 13, over all axes from `axis` on before."""

    def build(node: NodeReader) -> TorchOp:
        if node.opset >= 13:
            axis = node.get_int("axis", -1)
            return lambda x: function(x, dim=axis)
        start = node.get_int("axis", 1)
        return lambda x: function(x.flatten(start), dim=-1).reshape(x.shape)

    return build


softmax = _over_axis(F.softmax)
log_softmax = _over_axis(F.log_softmax)


def dropout(node: NodeReader) -> TorchOp:
    """Dropout at inference: the input, and a mask that is true everywhere."""
    node.ignore("ratio", "seed")
    training = node.constant(2)
    ratio = node.known(1) if node.has_input(1) else 0.5
    if training is not None and bool(training) and (ratio is None or float(ratio) != 0):
        raise node.refusal("training_mode is on: export the model for inference")
    if node.num_outputs > 1:
        return lambda x, *_: (x, torch.ones_like(x, dtype=torch.bool))
    return lambda x, *_: x
