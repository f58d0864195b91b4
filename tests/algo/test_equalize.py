import itertools
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from networks import network, saved

from dipo.algo.equalize import TOLERANCE, equalize
from dipo.export.onnx_file import save_model
from dipo.export.runtime import run_model
from dipo.graph.accessors import array_of, name_of
from dipo.graph.batch_norm import batch_norm_of
from dipo.graph.layers import layers_of
from dipo.graph.load import load
from dipo.graph.torch_module import GraphModule

ZOO = Path(__file__).parents[2] / "dipo" / "zoo" / "mobilenet.onnx"

UNLIMITED = 1e8

CONV = "[one] a = Conv<pads=[1,1,1,1]>(x, w1, b1)\n"
CONV_SHAPES = {"w1": (8, 3, 3, 3), "b1": (8,)}
HEAD = "[pool] p = GlobalAveragePool(z)\n [flat] q = Flatten(p)\n [head] y = Gemm<transB=1>(q, wh, bh)"


def images_net(middle, *, channels=8, opset=17, first=CONV, **constants):
    """A convolution to 8 channels `a`, then `middle`, which makes `z` with some channels, then a classifier."""
    return network(
        f"(float[N,3,6,6] x) => (float[N,5] y) {{ {first} {middle} {HEAD} }}",
        opset=opset, **(CONV_SHAPES if first is CONV else {}), **constants, wh=(5, channels), bh=(5,),
    )  # fmt: skip


KINDS = {
    "relu": (images_net("r = Relu(a)\n [two] z = Conv(r, w2, b2)", w2=(8, 8, 3, 3), b2=(8,)), ["one", "two"]),
    "identity": (images_net("[two] z = Conv(a, w2, b2)", w2=(8, 8, 3, 3), b2=(8,)), ["one", "two"]),
    "leaky": (images_net("r = LeakyRelu<alpha=0.3>(a)\n [two] z = Conv(r, w2)", w2=(8, 8, 3, 3)), ["one", "two"]),
    "prelu": (
        images_net("r = PRelu(a, slope)\n [two] z = Conv(r, w2)", w2=(8, 8, 3, 3), slope=(8, 1, 1)), ["one", "two"]
    ),
    "clip": (
        images_net(
            "r = Clip(a, low, high)\n [two] z = Conv(r, w2)", w2=(8, 8, 3, 3), low=np.float32(0), high=np.float32(0.4)
        ),
        ["one", "two"],
    ),
    "hard tanh": (
        images_net(
            "r = Clip(a, low, high)\n [two] z = Conv(r, w2)", w2=(8, 8, 3, 3), low=np.float32(-0.3),
            high=np.float32(0.4),
        ),
        ["one", "two"],
    ),
    "clip by attributes": (
        images_net("r = Clip<min=0.0, max=0.4>(a)\n [two] z = Conv(r, w2)", w2=(8, 8, 3, 3), opset=9), ["one", "two"]
    ),
    "grouped": (
        images_net("r = Relu(a)\n [two] z = Conv<group=2>(r, w2, b2)", channels=6, w2=(6, 4, 3, 3), b2=(6,)),
        ["one", "two"],
    ),
    "grouped first": (
        images_net(
            "[mid] m = Conv<group=4>(a, wm)\n r = Relu(m)\n [two] z = Conv(r, w2)", wm=(12, 2, 1, 1), w2=(8, 12, 3, 3)
        ),
        ["mid", "two"],
    ),
    "channel multiplier": (
        images_net("r = Relu(a)\n [two] z = Conv<group=8>(r, w2)", channels=16, w2=(16, 1, 3, 3)), ["one", "two"]
    ),
    "depthwise triplet": (
        images_net(
            "r = Relu(a)\n [dw] b = Conv<group=8,pads=[1,1,1,1]>(r, wd, bd)\n s = Relu(b)\n [two] z = Conv(s, w2)",
            wd=(8, 1, 3, 3), bd=(8,), w2=(8, 8, 1, 1),
        ),
        ["one", "dw", "two"],
    ),
    "two depthwise": (
        images_net(
            "[dw] b = Conv<group=8>(a, wd)\n [dw2] c = Conv<group=8>(b, we)\n [two] z = Conv(c, w2)",
            wd=(8, 1, 3, 3), we=(8, 1, 3, 3), w2=(8, 8, 1, 1),
        ),
        ["one", "dw", "dw2", "two"],
    ),
    "transposed": (
        images_net(
            "[up] b = ConvTranspose<strides=[2,2],group=2>(a, wu, bu)\n r = Relu(b)\n [two] z = Conv(r, w2)",
            wu=(8, 3, 2, 2), bu=(6,), w2=(8, 6, 3, 3),
        ),
        ["up", "two"],
    ),
    "into transposed": (
        images_net("r = Relu(a)\n [up] z = ConvTranspose<group=2>(r, wu)", channels=6, wu=(8, 3, 2, 2)), ["one", "up"]
    ),
    "pooling": (
        images_net(
            "r = Relu(a)\n m = MaxPool<kernel_shape=[2,2]>(r)\n n = AveragePool<kernel_shape=[2,2]>(m)\n"
            "[two] z = Conv(n, w2)", w2=(8, 8, 1, 1),
        ),
        ["one", "two"],
    ),
}  # fmt: skip

