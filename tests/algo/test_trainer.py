"""A unit's gradients against a transcription in float64, its layers' kinds, and its independence of the workers."""

import dataclasses
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import pytest
import torch
import torch.nn.functional as F
from networks import network, saved
from solving import CPU, make_bench, solve_all

from dipo.algo.activation_cache import Batch, CachedActivation, cut
from dipo.algo.calibrate import activation_ranges, observe, quantize_model
from dipo.algo.collectives import SingleWorker
from dipo.algo.held_out import held_out_samples
from dipo.algo.network_pair import NetworkPair
from dipo.algo.pair_statistics import output_errors
from dipo.algo.trainer import GradShard, Trainer
from dipo.algo.unit_solver import UnitWork
from dipo.algo.unit_training import unit_problem
from dipo.config import AlgoConfig
from dipo.export.targets import TARGETS
from dipo.graph.load import load
from dipo.graph.plan import Plan, QuantizedModel, make_plan
from dipo.graph.units import find_units
from dipo.quant import kernels
from dipo.recipe import CalibConfig, PrecisionConfig


def case_of(model, tmp_path, shape, *, weight_bits=3, num=32):
    """A network of one input `x`, planned and calibrated."""
    loaded = load(saved(model, tmp_path))
    plan = make_plan(
        loaded, TARGETS["ort"].spec, PrecisionConfig(weight_bits=weight_bits, act_bits=8, first_last_bits=None)
    )
    g = torch.Generator().manual_seed(0)
    # Correlated: of independent inputs the nearest codes are the best.
    samples = torch.randn(num, *[1] * len(shape), generator=g) + 0.3 * torch.randn(num, *shape, generator=g)
    batches = cut(num, 8)

    def inputs(batch):
        return {"x": samples[batch.start : batch.stop]}

    observed = observe(loaded, plan=plan, batches=batches, inputs=inputs, device=CPU)
    ranges = activation_ranges(plan, observed.statistics, cfg=CalibConfig())
    quantized = quantize_model(loaded, plan=plan, ranges=ranges, cfg=CalibConfig())
    return OneInput(loaded, plan, samples, batches, quantized)


@dataclass(frozen=True)
class OneInput:
    """As the cases of `make_case`, for any network."""

    model: ir.Model
    plan: Plan
    samples: torch.Tensor
    batches: list[Batch]
    quantized: QuantizedModel

    def inputs(self, batch):
        return {"x": self.samples[batch.start : batch.stop]}


def residual_problem(case, cfg):
    """The residual block as a problem, behind the stem as it was quantized."""
    units = find_units(case.model, granularity="block")
    pair = NetworkPair(
        case.model, plan=case.plan, units=units, quantized=case.quantized, batches=case.batches,
        owners=[0] * len(case.batches), collectives=SingleWorker(), device=CPU,
    )  # fmt: skip
    pair.read_samples(case.inputs, with_float=True)
    targets = pair.targets(units[0])
    pair.advance(units[0])
    pair.fp.update(targets)
    work = UnitWork(units[1], pair, pair.targets(units[1]), None, [], [], None, make_bench(case))
    return unit_problem(work, cfg=cfg)


def straight_through(x, scale, low, high):
    v = x / scale
    return (v + (v.round() - v).detach()).clamp(low, high) * scale


def transcription(problem, v, *, exponent, weights, rows):
    """Loss of the residual block, with everything that is trained as a leaf in float64."""
    leaves, made, start = {}, {}, 0
    for node, (name, _, layer) in problem.layers.items():
        w = problem.constants[name].double()
        s, zero = (torch.tensor(part).double() for part in layer.qparams.broadcast_to(4))
        own = v[start : start + w.numel()].view(w.shape).double().requires_grad_()
        start += w.numel()
        t, b = torch.zeros_like(s).requires_grad_(), torch.tensor(layer.bias).double().requires_grad_()
        h = (torch.sigmoid(own) * 1.2 - 0.1).clamp(0, 1)
        levels = ((w / s).floor() + h).clamp(layer.qparams.qmin - zero, layer.qparams.qmax - zero)
        made[node] = levels * (s * t.exp()), b
        leaves[node] = own, b, t
    logs, quantizers = {}, {}
    for name, q in problem.activations.items():
        logs[name] = torch.zeros((), dtype=torch.float64).requires_grad_()
        zero = float(q.zero_point)
        quantizers[name] = (float(q.scale) * logs[name].exp(), q.qmin - zero, q.qmax - zero)
    x = problem.q_inputs["r0"].rows(0, rows).double()
    hidden = F.conv2d(x, *made["left"], padding=1).relu()
    hidden = straight_through(hidden, *quantizers["r1"]) if "r1" in quantizers else hidden
    out = (F.conv2d(hidden, *made["right"], padding=1) + x).relu()
    out = straight_through(out, *quantizers["r2"]) if "r2" in quantizers else out
    error = (out - problem.targets["r2"].rows(0, rows).double()).abs() ** exponent
    if weights is not None:
        error = error * weights.rows(0, rows).double()
    return (error.sum(1).sum() / (rows * 64)), leaves, logs


