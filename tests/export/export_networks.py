"""Small networks quantized by hand, and what they compute by the definition of quantization alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import onnxruntime as ort

from dipo.graph.plan import QuantizedLayer, QuantizedModel
from dipo.quant.spec import QParams, QuantSpec

Arrays = dict[str, np.ndarray]


def fit(array: np.ndarray, spec: QuantSpec, axis: int | None = None) -> QParams:
    """Parameters that just cover the array."""
    others = None if axis is None else tuple(i for i in range(array.ndim) if i != axis)
    low, high = np.minimum(array.min(axis=others), 0), np.maximum(array.max(axis=others), 0)
    if spec.symmetric:
        scale = np.maximum(-low, high) / ((1 << (spec.bits - 1)) - 1)
        zero_point = np.full(np.shape(scale), 0 if spec.signed else 1 << (spec.bits - 1))
    else:
        scale = (high - low) / (spec.qmax - spec.qmin)
        zero_point = spec.qmin + np.rint(-low / scale)
    return QParams(np.asarray(scale, np.float32), np.asarray(zero_point, np.int32), spec.qmin, spec.qmax, axis)


def codes_of(array: np.ndarray, qparams: QParams) -> np.ndarray:
    scale, zero_point = qparams.broadcast_to(array.ndim)
    return np.clip(np.rint(array / scale) + zero_point, qparams.qmin, qparams.qmax).astype(np.int32)


def fake_quantize(array: np.ndarray, qparams: QParams) -> np.ndarray:
    scale, zero_point = qparams.broadcast_to(array.ndim)
    return ((codes_of(array, qparams) - zero_point) * scale).astype(np.float32)


def evaluate(
    model: ir.Model,
    feeds: Mapping[str, np.ndarray],
    *,
    constants: Mapping[str, np.ndarray] | None = None,
    activations: Mapping[str, QParams] | None = None,
) -> Arrays:
    """All values of a float graph, computed node by node; what `activations` names is read fake-quantized."""
    constants, activations = constants or {}, activations or {}
    proto = ir.to_proto(model)
    values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    values |= {**constants, **feeds}
    for node in proto.graph.node:
        names = [name for name in node.input if name]
        read = {n: fake_quantize(values[n], activations[n]) if n in activations else values[n] for n in names}
        inputs = [
            onnx.helper.make_tensor_value_info(n, onnx.helper.np_dtype_to_tensor_dtype(read[n].dtype), None)
            for n in dict.fromkeys(names)
        ]
        outputs = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in node.output]
        graph = onnx.helper.make_graph([node], "node", inputs, outputs)
        single = onnx.helper.make_model(graph, opset_imports=proto.opset_import, ir_version=proto.ir_version)
        session = ort.InferenceSession(single.SerializeToString(), providers=["CPUExecutionProvider"])
        values |= dict(zip(node.output, session.run(None, read), strict=True))
    return values


@dataclass(frozen=True)
class Case:
    """A float network, what it was quantized to, and the input that its ranges come from."""

    model: ir.Model
    quantized: QuantizedModel
    feeds: Arrays

    def simulate(self, *, int32_bias: bool, feeds: Arrays | None = None) -> Arrays:
        """The quantized network's values, from nothing but the definition of quantization."""
        constants: Arrays = {}
        nodes = {node.name: node for node in self.model.graph}
        for name, layer in self.quantized.layers.items():
            node = nodes[name]
            constants[node.inputs[1].name] = layer.weight
            if layer.bias is not None:
                data = self.quantized.activations.get(node.inputs[0].name)
                bias = layer.bias
                if int32_bias and data is not None:
                    scale = data.scale * np.resize(layer.qparams.scale, bias.shape)
                    bias = np.where(np.abs(bias / scale) < 2**30, np.rint(bias / scale) * scale, bias)
                constants[node.inputs[2].name] = bias.astype(np.float32)
        return evaluate(self.model, feeds or self.feeds, constants=constants, activations=self.quantized.activations)


def random_model(text: str, *, seed: int = 0, **shapes: tuple[int, ...]) -> ir.Model:
    """A model from ONNX's text syntax, and random initializers of these names and shapes."""
    proto = onnx.parser.parse_model(text)
    rng = np.random.default_rng(seed)
    for name, shape in shapes.items():
        array = rng.normal(0, 1 / np.sqrt(np.prod(shape[1:])) if len(shape) > 1 else 0.3, shape).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    onnx.checker.check_model(proto)
    return ir.from_proto(proto)


def quantize(
    model: ir.Model, feeds: Arrays, *, weights: QuantSpec, acts: QuantSpec, layers: Mapping[str, int], values: list[str]
) -> Case:
    """Quantize to the nearest, with ranges that cover `feeds`; `layers` maps nodes to their weights' channel axis."""
    seen = evaluate(model, feeds)
    nodes = {node.name: node for node in model.graph}
    quantized = {}
    for name, axis in layers.items():
        weight = nodes[name].inputs[1].const_value.numpy()
        qparams = fit(weight, weights, axis if weights.per_channel else None)
        bias = nodes[name].inputs[2].const_value.numpy() if len(nodes[name].inputs) > 2 else None
        quantized[name] = QuantizedLayer(codes_of(weight, qparams), qparams, bias)
    activations = {name: fit(seen[name], acts) for name in values}
    return Case(model, QuantizedModel(quantized, activations), feeds)


RESIDUAL = """<ir_version: 8, opset_import: ["": 13]>
    residual (float[N,3,8,8] x) => (float[N,5] y) {
        [conv1] c1 = Conv<pads=[1,1,1,1]>(x, w1, b1)
        [relu1] r1 = Relu(c1)
        [conv2] c2 = Conv<pads=[1,1,1,1]>(r1, w2, b2)
        [add] s = Add(c2, r1)
        [relu2] r2 = Relu(s)
        [pool] p = GlobalAveragePool(r2)
        [flat] f = Flatten(p)
        [fc] y = Gemm<transB=1>(f, w3, b3)
    }"""


def residual_case(weights: QuantSpec, acts: QuantSpec) -> Case:
    """A residual block with a classifier."""
    model = random_model(RESIDUAL, w1=(4, 3, 3, 3), b1=(4,), w2=(4, 4, 3, 3), b2=(4,), w3=(5, 4), b3=(5,))
    feeds = {"x": np.random.default_rng(1).normal(size=(2, 3, 8, 8)).astype(np.float32)}
    return quantize(
        model,
        feeds,
        weights=weights,
        acts=acts,
        layers={"conv1": 0, "conv2": 0, "fc": 0},
        values=["x", "r1", "c2", "r2", "p", "f"],
    )
