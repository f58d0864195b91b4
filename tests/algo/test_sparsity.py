import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lockstep import Net
from networks import images, network, saved

from dipo.algo.hessian import hessian
from dipo.algo.reference_weights import target_of
from dipo.algo.sparsity import Pattern, prune_by_error, pruned_layers, smallest
from dipo.algo.steps.sparsify import Sparsify, SparsifyOptions
from dipo.graph.accessors import array_of, name_of
from dipo.graph.weight_layout import WeightLayout
from dipo.recipe import CalibConfig

CALIB = CalibConfig(method="minmax")
LAYERS = {
    "conv": ("Conv<pads=[1,1,1,1],strides=[2,2]>", (6, 8, 3, 3)),
    "same": ("Conv<auto_pad='SAME_UPPER',strides=[2,2]>", (6, 8, 3, 3)),
    "dilated": ("Conv<pads=[2,1,2,3],dilations=[2,1]>", (6, 8, 3, 2)),
    "grouped": ("Conv<group=2,pads=[1,1,1,1]>", (6, 4, 3, 3)),
    "depthwise": ("Conv<group=8,pads=[1,1,1,1]>", (8, 1, 3, 3)),
    "transposed": ("ConvTranspose<strides=[2,2],pads=[1,1,1,1],output_padding=[1,1]>", (8, 6, 3, 3)),
    "transposed grouped": ("ConvTranspose<group=2,strides=[2,2]>", (8, 3, 2, 2)),
    "gemm": ("Gemm", (24, 10)),
    "gemm transposed": ("Gemm<transB=1>", (10, 24)),
    "matmul": ("MatMul", (24, 10)),
    "batched matmul": ("MatMul", (8, 24, 10)),
}


def one_layer(tmp_path, kind, *, num=24, seed=0, skip=(), **precision):
    """A network of one layer (behind a flattening, where it takes no images), on correlated samples."""
    operator, shape = LAYERS[kind]
    size = {"gemm": (num, 24), "matmul": (num, 24), "batched": (num, 8, 5, 24)}.get(kind.split()[0], (num, 8, 7, 7))
    dims = ",".join(map(str, size[1:]))
    bias = "" if "MatMul" in operator else ", b"
    channels = 10 if operator[0] in "GM" else {"depthwise": 8}.get(kind, 6)
    operator = operator.replace("'", '"')
    rank = len(size)
    model = network(
        f"(float[N,{dims}] x) => (float[N,{','.join('abc'[: rank - 1])}] y) {{ [it] y = {operator}(x, w{bias}) }}",
        w=shape, b=(channels,), seed=seed,
    )  # fmt: skip
    rng = np.random.default_rng(seed + 1)
    mixed = rng.normal(size=size) + 2 * rng.normal(size=(*size[:-1], 1)) + rng.normal(size=(num, *[1] * (rank - 1)))
    mixed = mixed + (rng.normal(size=(num, 1, *size[2:])) if rank == 4 else 0)
    return Net.of(saved(model, tmp_path), mixed.astype(np.float32), skip=list(skip), **precision)


def options(**values):
    return SparsifyOptions(**values)


def pruned(net, cfg, workers=1):
    walked = net.walk(lambda pair, unit: pruned_layers(pair, unit, cfg=cfg, calib=CALIB), workers=workers)
    layers = [pair.layers["it"] for pair, _ in walked]
    return layers[0] if workers == 1 else layers


def rows_of(net, weight):
    return WeightLayout.of(next(iter(net.model.graph)), weight.shape).split(weight)


def float_weight(net):
    return array_of(net.model.graph.initializers[net.plan.layers["it"].weight])


def output_error(net, weight):
    """||X W - X W'||^2 of the layer, by its own operator on the quantized input; biases cancel."""
    errors = []

    def step(pair, unit):
        node = pair.nodes[unit.nodes[0]]
        output = name_of(node.outputs[0])
        module = pair.module([node], [output])
        for values in pair.reads(pair.q, module):
            outs = [
                module(values, constants={net.plan.layers["it"].weight: torch.tensor(one)})[output].double()
                for one in (float_weight(net), weight)
            ]
            errors.append(float((outs[0] - outs[1]).square().sum()))

    net.walk(step)
    return sum(errors)


@pytest.mark.parametrize("kind", LAYERS)
def test_the_gram_matrix_is_that_of_the_outputs(tmp_path, kind):
    """w H w^T is the squared output, for any weight: every attribute of the operator is in H."""
    net = one_layer(tmp_path, kind)
    found = []
    net.walk(lambda pair, unit: found.append(hessian(pair, pair.nodes[unit.nodes[0]])))
    rows = rows_of(net, float_weight(net))
    flat = torch.tensor(rows.reshape(*rows.shape[:2], -1).copy(), dtype=torch.float64)
    squares = torch.einsum("grc,gcd,grd->", flat, found[0], flat)
    assert float(squares) == pytest.approx(output_error(net, np.zeros_like(float_weight(net))), rel=1e-4)
    assert torch.equal(found[0], found[0].transpose(1, 2))