FLAT = network(
    """(float[N,3,6,6] x) => (float[N,5] y) {
      [one] a = Conv<strides=[2,2]>(x, w1, b1)
      r = Relu(a)
      f = Flatten(r)
      [fc] b = Gemm(f, w2, b2)
      s = Relu(b)
      [head] y = Gemm<transB=1>(s, w3, b3)
    }""",
    w1=(4, 3, 2, 2), b1=(4,), w2=(36, 7), b2=(7,), w3=(5, 7), b3=(5,),
)  # fmt: skip
MATRICES = network(
    """(float[N,3,6] x) => (float[N,3,4] y) {
      [one] a = MatMul(x, w1)
      b = Add(a, b1)
      r = Relu(b)
      [two] y = MatMul(r, w2)
    }""",
    w1=(6, 10), b1=(10,), w2=(10, 4),
)  # fmt: skip


def loaded(model, folder, *, uneven=True):
    """The network, each layer's channels of very different magnitude, and biases too."""
    model = load(saved(model, folder))
    rng = np.random.default_rng(3)
    for layer in layers_of(model):
        if uneven:
            filters = layer.layout.filters(np.array(layer.array))
            filters *= np.exp(rng.normal(0, 1.5, (filters.shape[0], filters.shape[1], 1, 1))).astype(np.float32)
            weight = np.zeros_like(layer.array)
            layer.layout.filters(weight)[...] = filters
            layer.weight.const_value = ir.tensor(weight, name=layer.weight.name)
    return model


def outputs(model, folder, *, seed=0, num=4):
    path = folder / "run.onnx"
    save_model(model, path)
    rng = np.random.default_rng(seed)
    inputs = {
        name_of(value): rng.normal(size=(num, *(int(size) for size in value.shape[1:]))).astype(np.float32)
        for value in model.graph.inputs
    }
    return inputs, run_model(path, [inputs], threads=1)


def difference(first, second):
    return max(np.abs(first[name] - second[name]).max() / np.abs(first[name]).max() for name in first)


def ranges(model, first, second):
    """Largest |weight| of the channels between two layers, in both."""
    filters = {layer.name: np.abs(layer.layout.filters(layer.array)) for layer in layers_of(model)}
    made = filters[first].max(axis=(2, 3)).reshape(-1)
    read = filters[second].max(axis=(1, 3)).reshape(len(made), -1)
    return made, read.max(axis=1)


def assert_equalized(model, folder, layers):
    names = {layer.name: layer.array.copy() for layer in layers_of(model)}
    ops = [node.op_type for node in model.graph]
    inputs, before = outputs(model, folder)
    done = equalize(model, limit=UNLIMITED)
    _, after = outputs(done.model, folder)
    assert difference(before, after) < 1e-4
    with torch.inference_mode():
        found = GraphModule(done.model)({name: torch.from_numpy(array) for name, array in inputs.items()})
    assert difference(before, {name: value.numpy() for name, value in found.items()}) < 1e-4
    assert done.change <= TOLERANCE
    assert tuple(layers) in {chain.layers for chain in done.chains}
    for first, second in itertools.pairwise(layers):
        made, read = ranges(done.model, first, second)
        np.testing.assert_allclose(made, read, rtol=1e-3)
    assert ops == [node.op_type for node in model.graph], "the input is left as it is"
    for layer in layers_of(model):
        np.testing.assert_array_equal(layer.array, names[layer.name])
    return done


