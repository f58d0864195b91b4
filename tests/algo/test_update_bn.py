import dataclasses

import numpy as np
import pytest
from lockstep import Net
from networks import images, network, saved

from dipo.algo.update_bn import scale_change, updated_layers
from dipo.graph.accessors import array_of, name_of
from dipo.graph.batch_norm import BatchNorm, batch_norm_of
from dipo.quant.codes import nearest_codes
from dipo.recipe import CalibConfig

CALIB = CalibConfig()


def normed_net(tmp_path, *, gamma=None, num=24, **precision):
    """Two convolutions with BatchNormalization, whose running statistics are not those of the samples."""
    rng = np.random.default_rng(3)
    gamma = np.array([1.5, -0.7, 1, 0.4, 2, 1]) if gamma is None else np.asarray(gamma)
    model = network(
        """(float[N,3,8,8] image) => (float[N,6,8,8] out) {
          [one] a = Conv<pads=[1,1,1,1]>(image, w1, b1)
          b = BatchNormalization(a, g1, h1, m1, v1)
          c = Relu(b)
          [two] d = Conv<group=2,pads=[1,1,1,1]>(c, w2)
          out = BatchNormalization(d, g2, h2, m2, v2)
        }""",
        w1=(6, 3, 3, 3), b1=(6,), w2=(6, 3, 3, 3),
        g1=gamma.astype(np.float32), h1=rng.normal(size=6).astype(np.float32),
        m1=rng.normal(size=6).astype(np.float32), v1=rng.uniform(0.3, 4, 6).astype(np.float32),
        g2=np.ones(6, np.float32), h2=np.zeros(6, np.float32),
        m2=rng.normal(size=6).astype(np.float32), v2=rng.uniform(0.1, 3, 6).astype(np.float32),
    )  # fmt: skip
    return Net.of(saved(model, tmp_path), images(num), **precision)


def norm_of(pair, unit):
    return batch_norm_of(pair.nodes[unit.nodes[0]])


def update(pair, unit):
    found = updated_layers(pair, unit, norm_of(pair, unit), calib=CALIB)
    pair.layers.update(found)
    return found


def outputs_after(net):
    """The quantized layers' own outputs on all samples, by name of the layer, when each has been updated."""
    seen = {}

    def step(pair, unit):
        node = pair.nodes[unit.nodes[0]]
        if node.name not in pair.layers:
            return update(pair, unit)
        output = name_of(node.outputs[0])
        module = pair.module([node], [output])
        reads = list(pair.reads(pair.q, module))
        found = update(pair, unit)
        outs = [module(values, constants=pair.weights([node.name]))[output].numpy() for values in reads]
        seen[node.name] = np.concatenate(outs).astype(np.float64)
        return found

    ((pair, _),) = net.walk(step)
    return pair, seen


def test_the_outputs_get_the_mean_and_deviation_of_the_batch_norm(tmp_path):
    net = normed_net(tmp_path)
    norms = {node.name: batch_norm_of(node) for node in net.model.graph if batch_norm_of(node) is not None}
    pair, seen = outputs_after(net)
    assert seen.keys() == norms.keys() == {"one", "two"}
    for name, values in seen.items():
        np.testing.assert_allclose(values.mean((0, 2, 3)), norms[name].beta, atol=1e-4)
        np.testing.assert_allclose(values.std((0, 2, 3)), np.abs(norms[name].gamma), rtol=1e-3)
        old, new = net.quantized.layers[name], pair.layers[name]
        assert np.array_equal(old.codes, new.codes), "scales and biases alone change"
        assert np.all(new.qparams.scale > 0)
        assert not np.allclose(new.qparams.scale, old.qparams.scale, rtol=0.05)


def test_a_weight_with_one_scale_is_rounded_anew(tmp_path):
    net = normed_net(tmp_path, weight_bits=8, weight_per_channel=False)
    pair, seen = outputs_after(net)
    for node in net.model.graph:
        if (norm := batch_norm_of(node)) is None:
            continue
        layer = pair.layers[node.name]
        assert layer.qparams.axis is None
        assert np.array_equal(layer.codes, nearest_codes(layer.target, layer.qparams))
        np.testing.assert_allclose(seen[node.name].mean((0, 2, 3)), norm.beta, atol=0.05)
        np.testing.assert_allclose(seen[node.name].std((0, 2, 3)), np.abs(norm.gamma), rtol=0.05)


