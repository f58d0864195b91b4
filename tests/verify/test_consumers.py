"""The consumers that are installed, on files that dipo has just written."""

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from matrix_networks import CASES
from onnx import numpy_helper

import dipo
from dipo.export.rknn_config import ENTRIES, read_ranges
from dipo.verify import aimet, influence, onnx_runtime, openvino, qnn, rknn
from dipo.verify.onnx_network import Network, is_inside_kernel
from dipo.verify.probe import Feed, feed_of, make_probe
from dipo.verify.verdict import Probe, State, TensorOutcome


def probe_of(folder):
    return make_probe(feed_of(folder / "quantized.onnx", data=None, samples=8), folder / "quantized.onnx")


@pytest.mark.parametrize("platform", ["ort", "openvino", "trt", "ti", "qnn"])
def test_onnx_runtime_keeps_every_grid(write, platform):
    folder = write(platform)
    verdict = onnx_runtime.check(folder / "quantized.onnx", probe_of(folder))
    assert verdict.count(State.ACCEPTED) >= 7 and not verdict.failed
    assert verdict.error.sqnr_db > 40
    biases = {fate.name for fate in verdict.tensors if fate.state is State.RECOMPUTED}
    assert biases <= {"b1", "b2", "b3"}


def test_a_scale_that_the_optimized_graph_lost(write):
    folder = write("ort")
    network = Network.read(folder / "quantized.onnx")
    optimized = Network.read(folder / "quantized.onnx")
    scale = next(tensor for tensor in optimized.model.graph.initializer if tensor.name == "c2_scale")
    scale.CopyFrom(numpy_helper.from_array(np.float32(0.123), "c2_scale"))
    fates = list(onnx_runtime._fates(network, optimized))
    assert [fate.name for fate in fates if fate.state is State.IGNORED] == ["c2"]


@pytest.mark.parametrize("name", ["b1", "b2"])
def test_a_bias_of_zeros_that_the_optimizer_merges_with_other_zeros(write, name):
    folder = write("qnn")
    file = folder / "quantized.onnx"
    model = onnx.load(file)
    bias = next(tensor for tensor in model.graph.initializer if tensor.name == f"{name}_quantized")
    bias.CopyFrom(numpy_helper.from_array(np.zeros_like(numpy_helper.to_array(bias)), bias.name))
    onnx.save(model, file)
    fates = {fate.name: fate for fate in onnx_runtime.check(file, probe_of(folder)).tensors}
    assert fates[bias.name] == TensorOutcome(bias.name, State.ACCEPTED)


def test_openvino(write):
    pytest.importorskip("openvino")
    folder = write("openvino")
    verdict = openvino.check(folder / "quantized.onnx", probe_of(folder))
    assert verdict.count(State.ACCEPTED) == len(verdict.tensors) > 7
    assert verdict.error.sqnr_db > 35


@pytest.mark.parametrize(
    ("case", "values", "why"), [("windows", {"t0", "t1"}, "merged in a kernel"), ("detector", {"xy3"}, "has its codes")]
)
def test_openvino_keeps_grids_that_it_names_nowhere(case, values, why):
    """A Transpose that it moves behind the grid, and a product whose codes are those of its factor."""
    pytest.importorskip("openvino")
    built = CASES[case]()
    result = dipo.quantize(built.model, built.calib(), algo="none", target="openvino")
    verdict = openvino.check(result.folder / "quantized.onnx", probe_of(result.folder))
    assert not verdict.failed and verdict.error.sqnr_db > 40
    assert {fate.name for fate in verdict.tensors if why in fate.why} == values


def test_a_grid_that_a_consumer_drops_is_told_by_its_outputs(write):
    folder = write("openvino")
    network, probe = Network.read(folder / "quantized.onnx"), probe_of(folder)
    grids = [grid for grid in network.grids() if not grid.stored]
    outcomes = {}
    for dropped in grids:
        onnx.save(influence._without(network, dropped), folder / "without.onnx")
        outputs = make_probe(Feed(probe.inputs, ""), folder / "without.onnx").outputs

        def reason(grid, outputs=outputs):
            return influence.reason_kept(network, grid, probe=probe, outputs=outputs)

        read = {grid.node: fake_quantize(grid) for grid in grids}
        fates = openvino._fates(grids, read, {}, reason)
        outcomes[dropped.name] = {fate.name for fate in fates if fate.state is State.IGNORED}
    without_effect = {name for name, ignored in outcomes.items() if not ignored}
    assert len(without_effect) < len(outcomes) // 2
    assert {name for name, ignored in outcomes.items() if name not in ignored} == without_effect
    assert all(
        influence.reason_kept(network, grid, probe=probe, outputs=probe.outputs) is not None for grid in grids
    ), "the file itself drops none"
    assert influence.reason_kept(network, grids[0], probe=Probe(probe.inputs, {}), outputs=probe.outputs) is None