@pytest.mark.parametrize("kind", KINDS)
def test_the_function_stays_and_the_ranges_meet(tmp_path, kind):
    model, layers = KINDS[kind]
    assert_equalized(loaded(model, tmp_path), tmp_path, layers)


@pytest.mark.parametrize(
    ("model", "layers"), [(FLAT, ["one", "fc"]), (FLAT, ["fc", "head"]), (MATRICES, ["one", "two"])]
)
def test_matrices_and_flattened_channels(tmp_path, model, layers):
    assert_equalized(loaded(model, tmp_path), tmp_path, layers)


def test_a_single_pair_follows_the_papers_equation(tmp_path):
    model = loaded(MATRICES, tmp_path)
    w1, w2 = (layer.array.copy() for layer in layers_of(model))
    r1, r2 = np.abs(w1).max(axis=0), np.abs(w2).max(axis=1)
    scale = np.sqrt(r1 * r2) / r2
    found1, found2 = (layer.array for layer in layers_of(equalize(model, limit=UNLIMITED).model))
    np.testing.assert_allclose(found1, w1 / scale, rtol=1e-5)
    np.testing.assert_allclose(found2, w2 * scale[:, None], rtol=1e-5)


def test_scales_that_are_powers_of_two_change_no_bit(tmp_path):
    model = loaded(KINDS["relu"][0], tmp_path)
    _, before = outputs(model, tmp_path)
    done = equalize(model, exact=True)
    assert done.chains[0].min_scale != 1
    _, after = outputs(done.model, tmp_path)
    np.testing.assert_array_equal(before["y"], after["y"])


def test_the_limit_bounds_scales_around_their_median(tmp_path):
    model = loaded(KINDS["relu"][0], tmp_path)
    chain = equalize(model, limit=1.5).chains[0]
    free = equalize(model, limit=UNLIMITED).chains[0]
    assert chain.max_scale / chain.min_scale <= 1.5**2 * 1.001 < free.max_scale / free.min_scale


def test_what_reaches_far_is_evened_out_too(tmp_path):
    model = load(saved(KINDS["depthwise triplet"][0], tmp_path))
    _, before = outputs(model, tmp_path)
    reach = np.ones(8)
    reach[3] = 1000
    reaches = {"one": reach, "dw": np.ones(8)}
    done = equalize(model, reaches=reaches, limit=UNLIMITED)
    _, after = outputs(done.model, tmp_path)
    assert difference(before, after) < 1e-4
    assert done.change <= TOLERANCE
    assert [chain.layers for chain in done.chains] == [("one", "dw"), ("dw", "two"), ("two", "head")]
    scales = array_of(next(layers_of(model)).bias) / array_of(next(layers_of(done.model)).bias)
    made, read = ranges(done.model, "one", "dw")
    np.testing.assert_allclose(np.sqrt(made * reach / scales), read, rtol=1e-3)
    assert scales[3] == scales.max()


def test_a_channel_without_weights_is_left_alone(tmp_path):
    model = loaded(KINDS["relu"][0], tmp_path)
    first = next(layers_of(model))
    weight = first.array.copy()
    weight[2] = 0
    first.weight.const_value = ir.tensor(weight, name=first.weight.name)
    bias = array_of(first.bias)
    _, before = outputs(model, tmp_path)
    done = equalize(model, limit=UNLIMITED)
    _, after = outputs(done.model, tmp_path)
    assert done.chains[0].num_zero == 1
    assert array_of(next(layers_of(done.model)).bias)[2] == bias[2]
    assert difference(before, after) < 1e-4


def test_what_stays_is_told_with_the_reason(tmp_path):
    model = images_net(
        "h = HardSwish(a)\n [two] b = Conv(h, w2)\n [three] c = Conv(b, w3)\n d = Add(b, c)\n z = Relu(d)",
        w2=(8, 8, 1, 1), w3=(8, 8, 1, 1),
    )  # fmt: skip
    reasons = {refusal.where: refusal.reason for refusal in equalize(loaded(model, tmp_path)).refusals}
    assert "HardSwish: it does not commute" in reasons["one"]
    assert reasons["two"] == "what it makes is read 2 times"
    assert "Add: it joins two values" in reasons["three"]
    assert reasons["head"] == "what it makes is an output of the network"


