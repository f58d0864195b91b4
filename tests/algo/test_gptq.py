"""Layers of every kind, on grids of every kind, solved in closed form by one worker or by several."""

import dataclasses

import numpy as np
import pytest
import torch
from lockstep import Net
from networks import images, network, saved, tiny_cnn
from test_layer_sums import EVERY, error_by_running, layer_net, sums_of
from test_sparsity import LAYERS

from dipo.algo.gptq import LayerProblem, polish, round_layer, solve_unit
from dipo.algo.held_out import held_out_samples
from dipo.algo.steps.gptq import Gptq, GptqOptions
from dipo.algo.unit_solver import UnitWork, as_it_is
from dipo.config import AlgoConfig
from dipo.graph.layers import layer_of
from dipo.quant.codes import nearest_codes
from dipo.recipe import CalibConfig

CALIB = CalibConfig(weights="mse")
GRIDS = {
    "4 bits": {"weight_bits": 4},
    "2 bits": {"weight_bits": 2},
    "symmetric": {"weight_bits": 4, "weight_symmetric": True},
    "narrow": {"weight_bits": 8, "weight_symmetric": True, "weight_narrow": True},
    "one scale": {"weight_bits": 4, "weight_per_channel": False},
    "powers of two": {"weight_bits": 4, "power_of_two": True},
}


def work_of(pair, unit, held_out=()):
    """The unit in front of its solution; nothing in it is trained."""
    return UnitWork(unit, pair, pair.targets(unit), None, (), (), None, None, as_it_is(pair, unit, pair), held_out)


def solved(net, *, workers=1, held_out=(), options=None, **values):
    """What became of the network: of each worker's pair the layers, and the results of the units."""
    cfg = options or GptqOptions(**values)
    results = [[] for _ in range(workers)]

    def step(pair, unit):
        if not unit.layers:
            return {}
        work = work_of(pair, unit, held_out)
        result = solve_unit(work, cfg=cfg, calib=CALIB, num_samples=len(net.samples), seed=0)
        pair.adopt(result.layers, result.activations)
        results[pair.owners[pair.batches[0].index]].append(result)
        return result.layers

    walked = net.walk(step, workers=workers, with_float=True)
    return [pair.layers for pair, _ in walked], results[0]


def same(one, other):
    return all(
        np.array_equal(layer.codes, other[name].codes)
        and np.array_equal(layer.bias, other[name].bias)
        and np.array_equal(layer.qparams.scale, other[name].qparams.scale)
        and np.array_equal(layer.qparams.zero_point, other[name].qparams.zero_point)
        for name, layer in one.items()
    )


def on_its_grid(layer, before, spec):
    """Codes, scales and zero points are such as the plan allows."""
    assert layer.codes.shape == before.codes.shape and layer.codes.dtype == np.int32
    assert layer.codes.min() >= spec.qmin and layer.codes.max() <= spec.qmax
    own = layer.qparams
    assert own.scale.shape == before.qparams.scale.shape and own.scale.dtype == np.float32
    assert own.zero_point.shape == before.qparams.zero_point.shape and own.zero_point.dtype == np.int32
    assert (own.scale > 0).all() and own.zero_point.min() >= spec.qmin and own.zero_point.max() <= spec.qmax
    if spec.symmetric:
        assert (own.zero_point == spec.middle).all()
    if spec.power_of_two:
        assert (np.frexp(own.scale)[0] == 0.5).all()
    assert (layer.bias is None) == (before.bias is None)
    assert layer.bias is None or (layer.bias.dtype == np.float32 and layer.bias.shape == before.bias.shape)


def error_of(net, layer, *, held_out=None):
    view = layer_of(next(node for node in net.model.graph if node.name == "it"))
    return error_by_running(net, view, layer.weight, layer.bias, held_out=held_out)[0]


def problem_of(net):
    """The layer `it` in front of its solution."""
    found = []
    net.walk(lambda pair, unit: found.append(LayerProblem.of(work_of(pair, unit), "it", CALIB)), with_float=True)
    return found[0]


def fitted_to_all(net, **options):
    """The layer `it`, fitted to all samples and judged by them."""
    return problem_of(net).best(sums_of(net)[0], GptqOptions(**{"gptq_damping": 1e-3, **options}))[0]


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("kind", EVERY)
def test_every_layer_on_every_grid(tmp_path, kind, grid):
    """It stays on its grid, and its outputs come nearer to the float ones than those of the nearest codes."""
    net = layer_net(tmp_path, kind, **GRIDS[grid])
    before, layer = net.quantized.layers["it"], fitted_to_all(net)
    on_its_grid(layer, before, net.plan.layers["it"].spec)
    assert error_of(net, layer) < error_of(net, before)


@pytest.mark.parametrize("kind", ["gemm", "gemm transposed", "matmul", "conv", "sequence"])
def test_blocks_have_scales_of_their_own(tmp_path, kind):
    net = layer_net(tmp_path, kind, weight_bits=4, weight_block=4)
    before, layer = net.quantized.layers["it"], fitted_to_all(net)
    assert before.qparams.blocks is not None
    on_its_grid(layer, before, net.plan.layers["it"].spec)
    assert layer.qparams.blocks == before.qparams.blocks
    assert error_of(net, layer) < 0.9 * error_of(net, before)


@pytest.mark.parametrize("kind", LAYERS)
def test_one_worker_or_several_to_the_same_bits(tmp_path, kind):
    net, held_out = layer_net(tmp_path, kind, num=29, weight_bits=4), held_out_samples(29)
    (alone,), _ = solved(net, held_out=held_out, gptq_positions=100)
    for workers in (2, 3):
        for other in solved(net, held_out=held_out, gptq_positions=100, workers=workers)[0]:
            assert same(alone, other)


