"""The element-wise arithmetic of a reconstruction step, each function one kernel.

Besides the convolutions, a naive step on a CPU makes a dozen passes over every activation. Here an activation is read
once and written once in each direction: the residual sum, the activation function, fake quantization and QDrop's mixing
are one kernel forward and one backward; rounding, its regulariser and its Adam step are one kernel for all the weights
of a unit. The functions are plain torch; `kernels.compiled` hands them to torch.compile once, with dynamic shapes, for
all units, and `kernels.eager` runs them as they are if there is no compiler.

Random bits come 64 at a time from a generator and are unpacked inside the kernels: drawing a mask element by element
would cost as much as the convolutions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

ZETA, GAMMA = 1.1, -0.1
"""Stretch of the rectified sigmoid (AdaRound, arXiv:2004.10568, eq. 23)."""
ADAM_BETA1, ADAM_BETA2, ADAM_EPS = 0.9, 0.999, 1e-8


def initial_rounding(rest: torch.Tensor) -> torch.Tensor:
    """Return V with h(V) = `rest`, the fractional part of weight / scale: training starts at the float weights."""
    rest = rest.clamp(1e-4, 1 - 1e-4)
    return -torch.log((ZETA - GAMMA) / (rest - GAMMA) - 1)


def rectified_sigmoid(v: torch.Tensor) -> torch.Tensor:
    """Return h(V) = clip(sigmoid(V) (zeta - gamma) + gamma, 0, 1) (AdaRound, eq. 23)."""
    return (torch.sigmoid(v) * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


def random_words(num_elements: int, generator: torch.Generator, prob: float = 0.5) -> torch.Tensor:
    """Return random bits, 32 to an int32 word, for `num_elements` elements.

    Args:
        num_elements: Number of bits needed.
        generator: Source of the bits.
        prob: Probability of a bit being 1, in (0, 1), rounded to a multiple of 2^-8. Each of its binary digits costs
            one draw: OR with a fair bit halves the distance to 1, AND with one the distance to 0.
    """
    count = -(-num_elements // 64)
    words = torch.zeros(count, dtype=torch.int64, device=generator.device)
    digits = min(max(round(prob * 256), 1), 255)
    trailing = (digits & -digits).bit_length() - 1
    for position in range(trailing, 8):
        fair = torch.empty_like(words).random_(torch.iinfo(torch.int64).min, None, generator=generator)
        words = fair | words if digits >> position & 1 else fair & words
    return words.view(torch.int32)


def flat(x: torch.Tensor) -> torch.Tensor:
    """Return the elements in memory order; images are channels_last."""
    return (x.permute(0, 2, 3, 1) if x.ndim == 4 else x).reshape(-1)


def unflat(elements: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Return the inverse of `flat`, for a tensor of that shape."""
    if len(shape) != 4:
        return elements.view(tuple(shape))
    n, c, h, w = shape
    return elements.view(n, h, w, c).permute(0, 3, 1, 2)


def _bits(words: torch.Tensor, num_elements: int) -> torch.Tensor:
    # The shifts are created inside the kernel: a captured tensor would prevent vectorisation.
    return ((words[:, None] >> torch.arange(32, dtype=torch.int32, device=words.device)) & 1).view(-1)[
        :num_elements
    ] == 1


def dequantize_codes(codes: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor) -> torch.Tensor:
    """Return (codes - zero_point) * scale of flat codes."""
    return (codes.to(torch.float32) - zero_point) * scale


def mix_codes(
    codes: torch.Tensor, fp: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor, words: torch.Tensor
) -> torch.Tensor:
    """Return QDrop's input (arXiv:2203.05740, eq. 10): elements quantized where their bit is 1, else float."""
    return torch.where(_bits(words, codes.numel()), dequantize_codes(codes, scale, zero_point), fp)