@pytest.mark.parametrize(("exponent", "weighted"), [(2.0, False), (2.4, False), (2.0, True)])
def test_all_gradients_are_those_of_the_written_loss(make_case, exponent, weighted):
    case = make_case(num=8, batch_size=8)
    cfg = AlgoConfig(batch_size=8, loss_norm=exponent, train_scale=True)
    problem = residual_problem(case, cfg)
    if weighted:
        shape = problem.targets["r2"].data.shape
        counts = torch.rand(shape, generator=torch.Generator().manual_seed(3)) * 2
        problem = dataclasses.replace(problem, weights={"r2": CachedActivation(counts, (8, 8, 8), None)})
    trainer = Trainer(problem, cfg=cfg, num_steps=1, pieces=[GradShard(0, 0, 8, 8)], seed=0, kernels=kernels.eager())
    trainer.batches[0] = torch.arange(8)[None]
    found = trainer.gradient(GradShard(0, 0, 8, 8), 0, wants_loss=True)
    weights = problem.weights["r2"] if problem.weights else None
    loss, leaves, logs = transcription(problem, trainer.weights.v, exponent=exponent, weights=weights, rows=8)
    loss.backward()
    assert float(found[-1]) == pytest.approx(float(loss.detach()), rel=2e-3)
    # Of a weight's rounding the chain goes on inside the kernel: gradient of the weight, times scale and slope of h.
    cut_ = trainer.weights.v.numel()
    trainer.weights.step(found[:cut_], torch.tensor([0.0, 20.0, 0.0, 1.0, 1.0, 1.0]))
    expected = torch.cat([own.grad.reshape(-1) for own, _, _ in leaves.values()])
    close(trainer.weights.moments[0] / 0.1, expected)
    rest = [b.grad for _, b, _ in leaves.values()]
    rest += [logs[name].grad.view(1) for name in problem.activations]
    rest += [t.grad.reshape(-1) for _, _, t in leaves.values()]
    close(found[cut_:-1], torch.cat(rest))


def close(found, expected):
    """A value on the edge between two codes may fall to the other side in float32."""
    size = float(expected.abs().max())
    assert size > 0
    assert float((found.double() - expected).abs().max()) < 5e-3 * size


def test_defaults_train_neither_scales_nor_weigh_errors(make_case):
    case = make_case(num=16)
    problem = residual_problem(case, AlgoConfig())
    assert problem.weights is None
    assert problem.q_inputs["r0"] is not problem.fp_inputs["r0"]
    result = solve_all(case, AlgoConfig(iters=3)).results[1]
    for name, layer in result.layers.items():
        assert layer.qparams is case.quantized.layers[name].qparams


def test_float_inputs_are_those_of_the_float_network(make_case):
    problem = residual_problem(make_case(num=16), AlgoConfig(inputs="float"))
    assert problem.q_inputs["r0"] is problem.fp_inputs["r0"]
    assert problem.q_inputs["r0"].qparams is None


MODES = {
    "lp": {"loss_norm": 2.4},
    "fisher": {"loss": "fisher"},
    "float": {"inputs": "float", "fp_input_prob": 0.5},
    "straight": {"rounding": "straight_through", "fp_input_prob": 0.5},
    "scale": {"train_scale": True},
    "straight scale": {"rounding": "straight_through", "train_scale": True},
    "tune": {},
}


@pytest.mark.parametrize("mode", MODES)
def test_one_worker_and_two_find_the_same_bits(make_case, mode):
    case = make_case(weight_bits=3, num=44, batch_size=4)
    cfg = AlgoConfig(iters=6, tune_iters=6, batch_size=16, **MODES[mode])
    how = {"granularity": "network", "freeze_rounding": True} if mode == "tune" else {}
    how["held_out"] = held_out_samples(44) if mode != "lp" else ()
    one, two = (solve_all(case, cfg, workers=workers, pieces=3, **how) for workers in (1, 2))
    changed = False
    for a, b in zip(one.results, two.results, strict=True):
        assert a.loss_last == b.loss_last
        assert a.judged == b.judged
        assert (a.judged is None) == (not a.layers or not how["held_out"])
        for name, layer in a.layers.items():
            assert np.array_equal(layer.codes, b.layers[name].codes)
            assert np.array_equal(layer.bias, b.layers[name].bias)
            assert np.array_equal(layer.qparams.scale, b.layers[name].qparams.scale)
            changed |= not np.array_equal(layer.bias, case.quantized.layers[name].bias)
        for name, qparams in a.activations.items():
            assert qparams.scale == b.activations[name].scale
    assert changed


