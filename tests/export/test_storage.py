from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from export_networks import Case, quantize, random_model, residual_case
from onnx.numpy_helper import to_array

from dipo.export.qdq import write_qdq
from dipo.export.qoperator import write_qoperator
from dipo.export.storage import (
    FOR_KERNELS,
    KERNEL_WIDTHS,
    PACKED_WIDTHS,
    Storage,
    required_opset,
    storage_type,
    type_limits,
)
from dipo.export.targets import TARGETS
from dipo.quant.spec import QParams, QuantSpec

ORT = TARGETS["ort"].spec
PLAIN = replace(ORT, int8_kernels=False)
A8 = QuantSpec(8, signed=False, symmetric=False)
PACKED = Storage(packed=True)
two_bits = pytest.mark.skipif(2 not in PACKED_WIDTHS, reason="the installed onnx has no 2-bit types")
TYPES = onnx.TensorProto


def weights(bits: int, *, symmetric: bool) -> QuantSpec:
    return QuantSpec(bits, signed=symmetric, symmetric=symmetric, per_channel=True)


def write(case: Case, path, *, rules=ORT, storage: Storage = FOR_KERNELS) -> onnx.ModelProto:
    write_qdq(case.model, case.quantized, path, rules=rules, metadata={}, storage=storage)
    onnx.checker.check_model(str(path), full_check=True)
    return onnx.load(path)


