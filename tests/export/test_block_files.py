"""Files with a scale for each block of a weight, and with weights in 4-bit types that the target reads itself."""

import dataclasses

import numpy as np
import onnx
import pytest
import torch
from networks import network, saved

from dipo.algo.activation_cache import cut
from dipo.algo.calibrate import activation_ranges, observe, quantize_model
from dipo.algo.simulate import simulate
from dipo.errors import UserError
from dipo.export.formats import OnnxFormat
from dipo.export.requantize import differences, requantize
from dipo.export.runtime import run_model
from dipo.export.target import Export, write_target
from dipo.export.targets import TARGETS
from dipo.graph.load import load
from dipo.graph.plan import make_plan
from dipo.recipe import CalibConfig, PrecisionConfig

CALIB = CalibConfig(weights="minmax", method="minmax")
TYPES = onnx.TensorProto
LAYERS = {
    "Conv": ("[layer] y = Conv<pads=[1,1,1,1]>(x, w, b)", (2, 20, 5, 5), {"w": (6, 20, 3, 3), "b": (6,)}),
    "Conv, grouped": ("[layer] y = Conv<group=2>(x, w, b)", (2, 40, 5, 5), {"w": (6, 20, 3, 3), "b": (6,)}),
    "Conv, no bias": ("[layer] y = Conv(x, w)", (2, 20, 5, 5), {"w": (6, 20, 3, 3)}),
    "Gemm": ("[layer] y = Gemm(x, w, b)", (4, 36), {"w": (36, 6), "b": (6,)}),
    "Gemm, transB": ("[layer] y = Gemm<transB=1>(x, w, b)", (4, 36), {"w": (6, 36), "b": (6,)}),
    "MatMul": ("[layer] y = MatMul(x, w)", (4, 36), {"w": (36, 6)}),
    "MatMul, batched": ("[layer] y = MatMul(x, w)", (3, 4, 36), {"w": (3, 36, 6)}),
}


@dataclasses.dataclass(frozen=True)
class Case:
    model: object
    plan: object
    quantized: object
    feeds: np.ndarray
    rules: object

    def inputs(self, batch):
        return {"x": torch.from_numpy(self.feeds[batch.start : batch.stop])}

    def simulated(self):
        found = simulate(
            self.model, plan=self.plan, quantized=self.quantized, rules=self.rules,
            batches=cut(len(self.feeds), len(self.feeds)), inputs=self.inputs, profile_samples=0,
            device=torch.device("cpu"), progress=lambda _: None,
        )  # fmt: skip
        return found.q_outputs["y"]

    def write(self, folder, *, form=None, **options):
        form = form or OnnxFormat()
        export = Export(self.model, self.quantized, folder, metadata={}, form=form)
        written = write_target(TARGETS[self.rules.name], export, options)
        onnx.checker.check_model(str(written[0]), full_check=True)
        return written[0], onnx.load(written[0])

    def deployed(self, path):
        return run_model(path, [{"x": self.feeds}], threads=1)["y"]


def case(name, folder, *, platform="ort", behind=False, **settings):
    text, shape, constants = LAYERS[name]
    rank = "N," + ",".join(map(str, shape[1:]))
    output = "float[N,6,a,b] y" if len(shape) == 4 else ("float[N,6] y" if len(shape) == 2 else "float[N,4,6] y")
    following = "[next] y = Conv(r, w2)" if len(shape) == 4 else "[next] y = MatMul(r, w2)"
    body = text if not behind else text.replace(" y = ", " m = ") + f"\n[act] r = Relu(m)\n{following}"
    more = {"w2": (6, 6, 1, 1) if len(shape) == 4 else (6, 6)} if behind else {}
    model = load(saved(network(f"(float[{rank}] x) => ({output}) {{\n{body}\n}}", **constants, **more), folder))
    rules = TARGETS[platform].spec
    how = {"weight_bits": 4, "act_bits": 8, "first_last_bits": None, **settings}
    plan = make_plan(model, rules, PrecisionConfig(**how))
    feeds = np.random.default_rng(3).uniform(-1, 2, shape).astype(np.float32)
    found = Case(model, plan, None, feeds, rules)
    seen = observe(
        model, plan=plan, batches=cut(len(feeds), len(feeds)), inputs=found.inputs, device=torch.device("cpu")
    ).calibration()
    ranges = activation_ranges(plan, seen.statistics, cfg=CALIB)
    quantized = quantize_model(model, plan=plan, ranges=ranges, cfg=CALIB)
    return dataclasses.replace(found, quantized=quantized)


def weight_reader(proto):
    made = {tensor.name: tensor for tensor in proto.graph.initializer}
    node = next(n for n in proto.graph.node if n.op_type == "DequantizeLinear" and n.input[0].startswith("w_"))
    return made[node.input[0]], made[node.input[1]], {a.name: a.i for a in node.attribute}


def same(a, b, limit=1e-5):
    assert a.shape == b.shape
    assert np.abs(a - b).max() < limit * np.abs(b).max()