def test_learned_codes_with_one_scale_are_kept(tmp_path):
    net = normed_net(tmp_path, weight_per_channel=False)
    learned = dataclasses.replace(net.quantized.layers["one"], codes=net.quantized.layers["one"].codes.copy())
    learned.codes[0, 0, 0, 0] += 1
    net.quantized.layers["one"] = learned
    pair, seen = outputs_after(net)
    assert np.array_equal(pair.layers["one"].codes, learned.codes)
    assert pair.layers["one"].qparams.scale == learned.qparams.scale
    node = next(node for node in net.model.graph if node.name == "one")
    np.testing.assert_allclose(seen["one"].mean((0, 2, 3)), batch_norm_of(node).beta, atol=1e-4)


def test_the_target_follows_the_scales(tmp_path):
    net = normed_net(tmp_path)
    ((pair, _),) = net.walk(update)
    weight = array_of(net.model.graph.initializers[net.plan.layers["one"].weight])
    layer, change = pair.layers["one"], pair.layers["one"].qparams.scale / net.quantized.layers["one"].qparams.scale
    np.testing.assert_allclose(layer.target, weight * change[:, None, None, None], rtol=1e-5)


def test_running_variance_not_standard_deviation():
    """A variance of 4 where 1 was folded halves the channel; read as a deviation it would take the root of a half."""
    norm = BatchNorm(np.float32([1, -3]), np.float32([0, 0]), np.float32([0, 0]), np.float32([1, 1]), 0.0)
    np.testing.assert_allclose(scale_change(norm, np.array([4.0, 9 * 4.0])), [0.5, 0.5])
    # By hand: sqrt(8 + 1) / sqrt(3 / (2 / 3)^2 + 1), the old factor being 2 / sqrt(8 + 1).
    norm = BatchNorm(np.float32([2]), np.float32([0]), np.float32([0]), np.float32([8]), 1.0)
    np.testing.assert_allclose(scale_change(norm, np.array([3.0])), 3 / np.sqrt(3 * 9 / 4 + 1))


def test_zero_gamma_and_zero_variance_keep_the_scale(tmp_path):
    norm = BatchNorm(np.float32([0, 1]), np.float32([0, 0]), np.float32([0, 0]), np.float32([2, 2]), 1e-5)
    assert scale_change(norm, np.array([0.0, 0.0])).tolist() == [1, 1]
    net = normed_net(tmp_path, gamma=[0, 1, -1, 1, 1, 1])
    pair, seen = outputs_after(net)
    beta = batch_norm_of(next(node for node in net.model.graph if node.name == "one")).beta
    assert pair.layers["one"].qparams.scale[0] == net.quantized.layers["one"].qparams.scale[0]
    np.testing.assert_allclose(seen["one"][:, 0], beta[0], atol=1e-6)
    assert all(np.isfinite(layer.bias).all() for layer in pair.layers.values())


def test_a_layer_without_batch_norm_passes_through(tmp_path):
    net = normed_net(tmp_path)
    ((pair, found),) = net.walk(lambda pair, unit: updated_layers(pair, unit, None, calib=CALIB))
    assert not any(found)
    assert all(pair.layers[name] is layer for name, layer in net.quantized.layers.items())
    assert not pair.q, "the walk has moved on behind every unit"


@pytest.mark.parametrize("per_channel", [True, False])
def test_the_number_of_workers_does_not_matter(tmp_path, per_channel):
    net = normed_net(tmp_path, num=21, weight_per_channel=per_channel)
    ((alone, _),) = net.walk(update)
    for pair, _ in net.walk(update, workers=2) + net.walk(update, workers=3):
        for name, layer in alone.layers.items():
            assert np.array_equal(layer.codes, pair.layers[name].codes)
            assert np.array_equal(layer.qparams.scale, pair.layers[name].qparams.scale)
            assert np.array_equal(layer.bias, pair.layers[name].bias)