KINDS = {
    "Conv": ("Conv<pads=[1,1,1,1]>", (6, 4, 3, 3), 6),
    "grouped Conv": ("Conv<pads=[1,1,1,1],group=2>", (6, 2, 3, 3), 6),
    "depthwise Conv": ("Conv<pads=[1,1,1,1],group=4>", (4, 1, 3, 3), 4),
    "ConvTranspose": ("ConvTranspose<strides=[2,2]>", (4, 6, 2, 2), 6),
    "grouped ConvTranspose": ("ConvTranspose<strides=[2,2],group=2>", (4, 3, 2, 2), 6),
    "Gemm": ("Gemm", (12, 6), 6),
    "turned Gemm": ("Gemm<transB=1>", (6, 12), 6),
    "MatMul": ("MatMul", (12, 6), None),
}
TRAININGS = {
    "sigmoid": {},
    "straight": {"rounding": "straight_through", "lr_round": 3e-4},
    "scale": {"train_scale": True, "lr_scale": 1e-3},
}


@pytest.mark.parametrize("training", TRAININGS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_layer_is_fitted(tmp_path, kind, training):
    operator, weight, biases = KINDS[kind]
    image = "Conv" in operator
    sizes = "4,6,6" if image else "12"
    result = "6,p,q" if image else "6"
    inputs = "x, w" if biases is None else "x, w, b"
    constants = {"w": weight} if biases is None else {"w": weight, "b": np.linspace(-0.1, 0.1, biases, dtype="f")}
    text = f"(float[N,{sizes}] x) => (float[N,{result}] y) {{ [it] y = {operator}({inputs}) }}"
    shape = (4, 6, 6) if image else (12,)
    case = case_of(network(text.replace("[N,6,p", f"[N,{biases},p"), **constants), tmp_path, shape)
    cfg = AlgoConfig(iters=100, batch_size=16, correct_bias=False, **TRAININGS[training])
    swept = solve_all(case, cfg, seed=1)
    (unit,) = find_units(case.model, granularity="block")
    pair = swept.pair
    pair.read_samples(case.inputs, with_float=True)
    targets, chosen = pair.targets(unit), list(zip(pair.batches, pair.rows, strict=True))
    found = output_errors(pair, unit, targets, chosen)["y"]
    solved = pair.layers["it"]
    pair.adopt(case.quantized.layers, case.quantized.activations)
    assert found < 0.98 * output_errors(pair, unit, targets, chosen)["y"]
    nearest = case.quantized.layers["it"]
    assert np.any(solved.codes != nearest.codes)
    assert solved.codes.min() >= solved.qparams.qmin
    assert solved.codes.max() <= solved.qparams.qmax
    assert np.any(solved.qparams.scale != nearest.qparams.scale) == (training == "scale")


@pytest.mark.parametrize("training", TRAININGS)
def test_what_was_pruned_stays_pruned(make_case, training):
    case = make_case()
    rng = np.random.default_rng(0)
    layers = {}
    for name, layer in case.quantized.layers.items():
        target = np.where(rng.random(layer.codes.shape) < 0.5, 0, layer.weight).astype(np.float32)
        scale, zero = layer.qparams.broadcast_to(target.ndim)
        codes = np.clip(np.rint(target / scale) + zero, layer.qparams.qmin, layer.qparams.qmax).astype(np.int32)
        layers[name] = dataclasses.replace(layer, codes=codes, target=target)
    own = dataclasses.replace(case, quantized=dataclasses.replace(case.quantized, layers=layers))
    cfg = AlgoConfig(iters=20, batch_size=16, **TRAININGS[training])
    begun = solve_all(own, cfg)
    tuned = solve_all(
        dataclasses.replace(own, quantized=dataclasses.replace(own.quantized, layers=begun.pair.layers)),
        AlgoConfig(tune_iters=3), granularity="network", freeze_rounding=True,
    )  # fmt: skip
    for swept in (begun, tuned):
        for name, layer in swept.pair.layers.items():
            gone = layers[name].target == 0
            assert not layer.weight[gone].any()
            assert layer.weight[~gone].any()


@pytest.mark.parametrize("granularity", ["stage", "network"])
def test_larger_units_train(make_case, granularity):
    case = make_case(weight_bits=3)
    (first, *_) = solve_all(case, AlgoConfig(iters=60, batch_size=16), granularity=granularity).results
    assert set(first.layers) >= {"stem", "left", "right"}
    assert any(np.any(layer.codes != case.quantized.layers[name].codes) for name, layer in first.layers.items())