@pytest.mark.parametrize("kind", LAYERS)
def test_a_weight_survives_the_way_to_rows_and_back(tmp_path, kind):
    net = one_layer(tmp_path, kind, num=2)
    weight = float_weight(net)
    layout = WeightLayout.of(next(iter(net.model.graph)), weight.shape)
    assert np.array_equal(layout.join(layout.split(weight)), weight)


@pytest.mark.parametrize("mask", ["magnitude", "error"])
@pytest.mark.parametrize("kind", LAYERS)
def test_two_of_four_by_counting(tmp_path, kind, mask):
    net = one_layer(tmp_path, kind)
    layer = pruned(net, options(sparsity_pattern="2:4", sparsity_mask=mask))
    rows = rows_of(net, layer.target)
    inputs = rows.shape[-1]
    assert inputs == {"depthwise": 1, "grouped": 4, "transposed grouped": 4, "conv": 8}.get(kind, inputs)
    for start in range(0, inputs, 4):
        kept = np.count_nonzero(rows[..., start : start + 4], axis=-1)
        assert np.all(kept == (1 if inputs == 1 else 2))
    zero = np.broadcast_to(layer.qparams.broadcast_to(layer.codes.ndim)[1], layer.codes.shape)
    assert np.array_equal(layer.codes[layer.target == 0], zero[layer.target == 0])
    assert np.all(layer.weight[layer.target == 0] == 0)


@pytest.mark.parametrize("mask", ["magnitude", "error"])
@pytest.mark.parametrize("kind", ["conv", "depthwise", "grouped", "gemm", "batched matmul"])
@pytest.mark.parametrize("rate", [0.0, 0.3, 0.75])
def test_the_rate_by_counting(tmp_path, kind, mask, rate):
    net = one_layer(tmp_path, kind, weight_bits=4, weight_symmetric=False)
    layer = pruned(net, options(sparsity=rate, sparsity_mask=mask))
    assert np.count_nonzero(layer.target == 0) == round(rate * layer.target.size)
    assert np.all(layer.weight[layer.target == 0] == 0)


def test_by_magnitude_the_largest_weights_stay_as_they_are(tmp_path):
    net = one_layer(tmp_path, "conv")
    weight, layer = float_weight(net), pruned(net, options(sparsity=0.5, sparsity_mask="magnitude"))
    kept = layer.target != 0
    assert np.array_equal(layer.target[kept], weight[kept])
    assert np.abs(weight[~kept]).max() <= np.abs(weight[kept]).min()


@pytest.mark.parametrize("pattern", ["unstructured", "2:4", "1:4"])
@pytest.mark.parametrize("kind", [kind for kind in LAYERS if kind != "depthwise"])
def test_the_error_mask_beats_the_magnitudes(tmp_path, kind, pattern):
    net = one_layer(tmp_path, kind)
    errors = {
        mask: output_error(net, pruned(net, options(sparsity_pattern=pattern, sparsity_mask=mask)).target)
        for mask in ("magnitude", "error")
    }
    assert errors["error"] < 0.95 * errors["magnitude"]


def best_by_force(weight, hessian_matrix, num_kept):
    """The least error of one row, over all choices of weights, each with the best values for them."""
    best = np.inf
    for kept in map(list, itertools.combinations(range(len(weight)), num_kept)):
        part = np.linalg.solve(hessian_matrix[np.ix_(kept, kept)], hessian_matrix[kept] @ weight)
        difference = weight.copy()
        difference[kept] -= part
        best = min(best, difference @ hessian_matrix @ difference)
    return best


@pytest.mark.parametrize(("pattern", "width", "kept"), [(Pattern(0, 2, 4), 4, 2), (Pattern(0.5), 8, 4)])
def test_against_brute_force(pattern, width, kept):
    ratios = []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        x = rng.normal(size=(100, width)) @ rng.normal(size=(width, width))
        weight = rng.normal(size=width).astype(np.float32)
        h = x.T @ x
        found = prune_by_error(weight.reshape(1, 1, 1, width), torch.from_numpy(h)[None], pattern).reshape(-1)
        assert np.count_nonzero(found) == kept
        difference = weight.astype(np.float64) - found
        ratios.append((difference @ h @ difference) / best_by_force(weight.astype(np.float64), h, kept))
    assert np.median(ratios) < 2
    assert min(ratios) > 0.999