def mix_floats(q: torch.Tensor, fp: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
    """Return QDrop's input as `mix_codes`, if it is not quantized but has the errors of earlier units."""
    return torch.where(_bits(words, q.numel()), q, fp)


def loss_gradient(out: torch.Tensor, target: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Return factor * (out - target): the gradient of a squared error."""
    return factor * (out - target)


def shaped_gradient(
    out: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None,
    factor: torch.Tensor,
    exponent: torch.Tensor,
) -> torch.Tensor:
    """Return the gradient of factor / 2 * sum(weight |d|^p), d = out - target; `loss_gradient` is p = 2, no weight.

    Args:
        out: Output of the quantized unit.
        target: Output of the float unit.
        weight: Weight of each element, such as a Fisher diagonal; None: equal weights.
        factor: As in `loss_gradient`.
        exponent: p, at least 1.
    """
    difference = out - target
    # The power as an exponential, as in `rounding_step`.
    power = torch.exp((exponent - 1) * torch.log(difference.abs().clamp_min(1e-30)))
    gradient = factor * (0.5 * exponent) * power * difference.sign()
    return gradient if weight is None else gradient * weight


def activate(x: torch.Tensor, other: torch.Tensor | None, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """Return clip(x + other, low, high): a sum with its Relu or Clip; bounds are infinite where there is none."""
    return (x if other is None else x + other).clamp(low, high)


def quantize_forward(
    x: torch.Tensor,
    other: torch.Tensor | None,
    low: torch.Tensor,
    high: torch.Tensor,
    scale: torch.Tensor,
    qlow: torch.Tensor,
    qhigh: torch.Tensor,
    words: torch.Tensor | None,
) -> torch.Tensor:
    """Apply activation function, fake quantization and QDrop's dropping to flat tensors.

    `qlow` and `qhigh` are the codes' limits less the zero point. An element whose bit of `words` is 0 stays float.
    """
    x = activate(x, other, low, high)
    quantized = torch.clamp((x * (1 / scale)).round(), qlow, qhigh) * scale
    return quantized if words is None else torch.where(_bits(words, x.numel()), quantized, x)


def quantize_backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    other: torch.Tensor | None,
    low: torch.Tensor,
    high: torch.Tensor,
    scale: torch.Tensor,
    qlow: torch.Tensor,
    qhigh: torch.Tensor,
    words: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return gradients of `quantize_forward` for `x` (and `other`) and the scale (LSQ, arXiv:1902.08153, eq. 3)."""
    total = x if other is None else x + other
    act = total.clamp(low, high)
    v = act * (1 / scale)
    inside = (v >= qlow - 0.5) & (v <= qhigh + 0.5)
    slope = torch.where(inside, v.round() - v, torch.clamp(v, qlow, qhigh))
    passes = inside
    if words is not None:
        kept = _bits(words, x.numel())
        slope = torch.where(kept, slope, 0.0)
        passes = inside | ~kept
    passes = passes & (total > low) & (total < high)
    return torch.where(passes, grad, 0.0), (grad * slope).sum()


def soft_weight(
    v: torch.Tensor, floor: torch.Tensor, scale: torch.Tensor, low: torch.Tensor, high: torch.Tensor
) -> torch.Tensor:
    """Return clip(floor + h(V), low, high) * scale, the weight with its rounding undecided (AdaRound, eq. 22)."""
    return (floor + rectified_sigmoid(v)).clamp(low, high) * scale


def rounding_step(
    grad: torch.Tensor,
    v: torch.Tensor,
    moment1: torch.Tensor,
    moment2: torch.Tensor,
    weight: torch.Tensor,
    floor: torch.Tensor,
    scale: torch.Tensor,
    low: torch.Tensor,
    high: torch.Tensor,
    schedule: torch.Tensor,
) -> None:
    """Take one Adam step of V, in place, and update the soft weight.

    The loss includes strength * sum(1 - |2 h(V) - 1|^beta), which draws every h to 0 or 1 (AdaRound, eq. 24); only its
    gradient is computed.

    Args:
        grad: Gradient of the loss with respect to the soft weights.
        v: V; updated.
        moment1: Adam's first moment; updated.
        moment2: Adam's second moment; updated.
        weight: The soft weights; updated.
        floor: floor(weight / scale).
        scale: Scale of each weight.
        low: Smallest code less the zero point.
        high: Largest code less the zero point.
        schedule: Six numbers: learning rate, beta, strength, Adam's two bias corrections, `adam_step`'s factor.
    """
    lr, beta, strength, correction1, correction2, _ = schedule.unbind()
    sigmoid = torch.sigmoid(v)
    raw = sigmoid * (ZETA - GAMMA) + GAMMA
    h = raw.clamp(0, 1)
    dh = torch.where((raw > 0) & (raw < 1), (ZETA - GAMMA) * sigmoid * (1 - sigmoid), 0.0)
    inside = (floor + h >= low) & (floor + h <= high)
    u = 2 * h - 1
    # |u|^(beta - 1) as an exponential: a kernel's pow costs several times as much.
    pull = -strength * beta * 2 * u.sign() * torch.exp((beta - 1) * torch.log(u.abs().clamp_min(1e-12)))
    total = (torch.where(inside, grad * scale, 0.0) + pull) * dh
    m1 = moment1 * ADAM_BETA1 + total * (1 - ADAM_BETA1)
    m2 = moment2 * ADAM_BETA2 + total * total * (1 - ADAM_BETA2)
    new = v - lr * (m1 * correction1) / ((m2 * correction2).sqrt() + ADAM_EPS)
    moment1.copy_(m1)
    moment2.copy_(m2)
    v.copy_(new)
    weight.copy_(soft_weight(new, floor, scale, low, high))


def straight_weight(
    v: torch.Tensor, ratio: torch.Tensor, scale: torch.Tensor, low: torch.Tensor, high: torch.Tensor
) -> torch.Tensor:
    """Return clip(round(ratio + V), low, high) * scale: the weight with its codes moved by an offset V."""
    return (ratio + v).round().clamp(low, high) * scale


def straight_through_step(
    grad: torch.Tensor,
    v: torch.Tensor,
    moment1: torch.Tensor,
    moment2: torch.Tensor,
    weight: torch.Tensor,
    ratio: torch.Tensor,
    scale: torch.Tensor,
    low: torch.Tensor,
    high: torch.Tensor,
    schedule: torch.Tensor,
) -> None:
    """Take one Adam step of V, in place, and update the weight: `rounding_step` for any code.

    The gradient passes straight through the rounding, and is 0 more than half a step beyond the limits. There is no
    regulariser: the weights are on the grid at every step. Arguments are those of `rounding_step`, with the float
    weight / scale as `ratio` in place of its floor.
    """
    lr, _, _, correction1, correction2, _ = schedule.unbind()
    place = ratio + v
    total = torch.where((place >= low - 0.5) & (place <= high + 0.5), grad * scale, 0.0)
    m1 = moment1 * ADAM_BETA1 + total * (1 - ADAM_BETA1)
    m2 = moment2 * ADAM_BETA2 + total * total * (1 - ADAM_BETA2)
    new = v - lr * (m1 * correction1) / ((m2 * correction2).sqrt() + ADAM_EPS)
    moment1.copy_(m1)
    moment2.copy_(m2)
    v.copy_(new)
    weight.copy_(straight_weight(new, ratio, scale, low, high))


def adam_step(
    grad: torch.Tensor,
    parameter: torch.Tensor,
    moment1: torch.Tensor,
    moment2: torch.Tensor,
    lr: torch.Tensor,
    schedule: torch.Tensor,
) -> None:
    """Take one Adam step of `parameter`, in place; the schedule's last number scales each element's learning rate."""
    _, _, _, correction1, correction2, factor = schedule.unbind()
    m1 = moment1 * ADAM_BETA1 + grad * (1 - ADAM_BETA1)
    m2 = moment2 * ADAM_BETA2 + grad * grad * (1 - ADAM_BETA2)
    moment1.copy_(m1)
    moment2.copy_(m2)
    parameter.sub_(factor * lr * (m1 * correction1) / ((m2 * correction2).sqrt() + ADAM_EPS))
