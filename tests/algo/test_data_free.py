import dataclasses
import itertools

import numpy as np
import torch

from dipo.algo.data_free import analytic_bias_correction, channel_reaches, data_free_ranges
from dipo.algo.moments import input_moments, moments_of
from dipo.graph.accessors import name_of
from dipo.graph.layers import layers_of
from dipo.graph.torch_module import GraphModule
from dipo.quant.gaussian import Moments


def means(case, quantized, *, layer):
    """Channel means of a layer's output with its own weights quantized, in a network that is float up to there."""
    view = next(each for each in layers_of(case.model) if each.name == layer)
    part = quantized.layers[layer]
    constants = {
        name_of(view.weight): torch.from_numpy(part.weight),
        name_of(view.bias): torch.from_numpy(part.bias),
    }
    output = name_of(view.output)
    with torch.inference_mode():
        module = GraphModule(case.model, outputs=[output])
        fp, q = (module({"input": case.samples}, constants=each)[output] for each in (None, constants))
    axes = tuple(axis for axis in range(fp.ndim) if axis != 1)
    inner = (..., slice(1, -1), slice(1, -1)) if fp.ndim == 4 else ...  # borders see fewer inputs
    return fp[inner].mean(axes).numpy(), q[inner].mean(axes).numpy()


def test_a_layers_channel_means_come_back(make_case):
    case = make_case(weight_bits=3, num=256)
    for layer in ("left", "right", "head"):
        source = name_of(next(each for each in layers_of(case.model) if each.name == layer).input)
        with torch.inference_mode():
            value = GraphModule(case.model, outputs=[source])({"input": case.samples})[source]
        axes = tuple(axis for axis in range(value.ndim) if axis != 1)
        exact = Moments.of(value.mean(axes).numpy(), value.std(axes).numpy(), num_dims_behind=value.ndim - 2)
        moments = {**moments_of(case.model), source: exact}
        fixed = analytic_bias_correction(case.model, plan=case.plan, quantized=case.quantized, moments=moments)
        fp, before = means(case, case.quantized, layer=layer)
        _, after = means(case, fixed, layer=layer)
        assert np.abs(after - fp).max() < 0.25 * np.abs(before - fp).max()


def test_moments_without_samples_already_help(make_case):
    case = make_case(weight_bits=3, num=256)
    moments = moments_of(case.model, input_moments(case.model, mean=0.0, std=1.0))
    fixed = analytic_bias_correction(case.model, plan=case.plan, quantized=case.quantized, moments=moments)
    for layer in ("left", "head"):
        fp, before = means(case, case.quantized, layer=layer)
        _, after = means(case, fixed, layer=layer)
        assert np.abs(after - fp).mean() < 0.6 * np.abs(before - fp).mean()


def test_only_biases_change(make_case):
    case = make_case(weight_bits=3)
    kept = case.quantized.layers["left"]
    pruned = dataclasses.replace(kept, target=np.zeros_like(kept.weight))
    quantized = dataclasses.replace(case.quantized, layers={**case.quantized.layers, "left": pruned})
    fixed = analytic_bias_correction(case.model, plan=case.plan, quantized=quantized, moments=moments_of(case.model))
    assert fixed.activations is case.quantized.activations
    assert fixed.layers["left"].codes is kept.codes
    assert fixed.layers["left"].target is pruned.target
    assert not np.array_equal(fixed.layers["left"].bias, kept.bias)
    assert case.quantized.layers["left"] is kept


def test_ranges_hold_almost_all_that_samples_give(make_case):
    case = make_case(num=64)
    moments = moments_of(case.model)
    ranges = data_free_ranges(case.plan, moments, sigmas=6)
    assert ranges.keys() == case.plan.activations.keys()
    with torch.inference_mode():
        made = GraphModule(case.model, outputs=[name for name in ranges if name != "input"])({"input": case.samples})
    for name, value in made.items():
        assert ranges[name].min <= 0 <= ranges[name].max
        inside = (value >= ranges[name].min) & (value <= ranges[name].max)
        assert inside.double().mean() > 0.999
    assert ranges["r0"].min == 0, "a Relu cuts off what is below"
    assert ranges["input"].max == 6


def test_fewer_deviations_give_narrower_ranges(make_case):
    case = make_case()
    moments = moments_of(case.model)
    wide = [data_free_ranges(case.plan, moments, sigmas=sigmas) for sigmas in (6, 3, 1)]
    for more, fewer in itertools.pairwise(wide):
        assert all(fewer[name].max < more[name].max for name in more)


def test_reaches_are_those_of_each_channel(make_case):
    case = make_case()
    moments = moments_of(case.model)
    reaches = channel_reaches(case.model, moments, sigmas=2)
    assert reaches.keys() == {"left"}, "what the others make is read twice or joined"
    np.testing.assert_allclose(reaches["left"], moments["r1"].spread(2)[1])