def test_the_rest_solves_the_normal_equations():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 24)) + rng.normal(size=(200, 1))
    weight = rng.normal(size=(5, 24)).astype(np.float32)
    h = x.T @ x
    found = prune_by_error(weight.reshape(1, 5, 1, 24), torch.from_numpy(h)[None], Pattern(0.5)).reshape(5, 24)
    damped = h + np.eye(24) * 0.01 * np.diag(h).mean()
    for row, new in zip(weight, found, strict=True):
        kept = np.flatnonzero(new)
        expected = np.linalg.solve(damped[np.ix_(kept, kept)], damped[kept] @ row)
        np.testing.assert_allclose(new[kept], expected, rtol=1e-4, atol=1e-5)


def test_a_remainder_keeps_its_share():
    rows = np.random.default_rng(0).normal(size=(1, 3, 2, 7)).astype(np.float32)
    h = torch.eye(14, dtype=torch.float64)[None]
    for zeros in (smallest(rows, Pattern(0, 2, 4)), prune_by_error(rows, h, Pattern(0, 2, 4)) == 0):
        assert np.all(np.count_nonzero(zeros[..., :4], axis=-1) == 2)
        assert np.all(np.count_nonzero(zeros[..., 4:], axis=-1) == 1), "2 of 3 stay"


def test_inputs_that_are_always_zero_go_first():
    h = torch.diag(torch.tensor([0.0, 0, 1, 1], dtype=torch.float64))[None]
    weight = np.float32([5, 7, 1, -1]).reshape(1, 1, 1, 4)
    assert prune_by_error(weight, h, Pattern(0.5)).reshape(-1).tolist() == [0, 0, 1, -1]
    nothing = prune_by_error(weight, torch.zeros(1, 4, 4, dtype=torch.float64), Pattern(0.5))
    assert np.isfinite(nothing).all()


@pytest.mark.parametrize("skip", [(), ("it",)])
def test_a_layer_that_is_left_alone(tmp_path, skip):
    """By the options, or because it is no quantized one; the walk goes on behind it."""
    net = one_layer(tmp_path, "conv", skip=skip)
    step = Sparsify(options(), spared=frozenset() if skip else frozenset({"it"}))
    ((pair, found),) = net.walk(lambda pair, unit: step.solve(SimpleNamespace(pair=pair, unit=unit)).layers)
    assert found == [{}]
    assert pair.layers == net.quantized.layers
    assert not pair.q


@pytest.mark.parametrize(("kind", "platform"), [("conv", "ort"), ("depthwise", "trt"), ("gemm", "ort")])
def test_the_number_of_workers_does_not_matter(tmp_path, kind, platform):
    net = one_layer(tmp_path, kind, num=29, platform=platform)
    cfg = options(sparsity=0.6)
    alone = pruned(net, cfg)
    for layer in [*pruned(net, cfg, workers=2), *pruned(net, cfg, workers=3)]:
        assert np.array_equal(alone.target, layer.target)
        assert np.array_equal(alone.codes, layer.codes)


def test_a_float_input_is_summed_exactly_too(tmp_path):
    """The network behind a layer that stays float reads numbers without a grid of their own."""
    model = network(
        """(float[N,3,8,8] image) => (float[N,4,8,8] y) {
          [before] a = Conv<pads=[1,1,1,1]>(image, w1, b1)
          b = Sigmoid(a)
          [it] y = Conv<pads=[1,1,1,1]>(b, w2, b2)
        }""",
        w1=(8, 3, 3, 3), b1=(8,), w2=(4, 8, 3, 3), b2=(4,),
    )  # fmt: skip
    net = Net.of(saved(model, tmp_path), images(29))
    value = name_of(next(node for node in net.model.graph if node.name == "it").inputs[0])
    del net.plan.activations[value], net.quantized.activations[value]
    found = []

    def step(pair, unit):
        if unit.name == "it":
            assert pair.q[value].qparams is None
            found.append(hessian(pair, pair.nodes["it"]))
        return pruned_layers(pair, unit, cfg=options(), calib=CALIB)

    walks = [net.walk(step, workers=workers) for workers in (1, 2, 3)]
    assert all(torch.equal(found[0], other) for other in found[1:])
    targets = [target_of(pair, "it") for walk in walks for pair, _ in walk]
    assert all(np.array_equal(targets[0], other) for other in targets[1:])
    rows = rows_of_conv(target_of(walks[0][0][0], "it"))
    assert np.count_nonzero(rows == 0) == rows.size // 2


def rows_of_conv(weight):
    return weight.reshape(len(weight), -1)
