"""The analysis of each layer against the same figures computed by hand."""

import dataclasses
import functools
import itertools

import numpy as np
import pytest
import torch
from networks import network, saved
from torch.nn import functional

from dipo.algo.activation_cache import cut
from dipo.algo.analysis_sums import Analysis, NetworkAnalysis
from dipo.algo.analyze import QUESTIONS, analyze
from dipo.algo.calibrate import activation_ranges, observe, quantize_model
from dipo.algo.granularity import compare_granularities
from dipo.algo.simulate import simulate
from dipo.export.targets import TARGETS
from dipo.graph.load import load
from dipo.graph.plan import make_plan
from dipo.quant.bias import quantize_bias
from dipo.quant.spec import QParams
from dipo.recipe import CalibConfig, PrecisionConfig
from dipo.report.analysis import report_analysis

CPU = torch.device("cpu")


@dataclasses.dataclass(frozen=True)
class Case:
    model: object
    plan: object
    quantized: object
    samples: torch.Tensor
    batches: list

    def inputs(self, batch):
        return {"x": self.samples[batch.start : batch.stop]}

    def analyze(self, batches=None, **changed):
        arguments = {
            "plan": self.plan,
            "quantized": self.quantized,
            "rules": TARGETS["ort"].spec,
            "batches": self.batches if batches is None else batches,
            "inputs": self.inputs,
            "sensitivity_samples": 1000,
            "device": CPU,
        }
        return analyze(self.model, **arguments | changed)

    def report(self):
        weights = compare_granularities(self.model, plan=self.plan, quantized=self.quantized, cfg=CalibConfig())
        found = self.analyze()
        return report_analysis(
            self.model, plan=self.plan, rules=TARGETS["ort"].spec,
            found=NetworkAnalysis(found.totals(), weights, found.shift_shares(), len(self.samples), len(self.samples)),
        )  # fmt: skip

    def weight(self, layer):
        return self.model.graph.initializers[self.plan.layers[layer].weight].const_value.numpy()

    def dequantized(self, layer, x_name):
        """Weight and bias as the target keeps them."""
        found, scale = self.quantized.layers[layer], self.quantized.activations[x_name].scale
        bias = found.bias
        if bias is not None:
            bias = quantize_bias(bias, input_scale=scale, weight=found.qparams).values
        return torch.tensor(found.weight), None if bias is None else torch.tensor(bias)

    def rounded(self, name, value):
        q = self.quantized.activations[name]
        code = np.clip(np.rint(value.numpy() / q.scale) + q.zero_point, q.qmin, q.qmax)
        return torch.tensor(((code - q.zero_point) * q.scale).astype(np.float32))


def make_case(tmp_path, proto, shape, *, bits=4, num=12, batch_size=4, weights="mse", **options):
    model = load(saved(proto, tmp_path))
    options = {"first_last_bits": None, **options}
    plan = make_plan(model, TARGETS["ort"].spec, PrecisionConfig(weight_bits=bits, act_bits=bits, **options))
    samples = torch.randn(num, *shape, generator=torch.Generator().manual_seed(3))
    batches = cut(num, batch_size)
    case = Case(model, plan, None, samples, batches)
    seen = observe(model, plan=plan, batches=batches, inputs=case.inputs, device=CPU)
    cfg = CalibConfig(weights=weights)
    ranges = activation_ranges(plan, seen.statistics, cfg=cfg)
    return dataclasses.replace(case, quantized=quantize_model(model, plan=plan, ranges=ranges, cfg=cfg))


def assert_sums(sums, fp, q):
    fp, q = fp.double().numpy().ravel(), q.double().numpy().ravel()
    assert sums.count == fp.size
    found = (sums.fp_fp, sums.q_q, sums.fp_q, sums.noise)
    np.testing.assert_allclose(found, (fp @ fp, q @ q, fp @ q, ((fp - q) ** 2).sum()), rtol=1e-4, atol=1e-9)
    assert sums.noise > 0


