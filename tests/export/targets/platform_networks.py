"""One small network for all platforms, quantized by a platform's own rules on ranges written down by hand."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnx.shape_inference
import onnx_ir as ir
from onnx.numpy_helper import from_array

from dipo.graph.accessors import array_of
from dipo.graph.plan import Plan, QuantizedLayer, QuantizedModel, make_plan
from dipo.graph.target_spec import TargetSpec
from dipo.quant.spec import QParams, QuantSpec, Range, qparams_between, qparams_of
from dipo.recipe import PrecisionConfig

GOLDEN = Path(__file__).parent / "golden"

NETWORK = """<ir_version: 8, opset_import: ["": 13]>
    small (float[N,3,8,8] x) => (float[N,5] y) {
        [conv1] c1 = Conv<pads=[1,1,1,1]>(x, w1, b1)
        [relu1] r1 = Relu(c1)
        [conv2] c2 = Conv<pads=[1,1,1,1]>(r1, w2, b2)
        [add] s = Add(c2, r1)
        [relu2] r2 = Relu(s)
        [max] p1 = MaxPool<kernel_shape=[2,2], strides=[2,2]>(r2)
        [mean] p2 = AveragePool<kernel_shape=[2,2], strides=[2,2]>(r1)
        [join] j = Concat<axis=1>(p1, p2)
        [gap] g = GlobalAveragePool(j)
        [flat] f = Flatten(g)
        [fc] z = Gemm<transB=1>(f, w3, b3)
        [sig] y = Sigmoid(z)
    }"""

SHAPES = {"w1": (4, 3, 3, 3), "b1": (4,), "w2": (4, 4, 3, 3), "b2": (4,), "w3": (5, 8), "b3": (5,)}

RANGES = {
    "x": Range(-2.0, 2.25),
    "c1": Range(-4.0, 3.5),
    "r1": Range(0.0, 3.5),
    "c2": Range(-5.0, 4.0),
    "s": Range(-5.0, 6.5),
    "r2": Range(0.0, 6.5),
    "p1": Range(0.0, 6.5),
    "p2": Range(0.0, 2.5),
    "j": Range(0.0, 6.0),
    "g": Range(0.0, 3.0),
    "f": Range(0.0, 3.0),
    "z": Range(-8.0, 7.0),
    "y": Range(0.0, 1.0),
}
ALL_VALUES = list(RANGES)
"""What makes and reads floats, in topological order."""


def parameters() -> dict[str, onnx.TensorProto]:
    """The small network's weights and biases: numbers that no machine computes otherwise."""
    found = {}
    for number, (name, shape) in enumerate(SHAPES.items()):
        count = np.arange(np.prod(shape)) * 37 + 11 * number
        found[name] = from_array(((count % 101 - 47) / 256).astype(np.float32).reshape(shape), name)
    return found


def small_network() -> ir.Model:
    proto = onnx.parser.parse_model(NETWORK)
    proto.graph.initializer.extend(parameters().values())
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto))


def parsed(text: str, **constants: np.ndarray) -> ir.Model:
    """A graph in ONNX's text syntax; without constants of its own it has those of the small network."""
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 13]> g {text}')
    own = {name: from_array(array, name) for name, array in constants.items()}
    kept = own or {name: tensor for name, tensor in parameters().items() if name in text}
    proto.graph.initializer.extend(kept.values())
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto))


def quantize_weight(weight: np.ndarray, spec: QuantSpec, axis: int) -> tuple[np.ndarray, QParams]:
    others = tuple(i for i in range(weight.ndim) if i != axis) if spec.per_channel else None
    qparams = qparams_between(
        weight.min(axis=others), weight.max(axis=others), spec, axis=axis if spec.per_channel else None
    )
    scale, zero_point = qparams.broadcast_to(weight.ndim)
    return np.clip(np.rint(weight / scale) + zero_point, spec.qmin, spec.qmax).astype(np.int32), qparams


def platform_case(rules: TargetSpec, **precision: object) -> tuple[ir.Model, QuantizedModel]:
    """The small network on a platform's grids."""
    model = small_network()
    plan = make_plan(model, rules, PrecisionConfig(**precision))
    return model, quantize_all(model, plan, RANGES)


def without(quantized: QuantizedModel, *names: str) -> QuantizedModel:
    """The model with nothing known of some activations."""
    return replace(quantized, activations={k: v for k, v in quantized.activations.items() if k not in names})


def check_golden(platform: str, *files: Path) -> None:
    """Compares files with those that are kept; with WRITE_GOLDEN=1 in the environment, keeps them."""
    for file in files:
        kept = GOLDEN / platform / file.name
        if os.environ.get("WRITE_GOLDEN") == "1":
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_text(file.read_text())
        assert file.read_text() == kept.read_text(), f"{file.name} is not what it was, see {kept}"


def codes_from_range(array: np.ndarray, low: float, high: float, *, levels: int) -> np.ndarray:
    """What a consumer that knows the ends alone makes of a tensor: codes from 0 up, the zero rounded to one of them."""
    scale = (high - low) / levels
    return np.clip(np.rint(array / scale) + np.rint(-low / scale), 0, levels)


def quantize_all(model: ir.Model, plan: Plan, ranges: Mapping[str, Range]) -> QuantizedModel:
    """Weights rounded to the nearest, activations on these ranges, -1 to 3 where none is given."""
    nodes = {node.name: node for node in model.graph}
    layers = {}
    for name, layer in plan.layers.items():
        codes, qparams = quantize_weight(array_of(nodes[name].inputs[1]), layer.spec, layer.axis)
        layers[name] = QuantizedLayer(codes, qparams, array_of(nodes[name].inputs[2]))
    wanted = {name: (spec.fixed or ranges.get(name, Range(-1.0, 3.0)), spec) for name, spec in plan.activations.items()}
    activations = {name: qparams_of(*each) for name, each in wanted.items()}
    return QuantizedModel(layers, activations).with_updates([], plan)