def stored(proto: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    return {tensor.name: tensor for tensor in proto.graph.initializer}


@pytest.mark.parametrize(
    ("limits", "widths", "expected"),
    [
        ((-8, 7), {4, 8}, "INT4"),
        ((0, 15), {4, 8}, "UINT4"),
        ((0, 7), {4, 8}, "UINT4"),
        ((-8, 8), {4, 8}, "INT8"),
        ((0, 15), KERNEL_WIDTHS, "UINT8"),
        ((0, 256), KERNEL_WIDTHS, "UINT16"),
        pytest.param((-2, 1), PACKED_WIDTHS, "INT2", marks=two_bits),
        pytest.param((0, 3), PACKED_WIDTHS, "UINT2", marks=two_bits),
    ],
)
def test_narrowest_type_that_holds_the_codes(limits, widths, expected):
    assert storage_type(QParams(np.float32(1), np.int32(0), *limits), widths).name == expected


@pytest.mark.parametrize("name", ["INT4", "UINT4", "INT8", "UINT8", "INT16", "UINT16"])
def test_limits_are_those_of_the_type(name):
    low, high = type_limits(ir.DataType[name])
    held = np.array([low, high]).astype(ir.DataType[name].numpy()).astype(int)
    assert held.tolist() == [low, high]
    assert high - low == 2 ** ir.DataType[name].bitwidth - 1


@pytest.mark.parametrize(
    ("types", "opset"),
    [([], 13), (["INT8", "UINT8"], 13), (["INT8", "UINT16"], 21), (["UINT4", "UINT8"], 21), (["INT2", "UINT8"], 25)],
)
def test_opset_that_types_need(types, opset):
    assert required_opset([ir.DataType[name] for name in types]) == opset


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize("rules", [ORT, PLAIN], ids=["ort", "plain"])
@pytest.mark.parametrize(
    ("bits", "dtypes", "opset"),
    [
        pytest.param(2, (TYPES.INT2, TYPES.UINT2), 25, marks=two_bits),
        (3, (TYPES.INT4, TYPES.UINT4), 21),
        (4, (TYPES.INT4, TYPES.UINT4), 21),
        (5, (TYPES.INT8, TYPES.UINT8), 13),
        (8, (TYPES.INT8, TYPES.UINT8), 13),
    ],
)
def test_packed_weights_mean_the_same(tmp_path, run, kernels, rules, bits, dtypes, opset, symmetric):
    case = residual_case(weights(bits, symmetric=symmetric), A8)
    proto = write(case, tmp_path / "packed.onnx", rules=rules, storage=PACKED)
    write(case, tmp_path / "plain.onnx", rules=rules)
    if bits <= 4:
        weight = stored(proto)["w2_quantized"]
        assert weight.data_type == dtypes[not symmetric]
        np.testing.assert_array_equal(to_array(weight).astype(int), case.quantized.layers["conv2"].codes)
    assert proto.opset_import[0].version == opset
    assert kernels(tmp_path / "packed.onnx") == kernels(tmp_path / "plain.onnx")
    for optimize in (False, True):
        plain = run(tmp_path / "plain.onnx", case.feeds, optimize=optimize)["y"]
        packed = run(tmp_path / "packed.onnx", case.feeds, optimize=optimize)["y"]
        np.testing.assert_array_equal(packed, plain)


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize("act_bits", [4, 3, 8])
def test_consumer_of_4_bits_reads_them_as_they_are(tmp_path, run, symmetric, act_bits):
    case = residual_case(weights(4, symmetric=symmetric), QuantSpec(act_bits, signed=symmetric, symmetric=symmetric))
    widths = frozenset({4, 8, 16})
    proto = write(case, tmp_path / "q.onnx", rules=PLAIN, storage=Storage(weights=widths, activations=widths))
    tensors = stored(proto)
    assert tensors["w1_quantized"].data_type == (TYPES.INT4 if symmetric else TYPES.UINT4)
    narrow, wide = (TYPES.INT4, TYPES.INT8) if symmetric else (TYPES.UINT4, TYPES.UINT8)
    assert tensors["r1_zero_point"].data_type == (narrow if act_bits <= 4 else wide)
    assert "Cast" not in {node.op_type for node in proto.graph.node}
    y = run(tmp_path / "q.onnx", case.feeds, optimize=False)["y"]
    np.testing.assert_allclose(y, case.simulate(int32_bias=True)["y"], rtol=1e-4, atol=1e-4)


def large_case(bits: int) -> Case:
    """Convolutions of 10.6 MB, quantized by channel."""
    model = random_model(
        """<ir_version: 8, opset_import: ["": 13]> g (float[N,8,8,8] x) => (float[N,256,4,4] y) {
            [conv1] a = Conv<pads=[1,1,1,1], strides=[2,2]>(x, w1, b1)
            [relu1] r = Relu(a)
            [conv2] b = Conv<pads=[1,1,1,1]>(r, w2, b2)
            [relu2] s = Relu(b)
            [conv3] c = Conv(s, w3, b3)
            [relu3] t = Relu(c)
            [conv4] y = Conv<pads=[1,1,1,1], group=256>(t, w4, b4)
        }""",
        w1=(512, 8, 3, 3), b1=(512,), w2=(512, 512, 3, 3), b2=(512,), w3=(256, 512, 1, 1), b3=(256,),
        w4=(256, 1, 3, 3), b4=(256,),
    )  # fmt: skip
    rng = np.random.default_rng(0)
    feeds = {"x": rng.normal(size=(1, 8, 8, 8)).astype(np.float32)}
    layers = {f"conv{number}": 0 for number in (1, 2, 3, 4)}
    return quantize(
        model, feeds, weights=weights(bits, symmetric=bits == 8), acts=A8, layers=layers, values=["x", "r", "s", "t"]
    )


@pytest.mark.parametrize("writer", [write_qdq, write_qoperator])
@pytest.mark.parametrize(("bits", "storage", "most"), [(8, FOR_KERNELS, 0.27), (4, PACKED, 0.16)])
def test_large_model_is_small_on_disk(tmp_path, run, writer, bits, storage, most):
    case = large_case(bits)
    ir.save(case.model, tmp_path / "float.onnx")
    writer(case.model, case.quantized, tmp_path / "q.onnx", rules=ORT, metadata={}, storage=storage)
    size = (tmp_path / "float.onnx").stat().st_size
    assert size >= 10e6
    assert (tmp_path / "q.onnx").stat().st_size <= most * size
    expected = case.simulate(int32_bias=True)["y"]
    y = run(tmp_path / "q.onnx", case.feeds)["y"]
    assert (y * expected).sum() / np.sqrt((y * y).sum() * (expected * expected).sum()) > 0.999


@pytest.mark.parametrize("writer", [write_qdq, write_qoperator])
def test_model_with_tensors_in_other_files_keeps_them_there(tmp_path, run, writer):
    case = large_case(8)
    ir.save(case.model, tmp_path / "float.onnx", external_data="float.data")
    (tmp_path / "out").mkdir()
    path = tmp_path / "out" / "quantized.onnx"
    writer(ir.load(tmp_path / "float.onnx"), case.quantized, path, rules=ORT, metadata={})
    (tmp_path / "float.data").unlink()
    assert sorted(each.name for each in path.parent.iterdir()) == ["quantized.onnx", "quantized.onnx.data"]
    assert path.stat().st_size < 20_000
    onnx.checker.check_model(str(path), full_check=True)
    writer(case.model, case.quantized, tmp_path / "whole.onnx", rules=ORT, metadata={})
    np.testing.assert_array_equal(run(path, case.feeds)["y"], run(tmp_path / "whole.onnx", case.feeds)["y"])