@pytest.mark.parametrize("packed", [False, True], ids=["", "packed"])
@pytest.mark.parametrize("bits", [2, 4, 6, 8])
@pytest.mark.parametrize("name", LAYERS)
def test_onnx_runtime_computes_what_was_simulated(tmp_path, name, bits, packed):
    made = case(name, tmp_path, weight_bits=bits, weight_block=16)
    layer = made.quantized.layers["layer"]
    assert layer.qparams.blocks is not None
    path, proto = made.write(tmp_path / "out", form=OnnxFormat(packed=packed))
    same(made.deployed(path), made.simulated())
    codes, scale, attributes = weight_reader(proto)
    assert attributes == {"axis": layer.qparams.blocks.axis, "block_size": 16}
    assert list(scale.dims) == list(layer.qparams.scale.shape)
    assert -(-codes.dims[attributes["axis"]] // 16) == scale.dims[attributes["axis"]]
    if bits == 4:
        assert codes.data_type in {TYPES.INT4, TYPES.UINT4}
    assert not any(node.op_type == "Cast" for node in proto.graph.node)
    narrowest = packed and bits == 2 and layer.bias is not None
    assert proto.opset_import[0].version == (25 if narrowest else 21)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("name", ["Conv", "Conv, no bias", "Gemm", "MatMul"])
def test_with_quantized_layers_behind(tmp_path, name, bits):
    made = case(name, tmp_path, weight_bits=bits, weight_block=16, behind=True)
    for form in (OnnxFormat(), OnnxFormat("qop")):
        path, _ = made.write(tmp_path / str(form), form=form)
        same(made.deployed(path), made.simulated())


def test_integer_operators_leave_layers_with_blocks_alone(tmp_path):
    made = case("Gemm", tmp_path, weight_block=16, behind=True)
    _, proto = made.write(tmp_path / "out", form=OnnxFormat("qop"))
    operators = {node.name: node.op_type for node in proto.graph.node}
    assert operators["layer"] == "Gemm" and operators["next"] == "MatMulIntegerToFloat"


@pytest.mark.parametrize("name", ["Conv", "Gemm", "MatMul"])
def test_no_newer_opset_without_blocks(tmp_path, name):
    made = case(name, tmp_path)
    _, proto = made.write(tmp_path / "out")
    assert proto.opset_import[0].version == 17
    assert weight_reader(proto)[0].data_type == TYPES.INT8
    assert "block_size" not in weight_reader(proto)[2]


@pytest.mark.parametrize("block", [None, 12])
@pytest.mark.parametrize("name", ["Gemm", "Gemm, transB", "MatMul", "Conv"])
@pytest.mark.parametrize("platform", ["trt", "openvino"])
def test_4_bits_lie_in_a_4_bit_type_that_the_target_reads(tmp_path, platform, name, block):
    made = case(name, tmp_path, platform=platform, weight_block=block)
    path, proto = made.write(tmp_path / "out")
    codes, _, attributes = weight_reader(proto)
    blocked = block is not None and name != "Conv"  # 20 inputs are no whole number of blocks
    assert ("block_size" in attributes) == blocked
    native = platform == "openvino" or name != "Conv"
    assert codes.data_type == (TYPES.INT4 if native else TYPES.INT8)
    assert proto.opset_import[0].version == (21 if native else 17)
    assert not any(node.op_type == "Cast" for node in proto.graph.node)
    same(made.deployed(path), made.simulated())


def test_tensorrt_8_has_neither(tmp_path):
    made = case("Gemm", tmp_path, platform="trt")
    _, proto = made.write(tmp_path / "old", version="8.6.1")
    assert weight_reader(proto)[0].data_type == TYPES.INT8 and proto.opset_import[0].version == 17
    made = case("Gemm", tmp_path, platform="trt", weight_block=12)
    with pytest.raises(
        UserError, match="layer 'layer' has a scale for each block, which TensorRT takes from version 10"
    ):
        made.write(tmp_path / "blocks", version="8.6.1")


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("block", [None, 12, 16])
@pytest.mark.parametrize("name", [name for name in LAYERS if name != "MatMul, batched"])
def test_openvino_computes_what_was_simulated(tmp_path, name, block, bits):
    runtime = pytest.importorskip("openvino")
    made = case(name, tmp_path, platform="openvino", weight_block=block, weight_bits=bits)
    path, _ = made.write(tmp_path / "out")
    compiled = runtime.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found, expected = np.ravel(compiled([made.feeds])[0]), np.ravel(made.simulated())
    assert found @ expected >= 0.995 * np.linalg.norm(found) * np.linalg.norm(expected)


@pytest.mark.parametrize("block", [None, 16])
@pytest.mark.parametrize("bits", [(8, 16), (16, 16), (4, 16)])
@pytest.mark.parametrize("name", LAYERS)
def test_16_bit_activations_are_computed_with_all_their_bits(tmp_path, name, bits, block):
    made = case(name, tmp_path, weight_bits=bits[0], act_bits=bits[1], weight_block=block)
    for form in (OnnxFormat(), OnnxFormat(packed=True), OnnxFormat("qop")):
        path, proto = made.write(tmp_path / str(form), form=form)
        types = {tensor.data_type for tensor in proto.graph.initializer}
        assert TYPES.UINT16 in types
        assert proto.opset_import[0].version == 21
        same(made.deployed(path), made.simulated())


def test_a_target_without_blocks_gets_the_weight_rounded_once_more(tmp_path):
    made = case("Gemm", tmp_path, weight_block=16)
    other = case("Gemm", tmp_path, platform="magicmind", weight_bits=8)
    found = requantize(made.model, made.quantized, plan=other.plan, ranges={}, cfg=CALIB, target="magicmind")
    assert found.weights["layer"] > 25 and found.quantized.layers["layer"].qparams.blocks is None
    assert any("a scale for all of a channel, not for 16 inputs" in line for line in differences(made.plan, other.plan))
    own = requantize(made.model, made.quantized, plan=made.plan, ranges={}, cfg=CALIB, target="ort")
    assert not own.weights
    np.testing.assert_array_equal(own.quantized.layers["layer"].weight, made.quantized.layers["layer"].weight)
