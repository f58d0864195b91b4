"""H and C against the layer's own operator, for every operator and layout, whoever holds the samples."""

import numpy as np
import pytest
import torch
from lockstep import Net
from networks import images, network, saved
from test_sparsity import LAYERS, one_layer

from dipo.algo.held_out import held_out_samples
from dipo.algo.hessian import hessian
from dipo.algo.layer_sums import Sampling, layer_sums
from dipo.algo.pair_statistics import held_out_rows
from dipo.algo.weight_grids import as_columns
from dipo.graph.accessors import array_of, name_of
from dipo.graph.layers import layer_of

MORE = {
    "conv 1d": ("Conv<pads=[1,2],dilations=[2]>", (6, 8, 3), (8, 9)),
    "conv 3d": ("Conv<pads=[1,0,1,0,1,1],strides=[1,2,1]>", (4, 3, 3, 2, 2), (3, 4, 5, 6)),
    "transposed 1d": ("ConvTranspose<strides=[3],dilations=[2]>", (8, 4, 3), (8, 5)),
    "transposed 3d": ("ConvTranspose<strides=[2,1,2]>", (3, 4, 2, 2, 2), (3, 2, 3, 2)),
    "transposed depthwise": ("ConvTranspose<group=8,strides=[2,2]>", (8, 1, 3, 3), (8, 4, 4)),
    "multiplied depthwise": ("Conv<group=4>", (8, 1, 3, 3), (4, 6, 6)),
    "pointwise": ("Conv<strides=[2,2]>", (6, 8, 1, 1), (8, 5, 5)),
    "sequence": ("MatMul", (24, 10), (5, 24)),
}
EVERY = [*LAYERS, *MORE]


def layer_net(tmp_path, kind, *, num=24, **precision):
    """A network of the one layer `it`."""
    if kind in LAYERS:
        return one_layer(tmp_path, kind, num=num, **precision)
    operator, shape, size = MORE[kind]
    dims, rank = ",".join(map(str, size)), len(size)
    channels = shape[1] * (8 if "depth" in kind else 1) if "Transpose" in operator else shape[0]
    bias = "" if operator == "MatMul" else ", b"
    model = network(
        f"(float[N,{dims}] x) => (float[N,{','.join('abcd'[:rank])}] y) {{ [it] y = {operator}(x, w{bias}) }}",
        w=shape, b=(channels,),
    )  # fmt: skip
    rng = np.random.default_rng(1)
    mixed = rng.normal(size=(num, *size)) + rng.normal(size=(num, *size[:1], *[1] * (rank - 1)))
    return Net.of(saved(model, tmp_path), mixed.astype(np.float32), **precision)


def sums_of(net, name="it", *, workers=1, positions=10**6, held_out=(), seed=0):
    """Each worker's sums of a layer."""
    sampling = Sampling(positions, len(net.samples), held_out, seed)

    def step(pair, unit):
        return layer_sums(pair, unit, name, sampling) if name in unit.layers else None

    return [
        next(each for each in found if each is not None)
        for _, found in net.walk(step, workers=workers, with_float=True)
    ]


def random_layer(net, seed, name="it"):
    """A weight and a bias like the layer's."""
    layer = layer_of(next(node for node in net.model.graph if node.name == name))
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=layer.shape).astype(np.float32)
    bias = None if layer.bias is None else rng.normal(size=array_of(layer.bias).shape).astype(np.float32)
    return layer, weight, bias


def error_by_running(net, layer, weight, bias, *, held_out=None, behind=()):
    """Sum of the squares of what the layer gives with a weight, less what it gives in the float network."""
    total, power = 0.0, 0.0

    def step(pair, unit):
        nonlocal total, power
        if layer.name not in unit.layers:
            return
        nodes = [pair.nodes[name] for name in (layer.name, *behind)]
        output = name_of(nodes[-1].outputs[0])
        module = pair.module(nodes, [output])
        constants = {name_of(layer.weight): torch.tensor(weight)}
        if bias is not None:
            constants[name_of(layer.bias)] = torch.tensor(bias)
        chosen = [rows for _, rows in held_out_rows(pair, held_out)] if held_out else pair.rows
        for rows in chosen:
            fp = module(pair.read(pair.fp, module.inputs, rows))[output].double()
            q = module(pair.read(pair.q, module.inputs, rows), constants=constants)[output].double()
            total += float((q - fp).square().sum())
            power += float(fp.square().sum())

    net.walk(step, with_float=True)
    return total, power


def error_by_sums(sums, layer, weight, bias):
    columns = as_columns(weight, layer.layout, torch.device("cpu")).double()
    last = torch.zeros_like(columns[:, :1]) if bias is None else torch.tensor(bias).double().view(len(columns), 1, -1)
    return float(sums.error(torch.cat([columns, last], 1)).sum())


@pytest.mark.parametrize("kind", EVERY)
def test_the_error_of_any_weight_follows_from_the_sums(tmp_path, kind):
    """All of H, C and the target's power is in it: every attribute of the operator, and the bias."""
    net = layer_net(tmp_path, kind)
    (sums,) = sums_of(net)
    assert sums.held_out is None
    for seed in range(3):
        layer, weight, bias = random_layer(net, seed)
        expected, power = error_by_running(net, layer, weight, bias)
        assert error_by_sums(sums.fitted, layer, weight, bias) == pytest.approx(expected, rel=1e-4)
    assert float(sums.fitted.power.sum()) == pytest.approx(power, rel=1e-4)
    assert torch.equal(sums.fitted.gram, sums.fitted.gram.mT)


