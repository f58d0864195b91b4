"""The fused, differentiable unit against the plain one."""

import torch

from dipo.algo.fused_unit import FusedFakeQuant, FusedUnit, Quantizer, fuse
from dipo.graph.torch_module import GraphModule
from dipo.quant import kernels
from dipo.quant.functional import TorchQParams, fake_quantize

G = torch.Generator().manual_seed(0)


def program_of(case, names, values):
    nodes = [node for node in case.model.graph if node.name in names]
    module = GraphModule(case.model, nodes=nodes, outputs=["r2"])
    quantizers = {}
    for value in values:
        q = case.quantized.activations[value]
        quantizers[value] = Quantizer(
            scale=torch.tensor(float(q.scale)).requires_grad_(),
            qlow=torch.tensor(float(q.qmin - q.zero_point)),
            qhigh=torch.tensor(float(q.qmax - q.zero_point)),
            q_prob=1.0,
        )
    constants = {name: module.constant(name).clone().requires_grad_() for name in module.constant_names}
    steps = fuse(case.model, nodes, set(values))
    return module, FusedUnit(steps, constants, quantizers, kernels.eager())


def block_names(case):
    order = [node.name for node in case.model.graph]
    return order[order.index("left") : order.index("left") + 5]


def test_fused_units_compute_what_the_plain_ones_do(make_case):
    case = make_case()
    module, program = program_of(case, block_names(case), ["r1", "r2"])
    sites = [step for step in program.steps if isinstance(step, FusedFakeQuant)]
    assert [(site.value, len(site.inputs), site.low) for site in sites] == [("r1", 1, 0.0), ("r2", 2, 0.0)]
    x = torch.randn(4, 8, 8, 8, generator=G)
    qparams = {n: TorchQParams.of(case.quantized.activations[n], num_dims=4, device=x.device) for n in ("r1", "r2")}

    def hook(name, value):
        return fake_quantize(value, qparams[name]) if name in qparams else value

    expected = hook("r2", module({"r0": x}, hook=hook)["r2"])
    (found,) = program.run({"r0": x}, ["r2"], torch.Generator())
    step = float(case.quantized.activations["r2"].scale)
    # x * (1 / scale) and x / scale differ in the last bit: a value on the edge may take the neighbouring code.
    assert ((found - expected).abs() < 1e-5).float().mean() > 0.999
    assert (found - expected).abs().max() < 1.01 * step


def test_gradients_are_those_of_the_straight_through_estimator(make_case):
    case = make_case()
    _, program = program_of(case, block_names(case), ["r1", "r2"])
    x, target = torch.randn(4, 8, 8, 8, generator=G), torch.randn(4, 8, 8, 8, generator=G)
    (out,) = program.run({"r0": x}, ["r2"], torch.Generator())
    leaves = [*program.constants.values(), *(q.scale for q in program.quantizers.values())]
    found = torch.autograd.grad((out - target).square().sum(), leaves)

    def reference(value, name):
        q = program.quantizers[name]
        v = value / q.scale
        rounded = v + (v.round() - v).detach()
        return rounded.clamp(q.qlow, q.qhigh) * q.scale

    w = program.constants
    hidden = reference(torch.nn.functional.conv2d(x, w["w1"], w["b1"], padding=1).relu(), "r1")
    result = reference((torch.nn.functional.conv2d(hidden, w["w2"], w["b2"], padding=1) + x).relu(), "r2")
    expected = torch.autograd.grad((result - target).square().sum(), leaves)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-3, atol=2e-3)


def test_a_sum_may_broadcast():
    """Shapes that nobody knows before the network runs do not say so."""
    quantizer = Quantizer(torch.tensor(0.5).requires_grad_(), torch.tensor(-4.0), torch.tensor(3.0), q_prob=1.0)
    unit = FusedUnit([FusedFakeQuant("s", ("a", "b"), 0.0, float("inf"))], {}, {"s": quantizer}, kernels.eager())
    a, b = torch.randn(1, 3, generator=G).requires_grad_(), torch.randn(5, 3, generator=G).requires_grad_()
    (found,) = unit.run({"a": a, "b": b}, ["s"], torch.Generator())
    assert torch.equal(found, ((a + b).clamp(min=0) / 0.5).round().clamp(-4, 3) * 0.5)
    grad_a, grad_b = torch.autograd.grad(found.sum(), (a, b))
    assert torch.equal(grad_a, grad_b.sum(0, keepdim=True))
