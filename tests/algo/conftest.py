"""A small residual network with samples, planned and calibrated, for the tests of the algorithms."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

from dipo.algo.activation_cache import Batch, cut
from dipo.algo.calibrate import Observed, activation_ranges, observe, quantize_model
from dipo.algo.held_out import held_out_samples
from dipo.export.targets import TARGETS
from dipo.graph.load import load
from dipo.graph.plan import Plan, QuantizedModel, make_plan
from dipo.recipe import CalibConfig, PrecisionConfig

NETWORK = """
<ir_version: 10, opset_import: ["" : 18]>
net (float[batch, 3, 8, 8] input) => (float[batch, 5] logits)
<float[8, 3, 3, 3] w0, float[8] b0, float[8, 8, 3, 3] w1, float[8] b1,
 float[8, 8, 3, 3] w2, float[8] b2, float[5, 8] w3, float[5] b3>
{
  [stem] c0 = Conv <pads = [1, 1, 1, 1]> (input, w0, b0)
  r0 = Relu (c0)
  [left] c1 = Conv <pads = [1, 1, 1, 1]> (r0, w1, b1)
  r1 = Relu (c1)
  [right] c2 = Conv <pads = [1, 1, 1, 1]> (r1, w2, b2)
  s = Add (r0, c2)
  r2 = Relu (s)
  g = GlobalAveragePool (r2)
  f = Flatten (g)
  [head] logits = Gemm <transB = 1> (f, w3, b3)
}
"""


@dataclass(frozen=True)
class Case:
    """A network on its way to being quantized."""

    model: ir.Model
    plan: Plan
    samples: torch.Tensor
    batches: list[Batch]
    observed: Observed
    quantized: QuantizedModel

    def inputs(self, batch: Batch) -> dict[str, torch.Tensor]:
        return {"input": self.samples[batch.start : batch.stop]}

    def observe(self, batches: list[Batch]) -> Observed:
        return observe(
            self.model, plan=self.plan, batches=batches, inputs=self.inputs, device=torch.device("cpu"),
            held_out=held_out_samples(len(self.samples)),
        )  # fmt: skip


@pytest.fixture(scope="session")
def network(tmp_path_factory):
    proto = onnx.parser.parse_model(NETWORK)
    rng = np.random.default_rng(0)
    shapes = {
        "w0": (8, 3, 3, 3),
        "w1": (8, 8, 3, 3),
        "w2": (8, 8, 3, 3),
        "w3": (5, 8),
        "b0": 8,
        "b1": 8,
        "b2": 8,
        "b3": 5,
    }
    for name, shape in shapes.items():
        fan_in = np.prod(shape[1:]) if isinstance(shape, tuple) else 10
        array = (rng.standard_normal(shape) / np.sqrt(fan_in)).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    path = tmp_path_factory.mktemp("net") / "net.onnx"
    onnx.save(proto, path)
    return path


@pytest.fixture
def make_case(network):
    def make(*, weight_bits=4, act_bits=4, num=40, batch_size=8, platform="ort", correlated=False):
        torch.set_num_threads(1)
        model = load(network)
        plan = make_plan(
            model,
            TARGETS[platform].spec,
            PrecisionConfig(weight_bits=weight_bits, act_bits=act_bits, first_last_bits=None),
        )
        generator = torch.Generator().manual_seed(1)
        samples = torch.randn(num, 3, 8, 8, generator=generator)
        if correlated:
            # Of independent inputs the nearest codes are the best.
            samples = 0.3 * samples + torch.randn(num, 1, 1, 1, generator=generator)
        case = Case(model, plan, samples, cut(num, batch_size), None, None)
        observed = case.observe(case.batches)
        ranges = activation_ranges(plan, observed.statistics, cfg=CalibConfig())
        quantized = quantize_model(model, plan=plan, ranges=ranges, cfg=CalibConfig())
        return Case(model, plan, samples, case.batches, observed, quantized)

    return make