LAYERS = {
    "Conv": (
        "(float[N,4,6,6] x) => (float[N,6,3,3] y) { r = Relu(x) "
        "[layer] y = Conv<pads=[1,1,1,1], strides=[2,2], group=2>(r, w, b) }",
        {"w": (6, 2, 3, 3), "b": (6,)},
        (4, 6, 6),
        lambda x, w, b: functional.conv2d(x, w, b, stride=2, padding=1, groups=2),
    ),
    "ConvTranspose": (
        "(float[N,4,3,3] x) => (float[N,6,6,6] y) { r = Relu(x) "
        "[layer] y = ConvTranspose<strides=[2,2], kernel_shape=[2,2]>(r, w, b) }",
        {"w": (4, 6, 2, 2), "b": (6,)},
        (4, 3, 3),
        lambda x, w, b: functional.conv_transpose2d(x, w, b, stride=2),
    ),
    "Gemm": (
        "(float[N,8] x) => (float[N,5] y) { r = Relu(x) [layer] y = Gemm<transB=1>(r, w, b) }",
        {"w": (5, 8), "b": (5,)},
        (8,),
        lambda x, w, b: x @ w.T + b,
    ),
    "MatMul": (
        "(float[N,3,8] x) => (float[N,3,5] y) { r = Relu(x) [layer] y = MatMul(r, w) }",
        {"w": (8, 5)},
        (3, 8),
        lambda x, w, b: x @ w,
    ),
}


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("per_channel", [False, True])
def test_a_layer_alone_is_what_one_computes_by_hand(tmp_path, kind, per_channel):
    text, constants, shape, compute = LAYERS[kind]
    case = make_case(tmp_path, network(text, **constants), shape, weight_per_channel=per_channel)
    totals = case.analyze().totals()
    weight = torch.tensor(case.weight("layer"))
    bias = case.quantized.layers["layer"].bias
    bias = None if bias is None else torch.tensor(bias)
    q_weight, q_bias = case.dequantized("layer", "r")
    x = case.samples.relu()
    fp, both = compute(x, weight, bias), compute(case.rounded("r", x), q_weight, q_bias)
    assert_sums(totals["weight"]["layer"][0], fp, compute(x, q_weight, q_bias))
    assert_sums(totals["activation"]["layer"][0], fp, compute(case.rounded("r", x), weight, bias))
    for question in ("both", "sensitivity"):
        assert_sums(totals[question]["layer"][0], fp, both)


BRANCHES = """(float[N,6] x) => (float[N,3] y, float[N,6] z, int64[N,6] k) {
  [stem] s = Gemm<transB=1>(x, w0, b0)
  r = Relu(s)
  k = Cast<to=7>(r)
  [left] l = Gemm<transB=1>(r, w1, b1)
  e = Sigmoid(l)
  [right] t = Gemm<transB=1>(r, w2, b2)
  z = Relu(t)
  c = Concat<axis=1>(e, t)
  d = Concat<axis=1>(r, r)
  m = Add(c, d)
  [head] h = Gemm<transB=1>(m, w3, b3)
  y = Tanh(h)
}"""


def branches(tmp_path, **options):
    """Two branches of which the later one does not see the earlier, a skip, and three outputs, one of integers."""
    shapes = {"w0": (6, 6), "b0": (6,), "w1": (6, 6), "b1": (6,), "w2": (6, 6), "b2": (6,), "w3": (3, 12), "b3": (3,)}
    return make_case(tmp_path, network(BRANCHES, **shapes), (6,), **options)


def run_branches(case, quantized_layer):
    """Outputs y and z with one layer's weight, bias and own input quantized, nothing else."""

    def layer(name, x_name, x):
        if name == quantized_layer:
            weight, bias = case.dequantized(name, x_name)
            return case.rounded(x_name, x) @ weight.T + bias
        return x @ torch.tensor(case.weight(name)).T + torch.tensor(case.quantized.layers[name].bias)

    r = layer("stem", "x", case.samples).relu()
    e, t = layer("left", "r", r).sigmoid(), layer("right", "r", r)
    m = torch.cat([e, t], 1) + torch.cat([r, r], 1)
    return layer("head", "m", m).tanh(), t.relu()


