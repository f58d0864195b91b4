"""The Fisher diagonal against one backward pass for each sample."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from networks import network, saved

from dipo.algo.activation_cache import cut
from dipo.algo.collectives import SingleWorker
from dipo.algo.fisher import fisher_diagonals, normalised
from dipo.graph.accessors import array_of
from dipo.graph.load import load
from dipo.graph.sample_axis import SampleAxes
from dipo.graph.torch_module import GraphModule
from dipo.quant.rounding import flat

CPU = torch.device("cpu")


def diagonals(case, values, *, seed=7, batches=None):
    return fisher_diagonals(
        case.model, values, case.batches if batches is None else batches, case.inputs, seed=seed, device=CPU,
        samples=SampleAxes(),
    )  # fmt: skip


def of_samples(model, value, samples, *, batch_size, seed):
    """The diagonal of one value, for a network of the input x."""
    read = fisher_diagonals(
        model, [value], cut(len(samples), batch_size), lambda batch: {"x": samples[batch.start : batch.stop]},
        seed=seed, device=CPU, samples=SampleAxes(),
    )  # fmt: skip
    return read[value]


def by_sample(value, tail, seed, index):
    """d log p(y) / d value, squared, for one sample; `tail` is the network behind the value."""
    leaf = value.detach().double().requires_grad_()
    out = tail(leaf)
    generator = np.random.default_rng([seed, 0, index])
    if out.ndim == 2:
        probabilities = out.detach().softmax(1)[0].numpy()
        drawn = int(np.searchsorted(np.cumsum(probabilities), generator.random()))
        likelihood = out.log_softmax(1)[0, drawn]
    else:
        noise = torch.from_numpy(generator.standard_normal(tuple(out.shape[1:])))
        likelihood = -0.5 * ((out.detach() + noise - out) ** 2).sum()
    likelihood.backward()
    return leaf.grad.square()


def test_it_is_the_squared_gradient_of_each_sample(make_case):
    case = make_case(num=12, batch_size=5)
    w = {name: torch.tensor(array_of(value)).double() for name, value in case.model.graph.initializers.items()}
    found = diagonals(case, ["r0", "r1"])
    for i, sample in enumerate(case.samples.double()):
        r0 = F.conv2d(sample[None], w["w0"], w["b0"], padding=1).relu()

        def behind_r1(r1, r0=r0):
            r2 = (r0 + F.conv2d(r1, w["w2"], w["b2"], padding=1)).relu()
            return r2.mean((2, 3)) @ w["w3"].T + w["b3"]

        def behind_r0(r0):
            r1 = F.conv2d(r0, w["w1"], w["b1"], padding=1).relu()
            r2 = (r0 + F.conv2d(r1, w["w2"], w["b2"], padding=1)).relu()
            return r2.mean((2, 3)) @ w["w3"].T + w["b3"]

        r1 = F.conv2d(r0, w["w1"], w["b1"], padding=1).relu()
        for name, value, tail in (("r0", r0, behind_r0), ("r1", r1, behind_r1)):
            expected = by_sample(value, tail, 7, i)
            torch.testing.assert_close(found[name].data[i], flat(expected).float(), rtol=1e-3, atol=1e-8)


def test_labels_are_drawn_as_the_network_expects_them(make_case):
    """At the logits the information is p (1 - p)."""
    case = make_case(num=8, batch_size=8)
    p = GraphModule(case.model, outputs=["logits"])(case.inputs(case.batches[0]))["logits"].softmax(1)
    draws = torch.stack([diagonals(case, ["logits"], seed=seed)["logits"].data for seed in range(400)])
    assert float((draws.mean(0) - p * (1 - p)).abs().max()) < 0.06
    assert len(torch.unique(draws[:, 0], dim=0)) > 1


def test_outputs_that_are_no_classes_are_means_of_gaussians(tmp_path):
    path = saved(
        network(
            """(float[N,2,4,4] x) => (float[N,3,4,4] y) {
              [a] v = Conv<pads=[1,1,1,1]>(x, w1)
              [b] y = Conv(v, w2)
            }""",
            w1=(4, 2, 3, 3), w2=(3, 4, 1, 1),
        ),
        tmp_path,
    )  # fmt: skip
    model, samples = load(path), torch.randn(6, 2, 4, 4)
    w = {name: torch.tensor(array_of(value)).double() for name, value in model.graph.initializers.items()}
    weights = [value for value in w.values() if value.ndim == 4]
    first, second = sorted(weights, key=lambda value: -value.shape[2])
    found = of_samples(model, "v", samples, batch_size=4, seed=3)
    for i, sample in enumerate(samples.double()):
        value = F.conv2d(sample[None], first, padding=1)
        expected = by_sample(value, lambda v: F.conv2d(v, second), 3, i)
        torch.testing.assert_close(found.data[i], flat(expected).float(), rtol=1e-3, atol=1e-6)


def test_probabilities_are_judged_by_their_logits(tmp_path):
    text = "(float[N,6] x) => (float[N,4] y) {{ [a] v = Gemm(x, w1) [r] h = Relu(v) [b] {}"
    ends = ("s = Gemm(h, w2) [p] y = Softmax<axis=1>(s) }", "y = Gemm(h, w2) }")
    samples = torch.randn(5, 6)
    found = []
    for index, end in enumerate(ends):
        path = saved(network(text.format(end), w1=(6, 8), w2=(8, 4)), tmp_path, f"{index}.onnx")
        found.append(of_samples(load(path), "h", samples, batch_size=5, seed=0).data)
    torch.testing.assert_close(found[0], found[1])
    assert float(found[0].max()) > 0


def test_shares_of_the_samples_give_the_rows_of_the_whole(make_case):
    case = make_case(num=20, batch_size=4)
    whole = diagonals(case, ["r0"])["r0"].data
    parts = [diagonals(case, ["r0"], batches=part)["r0"].data for part in (case.batches[:2], case.batches[2:])]
    assert torch.equal(torch.cat(parts), whole)


def test_normalised_diagonals_have_the_mean_1_over_all_outputs(make_case):
    case = make_case(num=20, batch_size=6)
    found = normalised(diagonals(case, ["r0", "r1"]), case.batches, owners=[0] * 4, collectives=SingleWorker())
    elements = torch.cat([capture.data.view(-1) for capture in found.values()])
    assert float(elements.mean()) == pytest.approx(1, abs=1e-5)
    assert float(elements.min()) >= 0


def test_a_value_that_nothing_depends_on_counts_evenly(make_case):
    case = make_case(num=8, batch_size=8)
    none = {name: type(c)(torch.zeros_like(c.data), c.shape, None) for name, c in diagonals(case, ["r0"]).items()}
    found = normalised(none, case.batches, owners=[0], collectives=SingleWorker())
    assert bool((found["r0"].data == 1).all())
