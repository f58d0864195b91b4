"""Weights that several layers share are stored once where the layers ended the same."""

import dataclasses

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from networks import network

from dipo.export.formats import OnnxFormat
from dipo.export.target import Export, write_target
from dipo.export.targets import TARGETS
from dipo.graph.load import normalise
from dipo.graph.plan import QuantizedLayer, QuantizedModel, make_plan
from dipo.graph.sharing import stored_apart
from dipo.quant.codes import nearest_codes
from dipo.quant.ranges import weight_qparams
from dipo.quant.spec import Range, qparams_of
from dipo.recipe import PrecisionConfig

LEVELS = """(float[N,4,8,8] x) => (float[N,4,8,8] y, float[N,4,4,4] z) {
  [one] a = Conv<pads=[1,1,1,1]>(x, w, b)
  [two] y = Conv<pads=[1,1,1,1]>(a, w, b)
  [pool] c = MaxPool<kernel_shape=[2,2], strides=[2,2]>(x)
  [three] z = Conv<pads=[1,1,1,1]>(c, w, b)
}"""


def quantized_for(target, **skip):
    """The network of three layers with one weight, quantized for a target; the third reads the range of the first."""
    model = normalise(ir.from_proto(network(LEVELS, w=(4, 4, 3, 3), b=(4,))), source="test")
    plan = make_plan(model, TARGETS[target].spec, PrecisionConfig(**skip))
    layers = {}
    for name, layer in plan.layers.items():
        weight, bias = (model.graph.initializers[each].const_value.numpy() for each in (layer.weight, layer.bias))
        qparams = weight_qparams(weight, layer.spec, axis=layer.axis, method="minmax", percentile=99.9, name=name)
        layers[name] = QuantizedLayer(nearest_codes(weight, qparams), qparams, bias)
    ranges = {"x": Range(-3, 3), "c": Range(-3, 3)}
    activations = {name: qparams_of(ranges.get(name, Range(-5, 5)), spec) for name, spec in plan.activations.items()}
    return model, QuantizedModel(layers, activations).with_updates([], plan)


def write(target, model, quantized, folder, form="qdq"):
    export = Export(model, quantized, folder, metadata={}, form=OnnxFormat(form))
    return [onnx.load(file) for file in write_target(TARGETS[target], export, {}) if file.suffix == ".onnx"]


def of_shape(model, *shape):
    return [tensor for tensor in model.graph.initializer if tuple(tensor.dims) == shape]


@pytest.mark.parametrize(
    ("target", "form"),
    [(name, "qdq") for name in TARGETS] + [(name, "qop") for name in TARGETS if TARGETS[name].spec.int32_bias],
)
def test_a_shared_weight_is_stored_once(tmp_path, target, form):
    model, quantized = quantized_for(target)
    before = ir.to_proto(model).SerializeToString()
    for written in write(target, model, quantized, tmp_path, form):
        (weight,) = of_shape(written, 4, 4, 3, 3)
        assert weight.name in {"w", "w_quantized"}
        biases = {each.name for each in of_shape(written, 4) if "b" in each.name and "scale" not in each.name}
        assert len(biases) == (2 if TARGETS[target].spec.int32_bias else 1), "the second reads another range"
    assert ir.to_proto(model).SerializeToString() == before, "the network itself stays as it is"
    assert not stored_apart(model, quantized)


def test_layers_that_were_trained_apart_stay_apart(tmp_path):
    model, quantized = quantized_for("qnn")
    two = quantized.layers["two"]
    other = dataclasses.replace(two, codes=np.where(two.codes > 0, two.codes - 1, two.codes))
    quantized = dataclasses.replace(quantized, layers={**quantized.layers, "two": other})
    for written in write("qnn", model, quantized, tmp_path):
        assert len(of_shape(written, 4, 4, 3, 3)) == 2
    said = stored_apart(model, quantized)
    assert list(said) == ["w"]
    assert said["w"] == (
        "3 layers share this weight in the model's file, and it is stored 2 times: 'one' and 'two' were trained apart"
    )


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"qmin": -7, "qmax": 7}, "have other widths"),
        ({"axis": 1}, "lie along other axes"),
    ],
)
def test_layers_with_other_grids_are_not_said_to_be_trained(changed, reason):
    model, quantized = quantized_for("ort")
    two = quantized.layers["two"]
    other = dataclasses.replace(two, qparams=dataclasses.replace(two.qparams, **changed))
    said = stored_apart(model, dataclasses.replace(quantized, layers={**quantized.layers, "two": other}))
    assert reason in said["w"]
    assert "trained" not in said["w"]


def test_a_float_layer_beside_a_quantized_one_is_named():
    model, quantized = quantized_for("ort", skip=["two"])
    assert stored_apart(model, quantized)["w"].endswith("one of 'one' and 'two' stays float")


def test_float_layers_share_too(tmp_path):
    model, quantized = quantized_for("ort", skip=["one", "three"])
    (written,) = write("ort", model, quantized, tmp_path)
    assert sorted(tensor.data_type for tensor in of_shape(written, 4, 4, 3, 3)) == [
        onnx.TensorProto.FLOAT,
        onnx.TensorProto.INT8,
    ]


def test_weights_that_are_equal_but_not_shared_stay_the_users(tmp_path):
    proto = network(LEVELS.replace("(a, w, b)", "(a, w2, b)"), w=(4, 4, 3, 3), w2=(4, 4, 3, 3), b=(4,))
    model = normalise(ir.from_proto(proto), source="test")
    written = write("ort", model, QuantizedModel({}, {}), tmp_path)[0]
    assert {tensor.name for tensor in of_shape(written, 4, 4, 3, 3)} == {"w", "w2"}