@pytest.mark.parametrize("name", ["stem", "left", "right", "head"])
def test_sensitivity_is_the_network_with_nothing_but_that_layer_quantized(tmp_path, name):
    case = branches(tmp_path)
    found = case.analyze().totals()["sensitivity"][name]
    assert len(found) == 2, "an output of integers has no error"
    reached = {"stem": (True, True), "left": (True, False), "right": (True, True), "head": (True, False)}[name]
    for sums, fp, q, reaches in zip(found, run_branches(case, None), run_branches(case, name), reached, strict=True):
        if reaches:
            assert_sums(sums, fp, q)
        else:
            assert sums.noise == 0
            assert sums.fp_fp > 0


def test_accumulated_errors_are_those_of_the_simulated_network(tmp_path):
    case = branches(tmp_path)
    simulated = simulate(
        case.model, plan=case.plan, quantized=case.quantized, rules=TARGETS["ort"].spec, batches=case.batches,
        inputs=case.inputs, profile_samples=1000, device=CPU, progress=lambda _: None,
    )  # fmt: skip
    found = case.analyze().totals()["accumulated"]
    assert found.keys() == simulated.layers.keys()
    for name, error in simulated.layers.items():
        sums = found[name][0]
        np.testing.assert_allclose((sums.fp_fp, sums.q_q, sums.noise), (error.fp_fp, error.q_q, error.noise), rtol=1e-5)


def test_any_sharding_gives_the_same_bits(tmp_path):
    case = branches(tmp_path, num=11, batch_size=2)
    found = case.analyze()
    whole, shares = found.totals(), found.shift_shares()
    assert whole.keys() == set(QUESTIONS)
    for cuts in ((3,), (1, 4), (0, 2)):
        bounds = [0, *cuts, len(case.batches)]
        shards = [case.analyze(case.batches[a:b]) for a, b in itertools.pairwise(bounds)]
        for order in itertools.permutations(shards):
            merged = functools.reduce(Analysis.merge, order)
            assert (merged.totals(), merged.shift_shares()) == (whole, shares)


def test_sensitivity_is_measured_on_the_first_samples_alone(tmp_path):
    case = branches(tmp_path, num=12, batch_size=4)
    done = []
    parts = case.analyze(sensitivity_samples=5, progress=done.append).parts
    assert done == [4, 8, 12]
    assert parts["sensitivity"]["left"].keys() == {0, 1}
    assert parts["both"]["left"].keys() == {0, 1, 2}


def test_a_layer_with_a_float_input_has_no_error_of_activations(tmp_path):
    case = branches(tmp_path)
    activations = {name: spec for name, spec in case.plan.activations.items() if name != "m"}
    case = dataclasses.replace(case, plan=dataclasses.replace(case.plan, activations=activations))
    totals = case.analyze().totals()
    assert "head" not in totals["activation"]
    assert totals["both"]["head"] == totals["weight"]["head"]
    row = next(row for row in case.report().layers if row.name == "head")
    assert (row.act_bits, row.alone.activation, row.hurts) == (None, None, "weight")


def test_layers_that_stay_float_are_left_out(tmp_path):
    case = branches(tmp_path, skip=["right"])
    totals = case.analyze().totals()
    assert all(layers.keys() == {"stem", "left", "head"} for layers in totals.values())


CHAIN = """(float[N,8] x) => (float[N,8] y) {
  [one] a = Gemm<transB=1>(x, w0, b0)
  b = Relu(a)
  [two] c = Gemm<transB=1>(b, w1, b1)
  d = Relu(c)
  [three] y = Gemm<transB=1>(d, w2, b2)
}"""


def chain(tmp_path, *, outlier=False, **options):
    weights = [np.random.default_rng(seed).normal(size=(8, 8)).astype(np.float32) / 3 for seed in range(3)]
    if outlier:
        weights[1][0] *= 60
        weights[2][:, 0] /= 60
    constants = {f"w{index}": weight for index, weight in enumerate(weights)}
    proto = network(CHAIN, **constants, b0=(8,), b1=(8,), b2=(8,))
    return make_case(tmp_path, proto, (8,), bits=8, num=32, batch_size=8, **options)


