"""The kernels' closed-form gradients and Adam against autograd and torch.optim in float64."""

import pytest
import torch

from dipo.quant import kernels, rounding


def test_rounding_starts_at_the_float_weights():
    rest = torch.rand(1000)
    assert torch.allclose(
        rounding.rectified_sigmoid(rounding.initial_rounding(rest)), rest.clamp(1e-4, 1 - 1e-4), atol=1e-5
    )


def regularizer(v, beta):
    """AdaRound, eq. 24."""
    return (1 - (2 * rounding.rectified_sigmoid(v) - 1).abs().pow(beta)).sum()


def test_rounding_step_is_adam_on_the_loss_and_the_regularizer():
    g = torch.Generator().manual_seed(0)
    v = torch.randn(500, generator=g, dtype=torch.float64) * 2
    floor = torch.randint(-9, 8, (500,), generator=g).double()
    scale, low, high = (
        torch.rand(500, generator=g, dtype=torch.float64) + 0.1,
        torch.full((500,), -8.0),
        torch.full((500,), 7.0),
    )
    low, high = low.double(), high.double()
    slope = torch.randn(500, generator=g, dtype=torch.float64)
    reference = v.clone().requires_grad_()
    adam = torch.optim.Adam([reference], lr=0.01, eps=rounding.ADAM_EPS)
    moments = torch.zeros_like(v), torch.zeros_like(v)
    weight = rounding.soft_weight(v, floor, scale, low, high)
    for step, (beta, strength) in enumerate([(20.0, 0.0), (11.0, 0.05), (2.0, 0.05)], start=1):
        adam.zero_grad()
        soft = rounding.soft_weight(reference, floor, scale, low, high)
        ((soft * slope).sum() + strength * regularizer(reference, beta)).backward()
        adam.step()
        schedule = torch.tensor(
            [0.01, beta, strength, 1 / (1 - 0.9**step), 1 / (1 - 0.999**step), 1.0], dtype=torch.float64
        )
        rounding.rounding_step(slope, v, *moments, weight, floor, scale, low, high, schedule)
        torch.testing.assert_close(v, reference.detach(), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(weight, rounding.soft_weight(v, floor, scale, low, high))


def test_straight_through_step_is_adam_behind_a_rounding_that_gradients_pass():
    g = torch.Generator().manual_seed(0)
    ratio = torch.randn(500, generator=g, dtype=torch.float64) * 6
    scale = torch.rand(500, generator=g, dtype=torch.float64) + 0.1
    low, high = torch.full((500,), -8.0, dtype=torch.float64), torch.full((500,), 7.0, dtype=torch.float64)
    slope = torch.randn(500, generator=g, dtype=torch.float64)
    v = torch.zeros(500, dtype=torch.float64)
    reference = v.clone().requires_grad_()
    adam = torch.optim.Adam([reference], lr=0.3, eps=rounding.ADAM_EPS)
    moments, weight = (torch.zeros_like(v), torch.zeros_like(v)), torch.empty_like(v)
    for step in range(1, 5):
        adam.zero_grad()
        place = ratio + reference
        rounded = place + (place.round() - place).detach()
        # What rounds to a code inside the limits lies up to half a code beyond them.
        passes = (place.detach() >= -8.5) & (place.detach() <= 7.5)
        soft = torch.where(passes, rounded, place.detach().round().clamp(-8, 7)) * scale
        (soft * slope).sum().backward()
        adam.step()
        schedule = torch.tensor([0.3, 9.0, 9.0, 1 / (1 - 0.9**step), 1 / (1 - 0.999**step), 9.0], dtype=torch.float64)
        rounding.straight_through_step(slope, v, *moments, weight, ratio, scale, low, high, schedule)
        torch.testing.assert_close(v, reference.detach(), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(weight, (ratio + v).round().clamp(-8, 7) * scale)
    assert float(v.abs().max()) > 1, "codes further away than the neighbours can be reached"
    assert bool((v == 0).any()), "what lies beyond the limits rests"


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("exponent", [1.0, 1.5, 2.0, 2.4, 4.0])
def test_shaped_gradient_is_that_of_the_weighted_power_of_the_error(exponent, weighted):
    g = torch.Generator().manual_seed(0)
    out, target = (torch.randn(300, generator=g, dtype=torch.float64) for _ in range(2))
    out[:5] = target[:5]
    weight = torch.rand(300, generator=g, dtype=torch.float64) if weighted else None
    factor = torch.tensor(0.125, dtype=torch.float64)
    leaf = out.clone().requires_grad_()
    counts = 1.0 if weight is None else weight
    (factor / 2 * (counts * (leaf - target).abs() ** exponent).sum()).backward()
    found = rounding.shaped_gradient(out, target, weight, factor, torch.tensor(exponent, dtype=torch.float64))
    torch.testing.assert_close(found, leaf.grad, rtol=1e-9, atol=1e-12)
    if exponent == 2 and weight is None:
        torch.testing.assert_close(found, rounding.loss_gradient(out, target, factor))


def test_adam_step_is_adam():
    parameter = torch.randn(50, dtype=torch.float64)
    reference = parameter.clone().requires_grad_()
    adam = torch.optim.Adam([reference], lr=0.02, eps=rounding.ADAM_EPS)
    moments = torch.zeros_like(parameter), torch.zeros_like(parameter)
    for step in range(1, 4):
        gradient = torch.randn(50, dtype=torch.float64)
        reference.grad = gradient.clone()
        adam.step()
        schedule = torch.tensor([9.0, 9.0, 9.0, 1 / (1 - 0.9**step), 1 / (1 - 0.999**step), 0.5], dtype=torch.float64)
        rounding.adam_step(gradient, parameter, *moments, torch.full_like(parameter, 0.04), schedule)
    torch.testing.assert_close(parameter, reference.detach(), rtol=1e-9, atol=1e-9)


def arguments(words, other, low=0.0, high=float("inf")):
    g = torch.Generator().manual_seed(1)
    x = torch.randn(4096, generator=g) * 3
    rest = torch.randn(4096, generator=g) if other else None
    mask = rounding.random_words(4096, g) if words else None
    return (x, rest, *(torch.tensor(v) for v in (low, high, 0.2, -4.0, 11.0)), mask)


@pytest.mark.parametrize("words", [False, True])
@pytest.mark.parametrize("other", [False, True])
@pytest.mark.parametrize("bounds", [(0.0, float("inf")), (0.0, 1.5), (-float("inf"), float("inf"))])
def test_quantize_backward_is_the_gradient_of_the_straight_through_form(words, other, bounds):
    x, rest, low, high, scale, qlow, qhigh, mask = args = arguments(words, other, *bounds)
    leaf, step = x.clone().requires_grad_(), scale.clone().requires_grad_()
    act = (leaf if rest is None else leaf + rest).clamp(low, high)
    v = act / step
    quantized = (v + (v.round() - v).detach()).clamp(qlow, qhigh) * step
    kept = (
        torch.ones(4096, dtype=torch.bool) if mask is None else ((mask[:, None] >> torch.arange(32)) & 1).view(-1) == 1
    )
    expected = torch.where(kept, quantized, act)
    torch.testing.assert_close(rounding.quantize_forward(*args), expected.detach())
    grad = torch.randn(4096)
    expected.backward(grad)
    grad_x, grad_scale = rounding.quantize_backward(grad, *args)
    # Between a limit and half a step beyond it rounding stays inside, and so does the kernels' gradient.
    edge = (v - v.clamp(qlow, qhigh)).abs()
    clear = ((edge == 0) | (edge > 0.5)).detach()
    torch.testing.assert_close(grad_x[clear], leaf.grad[clear])
    torch.testing.assert_close(grad_scale, step.grad, rtol=0.05, atol=5.0)


def test_random_bits_are_fair_and_independent():
    words = rounding.random_words(1 << 20, torch.Generator().manual_seed(0))
    bits = rounding._bits(words, 1 << 20).view(-1, 64).float()
    assert abs(float(bits.mean()) - 0.5) < 0.002
    assert float((bits.mean(0) - 0.5).abs().max()) < 0.02, "each of the 64 positions is fair"
    assert abs(float((bits[:, 1:] == bits[:, :-1]).float().mean()) - 0.5) < 0.002


@pytest.mark.parametrize("prob", [0.25, 0.75, 0.3])
def test_random_bits_have_the_probability_that_was_asked_for(prob):
    words = rounding.random_words(1 << 20, torch.Generator().manual_seed(0), prob)
    bits = rounding._bits(words, 1 << 20).view(-1, 64).float()
    assert abs(float(bits.mean()) - round(prob * 256) / 256) < 0.002
    assert float((bits.mean(0) - prob).abs().max()) < 0.02


def test_mixing_takes_half_of_each():
    g = torch.Generator().manual_seed(0)
    codes, fp = torch.full((6400,), 7, dtype=torch.uint8), torch.zeros(6400)
    mixed = rounding.mix_codes(codes, fp, torch.tensor(0.5), torch.tensor(3.0), rounding.random_words(6400, g))
    assert set(mixed.tolist()) == {0.0, 2.0}
    assert abs(float((mixed == 2).float().mean()) - 0.5) < 0.03


def test_flat_is_the_order_of_channels_last_memory():
    x = torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    assert rounding.flat(x).data_ptr() == x.data_ptr()
    assert torch.equal(rounding.unflat(rounding.flat(x), x.shape), x)


@pytest.mark.slow
def test_compiled_kernels_compute_what_the_eager_ones_do():
    compiled = kernels.compiled("cpu", 1)
    assert compiled.compiled
    for words in (False, True):
        args = arguments(words, other=True)
        torch.testing.assert_close(compiled.quantize_forward(*args), rounding.quantize_forward(*args))
        grad = torch.randn(4096)
        found, expected = compiled.quantize_backward(grad, *args), rounding.quantize_backward(grad, *args)
        torch.testing.assert_close(found[0], expected[0])
        torch.testing.assert_close(found[1], expected[1], rtol=1e-4, atol=1e-3)
    out, target, weight = torch.randn(4096), torch.randn(4096), torch.rand(4096)
    for counts in (None, weight):
        args = out, target, counts, torch.tensor(0.1), torch.tensor(2.4)
        torch.testing.assert_close(compiled.shaped_gradient(*args), rounding.shaped_gradient(*args))
    schedule = torch.tensor([0.1, 9.0, 9.0, 10.0, 1000.0, 1.0])
    ends = []
    for own in (compiled, rounding):
        v, *rest = (torch.zeros(4096) for _ in range(4))
        limits = torch.full((4096,), 0.1), torch.full((4096,), -8.0), torch.full((4096,), 7.0)
        own.straight_through_step(out, v, *rest, target * 4, *limits, schedule)
        ends.append((v, rest[2]))
    torch.testing.assert_close(ends[0], ends[1])