def test_a_network_by_one_worker_or_several(tmp_path):
    net = Net.of(saved(tiny_cnn(), tmp_path), images(29), weight_bits=3, act_bits=4)
    held_out = held_out_samples(29)
    (alone,), results = solved(net, held_out=held_out)
    assert not same(alone, net.quantized.layers)
    assert all(result.judged is not None for result in results)
    for workers in (2, 3):
        assert all(same(alone, other) for other in solved(net, held_out=held_out, workers=workers)[0])


@pytest.mark.parametrize("kind", ["conv", "depthwise", "gemm"])
def test_pruned_weights_stay_zero(tmp_path, kind):
    net = layer_net(tmp_path, kind, weight_bits=4)
    before = net.quantized.layers["it"]
    view = layer_of(next(node for node in net.model.graph if node.name == "it"))
    target = np.asarray(view.array, np.float32) * (np.random.default_rng(0).random(view.shape) < 0.5)
    pruned = dataclasses.replace(before, codes=nearest_codes(target, before.qparams), target=target)
    net.quantized.layers["it"] = pruned
    layer = fitted_to_all(net)
    assert np.array_equal(layer.target, target)
    assert (layer.weight[target == 0] == 0).all()
    assert error_of(net, layer) < error_of(net, pruned)


@pytest.mark.parametrize("num", [1, 3, 5, 16, 64])
@pytest.mark.parametrize("kind", ["conv", "depthwise", "gemm"])
def test_few_samples_are_not_fitted_to_death(tmp_path, kind, num):
    """On samples that nothing was fitted to, it is no worse than a corrected bias (by what few samples can tell)."""
    every = layer_net(tmp_path, kind, num=256, weight_bits=4)
    net = dataclasses.replace(every, samples=every.samples[:num])
    held_out = held_out_samples(num)
    (layers,), (result,) = solved(net, held_out=held_out)
    other = problem_of(net).corrected(sums_of(net, held_out=held_out)[0].fitted)[0]
    fresh = dataclasses.replace(every, samples=every.samples[64:])
    own, its = error_of(fresh, layers["it"]), error_of(fresh, other)
    assert own <= 1.1 * its
    if held_out:
        assert error_of(net, layers["it"], held_out=held_out) <= error_of(net, other, held_out=held_out) * 1.001
        assert result.judged.kept == (not same({"it": layers["it"]}, {"it": net.quantized.layers["it"]}))


def test_nothing_is_fitted_to_held_out_samples(tmp_path):
    net, held_out = layer_net(tmp_path, "conv", num=29, weight_bits=4), held_out_samples(29)
    samples = net.samples.copy()
    samples[list(held_out)] *= 0.999
    nets, options = (net, dataclasses.replace(net, samples=samples)), {"gptq_damping": 0.1, "gptq_act_order": False}
    one, other = (solved(each, held_out=held_out, **options)[0][0] for each in nets)
    assert same(one, other)


@pytest.mark.parametrize("kind", ["conv", "gemm"])
def test_each_part_does_its_share(tmp_path, kind):
    """On its own samples the error falls from rounding columns to the asymmetric target, and by the descent."""
    net = layer_net(tmp_path, kind, num=64, weight_bits=3, act_bits=4)
    errors = [
        error_of(net, fitted_to_all(net, **values))
        for values in (
            {"gptq_target": "symmetric", "gptq_new_grids": False, "gptq_descent": False},
            {"gptq_new_grids": False, "gptq_descent": False},
            {"gptq_new_grids": False},
        )
    ]
    assert errors[0] > errors[1] > errors[2]
    assert error_of(net, net.quantized.layers["it"]) > errors[0]


def test_polishing_ends_where_the_metric_does_not_rise(tmp_path):
    net = layer_net(tmp_path, "conv", weight_bits=3)
    (sums,), problem = sums_of(net), problem_of(net)
    for start in round_layer(problem, sums.fitted, (0.01, 1.0), GptqOptions()):
        end = polish(problem, start)
        before, after = (
            float(((each.best - each.weight) * (each.metric @ (each.best - each.weight))).sum())
            for each in (start, end)
        )
        assert after < before
        layer = problem.solved(end)
        torch.testing.assert_close(problem.columns(layer), end.weight, rtol=1e-6, atol=1e-6)


def test_values_that_are_no_numbers_leave_a_layer_as_it_was(tmp_path):
    net = layer_net(tmp_path, "gemm")
    net.samples[3, 5] = np.nan
    (layers,), (result,) = solved(net, held_out=held_out_samples(24))
    assert layers["it"] is net.quantized.layers["it"]
    assert result.layers == {} and result.judged is None


def test_a_stack_that_is_broadcast_is_left_as_it_was(tmp_path):
    model = network("(float[N,3,5,24] x) => (float[N,3,5,10] y) { [it] y = MatMul(x, w) }", w=(1, 24, 10))
    rng = np.random.default_rng(0)
    net = Net.of(saved(model, tmp_path), rng.normal(size=(8, 3, 5, 24)).astype(np.float32), weight_bits=4)
    (layers,), _ = solved(net)
    assert error_of(net, layers["it"]) <= error_of(net, net.quantized.layers["it"])


def test_it_reads_its_options():
    step = Gptq.configured(AlgoConfig(gptq_act_order=True), {"gptq_damping": 0.5, "gptq_positions": 7})
    assert step.options == GptqOptions(gptq_act_order=True, gptq_damping=0.5, gptq_positions=7)
    assert step.options.dampings == (0.5,) and step.options.few_damping == 0.5
    assert len(GptqOptions().dampings) > 1 and step.guarded and step.granularity == "layer"