def test_a_weight_with_an_outlier_channel_is_found_and_wants_a_scale_for_each(tmp_path):
    # The extremes decide: one scale must cover the outlier, and the other channels are left with a few codes.
    case = chain(tmp_path, outlier=True, weight_per_channel=False, weights="minmax")
    report = case.report()
    worst = report.most_sensitive(1)[0]
    assert (worst.name, worst.rank, worst.hurts) == ("two", 1, "weight")
    assert worst.advice == "per-channel weights"
    assert worst.per_channel_gain_db > 0
    assert report.overrides["two"] == {"weight_per_channel": True}


def test_an_activation_with_a_bad_range_is_found(tmp_path):
    case = chain(tmp_path)
    good = case.quantized.activations["b"]
    bad = QParams(np.float32(good.scale * 40), good.zero_point, good.qmin, good.qmax)
    spoilt = dataclasses.replace(case.quantized, activations={**case.quantized.activations, "b": bad})
    report = dataclasses.replace(case, quantized=spoilt).report()
    worst = report.most_sensitive(1)[0]
    assert (worst.name, worst.hurts) == ("two", "activation")
    assert worst.alone.weight.sqnr_db > worst.alone.activation.sqnr_db + 10
    assert worst.sensitivity.share > 0.9
    assert [row.rank for row in sorted(report.layers, key=lambda row: row.sensitivity.sqnr_db)] == [1, 2, 3]


def test_a_moved_bias_is_told_from_other_noise(tmp_path):
    case = chain(tmp_path)
    layer = case.quantized.layers["two"]
    moved = dataclasses.replace(layer, bias=layer.bias + np.float32(0.3))
    case = dataclasses.replace(
        case, quantized=dataclasses.replace(case.quantized, layers={**case.quantized.layers, "two": moved})
    )
    weight, bias = case.dequantized("two", "b")
    fp = (case.samples @ torch.tensor(case.weight("one")).T + torch.tensor(case.quantized.layers["one"].bias)).relu()
    noise = (
        case.rounded("b", fp) @ weight.T + bias - (fp @ torch.tensor(case.weight("two")).T + torch.tensor(layer.bias))
    )
    expected = float((noise.mean(0) ** 2).sum() / (noise**2).mean(0).sum())
    shares = case.analyze().shift_shares()
    assert shares["two"] == pytest.approx(expected, rel=1e-3)
    assert shares["two"] > 0.9 > 0.5 > shares["three"]
    report = case.report()
    assert report.most_sensitive(1)[0].advice == "correct its bias"
    assert report.correct_bias


def test_scales_are_compared_at_the_same_width(tmp_path):
    for per_channel in (False, True):
        case = chain(tmp_path, outlier=True, weight_per_channel=per_channel, weights="minmax")
        cfg = CalibConfig(weights="minmax")
        found = compare_granularities(case.model, plan=case.plan, quantized=case.quantized, cfg=cfg)["two"]
        weight = case.weight("two").astype(np.float64)
        one, each = np.abs(weight).max() / 127, np.abs(weight).max(axis=1, keepdims=True) / 127
        expected = [((np.rint(weight / scale) * scale - weight) ** 2).sum() for scale in (one, each)]
        np.testing.assert_allclose((found.per_tensor, found.per_channel), expected, rtol=1e-3)
        assert found.signal == pytest.approx((weight**2).sum())


def test_a_pruned_weight_is_judged_by_what_its_codes_were_made_from(tmp_path):
    case = chain(tmp_path)
    layer = case.quantized.layers["two"]
    exact = dataclasses.replace(layer, target=layer.weight)
    quantized = dataclasses.replace(case.quantized, layers={**case.quantized.layers, "two": exact})
    found = compare_granularities(case.model, plan=case.plan, quantized=quantized, cfg=CalibConfig())["two"]
    assert found.per_channel == 0
    assert found.per_tensor > 0