NORM = "[one] n = Conv<pads=[1,1,1,1]>(x, w1)\n a = BatchNormalization(n, gamma, beta, mean, var)\n"
NORM_VALUES = {
    "w1": (8, 3, 3, 3), "gamma": np.full(8, 0.5, np.float32), "beta": np.linspace(-4, 4, 8, dtype=np.float32),
    "mean": np.zeros(8, np.float32), "var": np.ones(8, np.float32),
}  # fmt: skip


def absorbing(model, folder):
    """The network, and the least output of its first layer on samples."""
    model = load(saved(model, folder))
    inputs, before = outputs(model, folder)
    first = next(layers_of(model))
    module = GraphModule(model, outputs=[name_of(first.output)])
    with torch.inference_mode():
        (seen,) = module({name: torch.from_numpy(array) for name, array in inputs.items()}).values()
    return model, {first.name: seen.amin((0, 2, 3)).numpy()}, before


@pytest.mark.parametrize("clip", [False, True])
def test_biases_move_and_the_function_on_the_samples_stays(tmp_path, clip):
    act = "r = Clip(a, low, high)" if clip else "r = Relu(a)"
    limits = {"low": np.float32(0), "high": np.float32(3)} if clip else {}
    net = images_net(f"{act}\n [two] z = Conv(r, w2)", first=NORM, **NORM_VALUES, **limits, w2=(8, 8, 3, 3))
    model, seen, before = absorbing(net, tmp_path)
    done = equalize(model, absorb_bias=True, seen_min=seen)
    _, after = outputs(done.model, tmp_path)
    assert difference(before, after) < 1e-4
    (absorbed,) = done.absorbed
    assert (absorbed.first, absorbed.second) == ("one", "two")
    assert 0 < absorbed.num_channels < 8
    plain, moved = (next(layers_of(each)) for each in (equalize(model).model, done.model))
    floor = np.minimum(NORM_VALUES["beta"] - 3 * batch_norm_of(next(layers_of(model)).node).std, seen["one"])
    taken = array_of(plain.bias) - array_of(moved.bias)
    scale = NORM_VALUES["gamma"] / batch_norm_of(plain.node).gamma
    np.testing.assert_allclose(taken, np.clip(floor, 0, 3 if clip else None) / scale, atol=1e-5)
    np.testing.assert_allclose(batch_norm_of(moved.node).beta, batch_norm_of(plain.node).beta - taken, atol=1e-5)


def test_absorption_refuses_what_it_would_change(tmp_path):
    padded = images_net(
        "r = Relu(a)\n [two] z = Conv<pads=[1,1,1,1]>(r, w2)", first=NORM, **NORM_VALUES, w2=(8, 8, 3, 3)
    )
    done = equalize(load(saved(padded, tmp_path)), absorb_bias=True)
    assert not done.absorbed
    assert any("pads with zeros" in refusal.reason for refusal in done.refusals if refusal.where == "one")
    done = equalize(load(saved(KINDS["relu"][0], tmp_path)), absorb_bias=True)
    assert not done.absorbed
    assert any("no BatchNormalization" in refusal.reason for refusal in done.refusals if refusal.where == "one")


def test_the_embedded_network(tmp_path):
    model = load(ZOO)
    _, before = outputs(model, tmp_path)
    done = equalize(model)
    _, after = outputs(done.model, tmp_path)
    assert difference(before, after) < 1e-4
    assert len(done.chains) == 12
    assert done.change <= TOLERANCE


@pytest.mark.parametrize(("name", "count"), [("resnet20_cifar10.onnx", 9), ("mobilenet_v1_025_224.onnx", 14)])
def test_real_networks(shared_file, tmp_path, name, count):
    model = load(shared_file(name))
    _, before = outputs(model, tmp_path, num=2)
    done = equalize(model, limit=UNLIMITED)
    _, after = outputs(done.model, tmp_path, num=2)
    assert difference(before, after) < 1e-4
    assert len(done.chains) == count
    assert done.change <= TOLERANCE
