"""Levels and scales of weights against a transcription of their formulas in float64."""

import dataclasses

import numpy as np
import pytest
import torch

from dipo.algo.weight_quantizer import FIXED, LayerInit, WeightQuantizer
from dipo.graph.plan import QuantizedLayer
from dipo.quant import kernels
from dipo.quant.spec import Blocks, QParams

SHAPES = {
    "conv": ((6, 4, 3, 3), 0), "transposed": ((4, 3, 2, 2), 1), "gemm": ((4, 7), 1), "whole": ((5, 4), None),
    "blocks": ((3, 7, 2, 2), 0), "rows": ((7, 3), 1),
}  # fmt: skip
BLOCKS = {"blocks": Blocks(3, 1, 7), "rows": Blocks(3, 0, 7)}
SCALES = {"conv": 6, "transposed": 3, "gemm": 7, "whole": 1, "blocks": 3 * 3 * 2 * 2, "rows": 3 * 3}
SCHEDULE = torch.tensor([0.05, 20.0, 0.0, 10.0, 1000.0, 1.0])


def layers(*, power_of_two=(), pruned=False):
    rng = np.random.default_rng(0)
    made = {}
    for name, (shape, axis) in SHAPES.items():
        weight = rng.standard_normal(shape).astype(np.float32)
        blocks = BLOCKS.get(name)
        count = () if axis is None else (shape[axis],)
        if blocks is not None:
            count = (*shape[: blocks.axis], 3, *shape[blocks.axis + 1 :])
        scale = (rng.random(count) * 0.2 + 0.2).astype(np.float32)
        zeros = rng.integers(5, 10, count).astype(np.int32)
        qparams = QParams(scale, zeros, 0, 15, axis, name in power_of_two, blocks)
        along, zero = qparams.broadcast_to(len(shape))
        target = None
        if pruned:
            target = np.where(rng.random(shape) < 0.5, 0, weight + 0.1).astype(np.float32)
        source = weight if target is None else target
        codes = np.clip(np.rint(source / along) + zero, 0, 15).astype(np.int32)
        made[name] = LayerInit(torch.tensor(weight), QuantizedLayer(codes, qparams, None, target))
    return made


def weights_of(rounding, *, train_scale=True, begun=None, **how):
    return WeightQuantizer(
        layers(**how), rounding=rounding, train_scale=train_scale, begun=begun, kernels=kernels.eager()
    )  # fmt: skip


def slopes(weights, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(leaf.numel(), generator=g) for leaf in weights.leaves.values()]


def level(rounding, w, s, v, low, high):
    """Of a weight: AdaRound, eq. 22 and 23; or rounding that gradients pass, inside the limits."""
    if rounding == "sigmoid":
        h = (torch.sigmoid(v) * 1.2 - 0.1).clamp(0, 1)
        return ((w / s).floor() + h).clamp(low, high)
    place = w / s + v
    rounded = place + (place.round() - place).detach()
    inside = (place.detach() >= low - 0.5) & (place.detach() <= high + 0.5)
    return torch.where(inside, rounded, place.detach().round().clamp(low, high))


@pytest.mark.parametrize("rounding", ["sigmoid", "straight_through"])
def test_gradients_of_rounding_and_scale_are_those_of_the_formula(rounding):
    weights = weights_of(rounding)
    g = torch.Generator().manual_seed(5)
    weights.v.copy_(torch.randn(weights.v.shape, generator=g) * (2 if rounding == "sigmoid" else 0.4))
    weights.rescale(torch.zeros_like(weights.scales))
    given = slopes(weights)
    first, scales = weights.gradients(given)
    assert all(a is b for a, b in zip(first, given, strict=True))
    # The first step of Adam without its square root is a look at the sign: the moment is the gradient itself.
    weights.step(torch.cat(given), SCHEDULE)
    found_v = weights.moments[0] / 0.1
    start = 0
    v0 = torch.randn(weights.v.shape, generator=torch.Generator().manual_seed(5)) * (
        2 if rounding == "sigmoid" else 0.4
    )
    for entry, slope, found_scale in zip(weights.layers.values(), given, scales, strict=True):
        qparams, shape = entry.layer.qparams, entry.weight.shape
        s0, zero = (torch.tensor(np.asarray(part)).double() for part in qparams.broadcast_to(len(shape)))
        v = v0[start : start + slope.numel()].view(shape).double().requires_grad_()
        t = torch.zeros_like(s0).requires_grad_()
        made = level(rounding, entry.weight.double(), s0, v, -zero, 15 - zero) * (s0 * t.exp())
        (made * slope.view(shape).double()).sum().backward()
        torch.testing.assert_close(
            found_v[start : start + slope.numel()], v.grad.view(-1).float(), atol=1e-5, rtol=1e-4
        )
        wanted = t.grad.numpy()
        if qparams.blocks is not None:  # of each weight; a scale has those of its block
            starts = range(0, qparams.blocks.length, qparams.blocks.size)
            wanted = np.add.reduceat(wanted, list(starts), axis=qparams.blocks.axis)
        np.testing.assert_allclose(found_scale.numpy(), wanted.reshape(-1), atol=1e-4, rtol=1e-4)
        start += slope.numel()


