import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import network, saved

from dipo.algo.moments import input_moments, moments_of
from dipo.errors import UserError
from dipo.graph.accessors import name_of
from dipo.graph.load import load
from dipo.graph.operators import OPERATORS
from dipo.graph.torch_module import GraphModule
from dipo.quant.gaussian import Moments, clipped, leaky, mapped, multiplied, summed

ZOO = Path(__file__).parents[2] / "dipo" / "zoo" / "mobilenet.onnx"
MU = np.array([-2.0, -0.5, 0.0, 0.7, 3.0, 40.0])
SIGMA = np.array([1.0, 0.5, 2.0, 1.0, 0.1, 1.0])


def drawn(num=400_000):
    """Normal numbers [C, num], with no more error in mean and variance than drawing them in pairs leaves."""
    half = np.random.default_rng(0).standard_normal((len(MU), num // 2))
    return MU[:, None] + SIGMA[:, None] * np.concatenate([half, -half], axis=1)


def assert_moments(found, samples):
    np.testing.assert_allclose(found.mean, samples.mean(axis=1), atol=0.01)
    np.testing.assert_allclose(found.std, samples.std(axis=1), atol=0.02)
    assert (samples >= found.low[:, None] - 1e-9).all()
    assert (samples <= found.high[:, None] + 1e-9).all()


@pytest.mark.parametrize(("low", "high"), [(0, np.inf), (0, 6), (-1, 1), (-np.inf, 0.5), (0, np.arange(6) + 0.5)])
def test_clipped_normal_numbers(low, high):
    samples = drawn()
    limits = [np.reshape(np.broadcast_to(end, 6), (6, 1)) for end in (low, high)]
    assert_moments(clipped(Moments.of(MU, SIGMA), low, high), np.clip(samples, *limits))


def test_a_relu_and_a_min_are_one_clip():
    x = Moments.of(MU, SIGMA)
    high = np.arange(6) + 0.5
    two, one = clipped(clipped(x, 0, np.inf), -np.inf, high), clipped(x, 0, high)
    np.testing.assert_allclose(two.mean, one.mean)
    np.testing.assert_allclose(two.std, one.std)


def test_constants_are_clipped_too():
    found = clipped(Moments.of([-1.0, 2.0, 9.0], 0.0), 0, 6)
    np.testing.assert_array_equal(found.mean, [0, 2, 6])
    np.testing.assert_array_equal(found.std, 0)


@pytest.mark.parametrize("slopes", [0.1, -0.5, np.linspace(-1, 1, 6)])
def test_leaky_normal_numbers(slopes):
    samples = drawn()
    expected = np.where(samples < 0, np.broadcast_to(np.reshape(slopes, (-1, 1)), (6, 1)) * samples, samples)
    assert_moments(leaky(Moments.of(MU, SIGMA), slopes), expected)


def test_curves_sums_and_products():
    samples, other = drawn(), drawn()[:, ::-1][:, np.random.default_rng(5).permutation(400_000)]
    x = Moments.of(MU, SIGMA)
    assert_moments(mapped(x, np.tanh), np.tanh(samples))
    for found, expected in ((summed(x, x), samples + other), (multiplied(x, x), samples * other)):
        np.testing.assert_allclose(found.mean, expected.mean(axis=1), rtol=0.01, atol=0.02)
        np.testing.assert_allclose(found.std, expected.std(axis=1), rtol=0.02)


def test_the_spread_ends_where_the_activation_does():
    low, high = clipped(Moments.of([0.0, 5.0, -9.0], 1.0), 0, 6).spread(6)
    np.testing.assert_array_equal(low, [0, 0, 0])
    np.testing.assert_array_equal(high, [6, 6, 0])


NET = """(float[N,4,6,6] x) => (float[N,5] y) {
  [conv] a = Conv<group=2>(x, w1, b1)
  r = Relu(a)
  l = PRelu(r, slope)
  [left] s = Slice(l, starts, ends, axes)
  [both] c = Concat<axis=1>(s, s)
  [wide] p = Pad(c, pads)
  [twice] t = Mul(p, two)
  [again] u = Sub(t, shift)
  g = Sigmoid(u)
  v = Mul(u, g)
  [pool] m = ReduceMean<axes=[2,3], keepdims=0>(v)
  [fc] y = Gemm<transB=1>(m, w2, b2)
}"""
CONSTANTS = {
    "w1": (6, 2, 1, 1), "b1": (6,), "slope": (6, 1, 1), "starts": np.array([2]), "ends": np.array([6]),
    "axes": np.array([1]), "pads": np.array([0, 1, 0, 0, 0, 1, 0, 0]), "two": np.float32(2), "shift": (10, 1, 1),
    "w2": (5, 10), "b2": (5,),
}  # fmt: skip


def test_every_value_of_a_network_against_random_inputs(tmp_path):
    model = load(saved(network(NET, opset=13, **CONSTANTS), tmp_path))
    names = [name_of(value) for node in model.graph for value in node.outputs]
    x = torch.randn(4000, 4, 6, 6, generator=torch.Generator().manual_seed(0)) * 0.5 + 0.2
    with torch.inference_mode():
        made = GraphModule(model, outputs=names)({"x": x})
    found = moments_of(model, input_moments(model, mean=0.2, std=0.5))
    for name in names:
        value = made[name].double().transpose(0, 1).flatten(1).numpy()
        assert found[name].num_dims_behind == made[name].ndim - 2
        np.testing.assert_allclose(found[name].mean, value.mean(axis=1), atol=0.03, err_msg=name)
        if name not in {"m", "y"}:  # positions are taken for equal
            np.testing.assert_allclose(found[name].std, value.std(axis=1), atol=0.03, err_msg=name)


def test_a_residual_network_of_matrices_and_a_normalization(tmp_path):
    text = """(float[N,6] x) => (float[N,6] y) {
      [one] a = MatMul(x, w1)
      [bias] b = Add(a, b1)
      h = LeakyRelu<alpha=0.2>(b)
      [two] c = MatMul(h, w2)
      [sum] d = Add(c, x)
      [norm] e = LayerNormalization(d, gain, offset)
      y = Softmax<axis=-1>(e)
    }"""
    shapes = {"w1": (6, 8), "b1": (8,), "w2": (8, 6), "gain": (6,), "offset": (6,)}
    model = load(saved(network(text, opset=17, **shapes), tmp_path))
    found = moments_of(model)
    x = torch.randn(20000, 6, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        made = GraphModule(model, outputs=["h", "c"])({"x": x})
    for name, value in made.items():
        np.testing.assert_allclose(found[name].mean, value.mean(0), atol=0.03)
    np.testing.assert_allclose(found["y"].mean, 1 / 6)
    assert found["y"].spread(6)[1].max() <= 1


@pytest.mark.parametrize("group", [1, 2])
def test_means_through_a_transposed_convolution(tmp_path, group):
    text = f"""(float[N,4,9,9] x) => (float[N,6,18,18] y) {{
      [up] y = ConvTranspose<group={group}, strides=[2,2]>(x, w, b)
    }}"""
    model = load(saved(network(text, w=(4, 6 // group, 2, 2), b=(6,)), tmp_path))
    x = torch.full((1, 4, 9, 9), 0.5) * torch.arange(4).view(-1, 1, 1)
    made = GraphModule(model)({"x": x})["y"].detach().mean((0, 2, 3))
    found = moments_of(model, input_moments(model, mean=0.5 * np.arange(4), std=0.0))
    np.testing.assert_allclose(found["y"].mean, made, atol=1e-5)


def test_batch_normalization_tells_more_than_the_weights():
    model = load(ZOO)
    found = moments_of(model)
    for node in list(model.graph)[:5]:
        if node.op_type == "Conv":
            norm = node.meta["dipo.batch_norm"]
            np.testing.assert_array_equal(found[node.outputs[0].name].mean, norm.beta)
            np.testing.assert_allclose(found[node.outputs[0].name].std, norm.std)


def test_an_operator_that_cannot_be_told_is_named(tmp_path):
    text = "(float[N,3,4,4] x) => (float[N,3,4,4] y) { [odd] y = Log(x) }"
    model = load(saved(network(text), tmp_path))
    with pytest.raises(UserError, match="Log"):
        moments_of(model)


def test_rows_that_tokens_choose_are_not_told(tmp_path):
    text = "(int64[N,6] ids) => (float[N,6,4] y) { [embed] y = Gather(table, ids) }"
    model = load(saved(network(text, table=(10, 4)), tmp_path))
    with pytest.raises(UserError, match="'embed'"):
        moments_of(model)


def test_inputs_with_other_channels_are_refused(tmp_path):
    model = load(saved(network(NET, opset=13, **CONSTANTS), tmp_path))
    with pytest.raises(UserError, match=r"has 4 channels, give data\.mean"):
        input_moments(model, mean=np.zeros(3))


@pytest.mark.parametrize(
    "nodes",
    [
        "y = Sum(x, two, small)",
        "a = Relu(x)\n y = Sum(a, x, two)",
        "y = Min(x, two, small)",
        "y = Max(x, small, two)",
        "a = Relu(x)\n y = Sqrt(a)",
        "y = Softplus(x)",
        "y = Mish(x)",
        "y = DepthToSpace<blocksize=2>(x)",
        "y = Tile(x, repeats)",
        "a = GlobalAveragePool(x)\n b = Squeeze(a, axes)\n y = Unsqueeze(b, axes)",
    ],
)
def test_rules_tell_what_the_network_computes(tmp_path, nodes):
    depth = "DepthToSpace" in nodes
    channels, sizes = (
        (1, "8,8") if depth else (8, "4,4") if "Tile" in nodes else (4, "1,1" if "Pool" in nodes else "4,4")
    )
    text = f"(float[N,4,4,4] x) => (float[N,{channels},{sizes}] y) {{ {nodes} }}"
    constants = {"two": np.float32(2), "small": np.full((1, 4, 1, 1), -0.25, np.float32), "repeats": [1, 2, 1, 1]}
    constants["axes"] = [2, 3]
    model = load(saved(network(text, opset=18, **constants), tmp_path))
    mean, std = np.array([-1.0, 0.0, 0.5, 2.0]), np.array([0.5, 1.0, 2.0, 1.0])
    if "GlobalAveragePool" in nodes:
        std = np.zeros(4)  # its deviation is taken for that of one number
    found = moments_of(model, input_moments(model, mean=mean, std=std))["y"]
    noise = torch.randn(20_000, 4, 4, 4, generator=torch.Generator().manual_seed(0)).double().numpy()
    x = torch.from_numpy(mean.reshape(-1, 1, 1) + std.reshape(-1, 1, 1) * noise).float()
    y = GraphModule(model)({"x": x})["y"].double()
    np.testing.assert_allclose(found.mean, y.mean((0, 2, 3)), atol=0.02)
    if "Sum(a, x" not in nodes:  # x and its Relu are taken for independent
        np.testing.assert_allclose(found.std, y.std((0, 2, 3)), atol=0.02)
    assert found.num_dims_behind == 2


def test_a_root_of_what_may_be_negative_is_not_told(tmp_path):
    text = "(float[N,3,4,4] x) => (float[N,3,4,4] y) { [root] y = Sqrt(x) }"
    model = load(saved(network(text), tmp_path))
    with pytest.raises(UserError, match="'root'"):
        moments_of(model)


def test_an_operator_may_bring_a_rule_of_its_own(tmp_path, monkeypatch):
    def rule(node, read):
        return summed(read[0], read[0])

    operator = dataclasses.replace(OPERATORS["Log"], moments=rule)
    monkeypatch.setitem(OPERATORS._own, "Log", operator)
    text = "(float[N,3,4,4] x) => (float[N,3,4,4] y) { y = Log(x) }"
    model = load(saved(network(text), tmp_path))
    np.testing.assert_allclose(moments_of(model, input_moments(model, mean=1.5))["y"].mean, 3.0)