def fake_quantize(grid):
    """Make OpenVINO's QuantizeLinear with the ends of a grid, as it stands behind its FakeQuantize."""
    ends = [np.float64((code - int(grid.zero_point)) * float(grid.scale)) for code in grid.limits]
    constants = [None, *(SimpleNamespace(get_node=lambda end=end: SimpleNamespace(data=end)) for end in ends)]
    source = SimpleNamespace(get_type_name=lambda: "FakeQuantize", input_value=constants.__getitem__)
    return SimpleNamespace(input_value=lambda _: SimpleNamespace(get_node=lambda: source))


@pytest.mark.parametrize("platform", ["snpe", "qnn"])
@pytest.mark.parametrize("schema", ["0.6.1", "1.0.0", "2.0.0"])
def test_aimet_leaves_no_quantizer_without_an_encoding(write, platform, schema):
    pytest.importorskip("aimet_onnx")
    folder = write(platform, schema=schema)
    verdict = aimet.check(folder / f"{platform}_encodings.json", probe_of(folder))
    assert not verdict.failed and "0 quantizers are left without an encoding" in verdict.notes
    # AIMET ties what a Concat or an AveragePool reads to what it makes.
    assert {fate.name for fate in verdict.tensors if fate.state is State.RECOMPUTED} <= {"r1", "r2"}
    assert verdict.error.sqnr_db > 20


def test_aimet_tells_what_it_would_calibrate_again(write):
    pytest.importorskip("aimet_onnx")
    folder = write("snpe")
    file = folder / "snpe_encodings.json"
    content = json.loads(file.read_text())
    del content["activation_encodings"]["z"]
    file.write_text(json.dumps(content))
    verdict = aimet.check(file, probe_of(folder))
    assert {"z"} <= {fate.name for fate in verdict.tensors if "calibrated again" in fate.why}


def test_qnn(write):
    package = pytest.importorskip("onnxruntime_qnn")
    if not package.get_qnn_htp_path():
        pytest.skip("no HTP simulator for this machine")
    folder = write("qnn")
    verdict = qnn.check(folder / "quantized.onnx", probe_of(folder))
    assert not verdict.failed and verdict.error.sqnr_db > 30


def test_rknn(write, capfd):
    folder = write("rk")
    # What the toolkit says is read from the standard streams, which pytest would keep for itself.
    with capfd.disabled():
        pytest.importorskip("rknn.api")
        verdict = rknn.check(folder / "rk_quantized_param.yaml", probe_of(folder))
    assert not verdict.failed and verdict.count(State.ACCEPTED) > 15
    assert verdict.error.sqnr_db > 20