@pytest.mark.parametrize("kind", LAYERS)
def test_the_gram_matrix_is_that_of_pruning(tmp_path, kind):
    net = layer_net(tmp_path, kind)
    found = []
    net.walk(lambda pair, unit: found.append(hessian(pair, pair.nodes[unit.nodes[0]])))
    torch.testing.assert_close(sums_of(net)[0].fitted.gram[:, :-1, :-1], found[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("bits", [4, 8, 16])
@pytest.mark.parametrize("kind", ["conv", "depthwise", "transposed", "gemm", "batched matmul"])
def test_no_sum_depends_on_the_workers(tmp_path, kind, bits):
    net = layer_net(tmp_path, kind, num=29, act_bits=bits)
    held_out = held_out_samples(29)
    for positions in (100, 10**6):
        (alone,) = sums_of(net, positions=positions, held_out=held_out)
        for workers in (2, 3):
            for other in sums_of(net, positions=positions, held_out=held_out, workers=workers):
                for one, its in ((alone.fitted, other.fitted), (alone.held_out, other.held_out)):
                    assert torch.equal(one.gram, its.gram)
                    assert torch.equal(one.cross, its.cross)
                    assert torch.equal(one.power, its.power)


@pytest.mark.parametrize("kind", ["conv", "depthwise", "sequence"])
def test_held_out_samples_have_sums_of_their_own(tmp_path, kind):
    net, held_out = layer_net(tmp_path, kind, num=29), held_out_samples(29)
    (every,), (sums,) = sums_of(net), sums_of(net, held_out=held_out)
    torch.testing.assert_close(sums.fitted.gram + sums.held_out.gram, every.fitted.gram)
    torch.testing.assert_close(sums.fitted.cross + sums.held_out.cross, every.fitted.cross)
    layer, weight, bias = random_layer(net, 0)
    expected, _ = error_by_running(net, layer, weight, bias, held_out=held_out)
    assert error_by_sums(sums.held_out, layer, weight, bias) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("kind", ["conv", "sequence"])
def test_some_positions_stand_for_all(tmp_path, kind):
    """About as many as are asked for, of every sample, others with another seed."""
    net = layer_net(tmp_path, kind, num=64)
    every = sums_of(net)[0].fitted
    wanted = int(every.count) // 2
    some, other = (sums_of(net, positions=wanted, seed=seed)[0].fitted for seed in (0, 1))
    assert some.count == pytest.approx(wanted, rel=0.05)
    assert not torch.equal(some.gram, other.gram)
    mean, scale = every.gram / every.count, (every.gram / every.count).diagonal(dim1=1, dim2=2).max()
    assert ((some.gram / some.count - mean).abs() < 0.25 * scale).all()


SHORTCUT = """(float[N,3,8,8] image) => (float[N,8,8,8] y) {
  [before] a = Conv<pads=[1,1,1,1]>(image, w1, b1)
  b = Relu(a)
  [it] c = Conv<pads=[1,1,1,1]>(b, w2, b2)
  [sum] d = Add(OPERANDS)
  y = Relu(d)
}"""


@pytest.mark.parametrize("operands", ["c, b", "b, c"])
def test_the_error_of_a_shortcut_is_in_the_target(tmp_path, operands):
    model = network(SHORTCUT.replace("OPERANDS", operands), w1=(8, 3, 3, 3), b1=(8,), w2=(8, 8, 3, 3), b2=(8,))
    net = Net.of(saved(model, tmp_path), images(24), weight_bits=2, act_bits=3)
    (sums,) = sums_of(net)
    layer, weight, bias = random_layer(net, 0)
    alone, _ = error_by_running(net, layer, weight, bias)
    summed, _ = error_by_running(net, layer, weight, bias, behind=["sum"])
    assert error_by_sums(sums.fitted, layer, weight, bias) == pytest.approx(summed, rel=1e-4)
    assert alone != pytest.approx(summed, rel=1e-3)


def test_a_layer_behind_others_in_its_unit(tmp_path):
    """A value that no unit keeps is computed anew in both networks."""
    net = layer_net(tmp_path, "sequence")
    model = network(
        """(float[N,5,24] x) => (float[N,5,10] y) {
          a = Sigmoid(x)
          [it] y = MatMul(a, w)
        }""",
        w=(24, 10),
    )
    net = Net.of(saved(model, tmp_path), net.samples)
    (sums,) = sums_of(net)
    layer = layer_of(next(node for node in net.model.graph if node.name == "it"))
    own = torch.sigmoid(torch.tensor(net.samples)).reshape(-1, 24).double()
    torch.testing.assert_close(sums.fitted.gram[0, :-1, :-1], own.T @ own, rtol=1e-2, atol=1e-2)
    assert layer.bias is None


def test_values_that_are_no_numbers_give_no_sums(tmp_path):
    net = layer_net(tmp_path, "gemm")
    net.samples[3, 5] = np.inf
    sampling = Sampling(10**6, len(net.samples))
    walked = net.walk(lambda pair, unit: layer_sums(pair, unit, "it", sampling), with_float=True)
    assert walked[0][1] == [None]
