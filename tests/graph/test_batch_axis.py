"""The axis that counts the samples, behind operators that move axes."""

import numpy as np
import onnx_ir as ir
import pytest
from networks import network
from onnx_ir.passes.common import ShapeInferencePass

from dipo.graph.batch_axis import batch_axes

STEPS = {
    "nothing": ("y = Relu(x)", 0),
    "convolution": ("y = Conv(x, w)", 0),
    "broadcast to more axes": ("y = Add(x, wide)", 1),
    "transposed": ("y = Transpose<perm=[1,0,2,3]>(x)", 1),
    "reversed": ("y = Transpose(x)", 3),
    "joined": ("y = Reshape(x, joined)", 0),
    "joined behind another": ("a = Transpose<perm=[1,0,2,3]>(x) \n y = Reshape(a, inner)", 2),
    "joined with one in front": ("a = Transpose<perm=[1,0,2,3]>(x) \n y = Reshape(a, flat)", None),
    "indexed": ("a = Transpose<perm=[1,0,2,3]>(x) \n y = Gather<axis=0>(a, first)", 0),
    "its own index": ("y = Gather<axis=0>(x, first)", None),
    "reduced": ("a = Transpose<perm=[1,2,0,3]>(x) \n y = ReduceMean<axes=[0],keepdims=0>(a)", 1),
    "reduced and kept": ("y = ReduceMean<axes=[2,3],keepdims=1>(x)", 0),
    "one more axis": ("y = Unsqueeze(x, axes)", 1),
    "one more axis and back": ("a = Unsqueeze(x, axes) \n y = Squeeze(a, axes)", 0),
    "flat": ("y = Flatten(x)", 0),
}
CONSTANTS = {
    "w": (4, 4, 1, 1),
    "wide": (1, 1, 4, 1, 1),
    "joined": np.array([12, 2, 2]),
    "inner": np.array([2, 2, 3, 4]),
    "flat": np.array([12, 4]),
    "first": np.array(0),
    "axes": np.array([0]),
}


@pytest.mark.parametrize(("text", "axis"), STEPS.values(), ids=STEPS)
def test_the_axis_of_the_samples(text, axis):
    used = {name: value for name, value in CONSTANTS.items() if name in text}
    model = ir.from_proto(network(f"(float[3,4,2,2] x) => (float y) {{ {text} }}", **used))
    model.graph.outputs[0].shape = None
    ShapeInferencePass()(model)
    assert batch_axes(model, 3).get(model.graph.outputs[0]) == axis