def test_what_the_toolkit_says_of_each_range(write):
    """Its answers are written down here, so that their reading is tested without it."""
    folder = write("rk")
    network = Network.read(folder / "deploy.onnx").model
    ours = read_ranges(folder / "rk_quantized_param.yaml")[ENTRIES]
    other = {"min": [-99.0], "max": [99.0]}
    given = {name: name for name in ours if not name.endswith(("_W", "_b")) and name not in {"f", "z", "p1"}}
    biases = {"b1": ours["conv1_b"], "b2": ours["conv2_b"], "b3": other}
    before = {**dict.fromkeys(given, other), **biases, "z_mm": other, "half": other}
    taken = rknn.Taken(before, {**given, "z_mm": "f"}, ("half",), {}, frozenset(given) | {"z_mm"})
    fates = {fate.name: fate for fate in rknn._fates(ours, taken, network)}
    assert fates["x"] == TensorOutcome("x", State.ACCEPTED)
    assert fates["conv1_W"] == TensorOutcome("conv1_W", State.ACCEPTED, "another name of 'w1'")
    assert fates["conv1_b"] == TensorOutcome("conv1_b", State.ACCEPTED, "another name of 'b1'")
    assert fates["fc_b"].state is State.RECOMPUTED and fates["half"].state is State.RECOMPUTED
    assert fates["f"] == TensorOutcome("f", State.ACCEPTED, "the toolkit calls it 'z_mm'")
    assert fates["p1"] == TensorOutcome("p1", State.ACCEPTED, "the toolkit has left it out; its range is that of 'r2'")
    assert {name for name, fate in fates.items() if fate.state is State.IGNORED} == set()

    silent = dataclasses.replace(taken, changed=taken.changed - {"c2", "w2"})
    fates = {fate.name: fate for fate in rknn._fates(ours, silent, network)}
    assert {name for name, fate in fates.items() if fate.state is State.IGNORED} == {"c2", "w2"}
    # An Add that went into the convolution before it, whose weights are others then.
    fewer = {name: source for name, source in taken.sources.items() if name not in {"c2", "w2"}}
    without = {name: each for name, each in before.items() if name not in {"c2", "w2"}}
    fused = dataclasses.replace(taken, before=without, sources=fewer, replaced={"w2": "w2_new", "c2": "s"})
    fates = {fate.name: fate for fate in rknn._fates(ours, fused, network)}
    for name, its in (("w2", "w2_new"), ("conv2_W", "w2_new"), ("c2", "s")):
        assert fates[name] == TensorOutcome(name, State.RECOMPUTED, f"the toolkit has {its!r} in its place")
    unknown = {**ours, "nothing": other}
    assert {f.name for f in rknn._fates(unknown, taken, network) if f.state is State.IGNORED} == {"nothing"}


class Toolkit:
    """Notes how it is called, as RKNN's toolkit answers."""

    def __init__(self):
        self.loaded = None

    def config(self, **_):
        return 0

    def load_onnx(self, path, **sizes):
        self.loaded = sizes
        return 0

    def hybrid_quantization_step1(self, **_):
        return 0

    def release(self):
        pass


@pytest.mark.parametrize(
    ("shape", "sizes"),
    [
        ([2, 3], {}),
        (["N", 3], {"inputs": ["x"], "input_size_list": [[1, 3]]}),
        ([2, "n"], {"inputs": ["x"], "input_size_list": [[2, 3]]}),
    ],
)
def test_rknn_is_told_sizes_only_where_one_is_open(tmp_path, monkeypatch, shape, sizes):
    monkeypatch.chdir(tmp_path)
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, shape)
    made = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, shape)
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "g", [value], [made])
    network = Network(onnx.helper.make_model(graph), tmp_path)
    toolkit, rows = Toolkit(), network.batch() or 1
    x = np.arange(15, dtype=np.float32).reshape(5, 3)
    rknn._calibrate(toolkit, tmp_path / "deploy.onnx", {"x": x}, rows=rows, is_static=network.is_static())
    assert toolkit.loaded == sizes
    files = [np.load(line) for line in (tmp_path / "samples.txt").read_text().split()]
    assert all(file.shape == (rows, 3) for file in files)
    np.testing.assert_array_equal(np.concatenate(files)[:5], x)


@pytest.mark.parametrize(("known", "inside"), [({"c2", "s", "p2"}, True), ({"c2", "s"}, False), (set(), False)])
def test_a_value_inside_a_kernel_is_one_that_all_its_readers_were_computed_without(write, known, inside):
    model = onnx.load(write("rk") / "deploy.onnx")
    assert is_inside_kernel(model, "r1", known) is inside
    assert not is_inside_kernel(model, "y", {"y"}), "nothing reads it"


def test_encodings_without_some_tensors_are_those_of_the_others(write):
    for schema in ("0.6.1", "1.0.0", "2.0.0"):
        file = write("snpe", schema=schema) / "snpe_encodings.json"
        content = json.loads(file.read_text())
        less = aimet._without(content, {"c2", "w2"})
        (file.parent / "less.json").write_text(json.dumps(less))
        assert aimet._read(file).keys() - aimet._read(file.parent / "less.json").keys() == {"c2", "w2"}
        assert less.keys() == content.keys()