@pytest.mark.parametrize("rounding", ["sigmoid", "straight_through", FIXED])
def test_scales_move_all_weights_of_their_channel_and_no_code(rounding):
    weights = weights_of(rounding)
    before = {name: leaf.detach().clone() for name, leaf in weights.leaves.items()}
    codes = {name: layer.codes for name, layer in weights.solved().items()}
    logs = torch.linspace(-0.3, 0.3, len(weights.scales))
    weights.rescale(logs)
    start = 0
    for name, solved in weights.solved().items():
        old = weights.layers[name].layer.qparams
        own = logs[start : start + old.scale.size]
        factor = np.exp(own.numpy()).reshape(old.scale.shape)
        factor = dataclasses.replace(old, scale=factor).broadcast_to(before[name].ndim)[0]
        np.testing.assert_allclose(weights.leaves[name].detach().numpy(), before[name].numpy() * factor, rtol=1e-5)
        np.testing.assert_allclose(
            solved.qparams.scale, old.scale * np.exp(own.numpy()).reshape(old.scale.shape), rtol=1e-6
        )
        assert np.array_equal(solved.codes, codes[name])
        start += old.scale.size


def test_fixed_codes_are_the_weights_and_stay():
    weights = weights_of(FIXED)
    for name, leaf in weights.leaves.items():
        np.testing.assert_allclose(leaf.detach(), weights.layers[name].layer.weight, rtol=1e-6)
    first, scales = weights.gradients(slopes(weights))
    assert first == []
    assert [len(own) for own in scales] == list(SCALES.values())
    weights.step(torch.zeros(0), SCHEDULE)
    for name, solved in weights.solved().items():
        assert np.array_equal(solved.codes, weights.layers[name].layer.codes)


@pytest.mark.parametrize("rounding", ["sigmoid", "straight_through", FIXED])
def test_pruned_weights_stay_zero(rounding):
    weights = weights_of(rounding, pruned=True)
    for seed in range(20):
        weights.step(torch.cat(slopes(weights, seed)), SCHEDULE)
    weights.rescale(torch.full_like(weights.scales, 0.1))
    for name, solved in weights.solved().items():
        gone = weights.layers[name].layer.target == 0
        assert gone.any() and not gone.all()
        assert not weights.leaves[name].detach().numpy()[gone].any()
        assert not solved.weight[gone].any()
        assert solved.weight[~gone].any()
        assert solved.target is weights.layers[name].layer.target


def test_a_target_is_rounded_in_place_of_the_float_weight():
    weights = weights_of("sigmoid", pruned=True, train_scale=False)
    for name, leaf in weights.leaves.items():
        layer = weights.layers[name].layer
        along, zero = layer.qparams.broadcast_to(leaf.ndim)
        inside = (layer.target / along + zero > 0) & (layer.target / along + zero < 15)
        assert np.abs(leaf.detach().numpy() - layer.target)[inside].max() < 1e-3


def test_powers_of_two_are_left_alone():
    weights = weights_of("sigmoid", power_of_two=("transposed",))
    assert weights.free_scales.tolist() == [
        float(name != "transposed") for name, count in SCALES.items() for _ in range(count)
    ]
    solved = weights.solved()["transposed"]
    assert solved.qparams is weights.layers["transposed"].layer.qparams


@pytest.mark.parametrize("train_scale", [False, True])
@pytest.mark.parametrize("rounding", ["sigmoid", "straight_through"])
def test_a_later_phase_goes_on_where_the_first_ended(rounding, train_scale):
    weights = weights_of(rounding, train_scale=train_scale)
    for seed in range(5):
        weights.step(torch.cat(slopes(weights, seed)), SCHEDULE)
    if train_scale:
        weights.rescale(torch.linspace(-0.3, 0.3, len(weights.scales)))
    solved = {n: LayerInit(weights.layers[n].weight, layer) for n, layer in weights.solved().items()}
    later = WeightQuantizer(
        solved, rounding=rounding, train_scale=train_scale, begun=weights.begun(), kernels=kernels.eager()
    )  # fmt: skip
    torch.testing.assert_close(later.soft, weights.soft)
    for name, layer in later.solved().items():
        assert np.array_equal(layer.codes, solved[name].layer.codes)
