"""Convolutions in ONNX Runtime's order of sums: the same function as torch's, and ONNX Runtime's very bits."""

from __future__ import annotations

import platform

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from onnx import helper

from dipo.graph.ops.linear import conv
from dipo.graph.ops.ordered import ordered_conv
from dipo.graph.ops.reader import NodeReader

CASES = [
    # input, weight, attributes
    ((2, 3, 32, 32), (8, 3, 3, 3), {"pads": [1, 1, 1, 1], "strides": [2, 2]}),
    ((3, 16, 17, 19), (16, 16, 3, 3), {"pads": [0, 1, 2, 3]}),
    ((2, 40, 16, 16), (24, 40, 3, 3), {"auto_pad": "SAME_UPPER", "strides": [2, 1]}),
    ((2, 8, 9, 9), (8, 1, 3, 3), {"group": 8, "auto_pad": "SAME_LOWER", "strides": [2, 2]}),
    ((2, 8, 20, 20), (8, 1, 5, 5), {"group": 8, "pads": [2, 2, 2, 2]}),
    ((2, 8, 20, 20), (4, 2, 3, 3), {"group": 4, "dilations": [2, 3]}),
    ((2, 8, 20, 20), (16, 2, 3, 3), {"group": 4}),
    ((2, 150, 9, 9), (6, 150, 1, 1), {}),
    ((2, 300, 14, 14), (6, 300, 1, 1), {"strides": [1, 1]}),
    ((2, 4, 6, 8), (5, 4, 2, 4), {"dilations": [2, 1], "strides": [1, 2]}),
]


def make(x_shape, w_shape, attributes, *, biased):
    rng = np.random.default_rng(0)
    arrays = {"x": rng.standard_normal(x_shape), "w": rng.standard_normal(w_shape)}
    if biased:
        arrays["b"] = rng.standard_normal(w_shape[0])
    arrays = {name: array.astype(np.float32) for name, array in arrays.items()}
    node = helper.make_node("Conv", list(arrays), ["y"], **attributes)
    inputs = [helper.make_tensor_value_info(name, 1, array.shape) for name, array in arrays.items()]
    graph = helper.make_graph([node], "g", inputs, [helper.make_tensor_value_info("y", 1, None)])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return model, arrays


def reader(model):
    return NodeReader(next(iter(ir.from_proto(model).graph)), 17)


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize(("x_shape", "w_shape", "attributes"), CASES)
def test_the_same_function(x_shape, w_shape, attributes, biased):
    model, arrays = make(x_shape, w_shape, attributes, biased=biased)
    tensors = [torch.from_numpy(array) for array in arrays.values()]
    wanted = conv(reader(model))(*(tensor.double() for tensor in tensors))
    for format_ in (torch.contiguous_format, torch.channels_last):
        x, w, *b = (t.contiguous(memory_format=format_) if t.ndim == 4 else t for t in tensors)
        torch.testing.assert_close(ordered_conv(reader(model))(x, w, *b).double(), wanted, rtol=1e-5, atol=1e-4)


@pytest.mark.skipif(platform.machine() not in {"x86_64", "AMD64"}, reason="the order is that of x86")
@pytest.mark.parametrize(("x_shape", "w_shape", "attributes"), CASES)
def test_the_same_bits_as_onnx_runtime(x_shape, w_shape, attributes):
    model, arrays = make(x_shape, w_shape, attributes, biased=True)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    (wanted,) = session.run(None, arrays)
    made = ordered_conv(reader(model))(*map(torch.from_numpy, arrays.values()))
    assert np.array_equal(made.numpy(), wanted)


def test_images_are_cut_into_parts_that_do_not_change_them(monkeypatch):
    model, arrays = make(*CASES[1], biased=True)
    tensors = [torch.from_numpy(array) for array in arrays.values()]
    whole = ordered_conv(reader(model))(*tensors)
    monkeypatch.setattr("dipo.graph.ops.ordered.COLUMNS", 1)
    assert torch.equal(ordered_conv(reader(model))(*tensors), whole)


def test_another_rank_is_left_to_torch():
    model, arrays = make((2, 4, 9), (6, 4, 3), {}, biased=True)
    tensors = [torch.from_numpy(array) for array in arrays.values()]
    assert torch.equal(ordered_conv(reader(model))(*tensors), conv(reader(model))(*tensors))
