"""Weights of recurrent nodes in 8 bits: from the plan to the file, which computes what the simulation does."""

import json
import shutil

import numpy as np
import onnx
import pytest
from networks import network, saved

import dipo
from dipo.cli.export import main as export
from dipo.errors import UserError
from dipo.launch import main

SEQUENCE = """(float[N,3,10] x) => (float[N,10,5] y) {{
    [conv] a = Conv<pads=[1,1]>(x, cw, cb)
    [relu] b = Relu(a)
    [time] t = Transpose<perm=[2,0,1]>(b)
    [rnn] h = {op}<hidden_size=6,direction="{direction}">(t, W, R, B)
    [turn] f = Transpose<perm=[2,0,1,3]>(h)
    [flat] g = Reshape(f, rows)
    [fc] y = MatMul(g, fw)
}}"""
ONE_AT_A_TIME = """(float[1,3,10] x) => (float[10,5] y) {{
    [conv] a = Conv<pads=[1,1]>(x, cw, cb)
    [relu] b = Relu(a)
    [time] t = Transpose<perm=[2,0,1]>(b)
    [rnn] h = {op}<hidden_size=6,direction="{direction}">(t, W, R, B)
    [flat] g = Reshape(h, rows)
    [fc] y = MatMul(g, fw)
}}"""
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def recurrent(op: str, *, directions: int = 1, one_at_a_time: bool = False) -> onnx.ModelProto:
    gates, width = GATES[op], 6 * directions
    text = ONE_AT_A_TIME if one_at_a_time else SEQUENCE
    return network(
        text.format(op=op, direction="forward" if directions == 1 else "bidirectional"),
        cw=(8, 3, 3), cb=(8,), W=(directions, gates * 6, 8), R=(directions, gates * 6, 6),
        B=(directions, 2 * gates * 6), rows=np.array([10, width] if one_at_a_time else [0, 10, width]), fw=(width, 5),
    )  # fmt: skip


SAMPLES = {"x": np.random.default_rng(0).normal(size=(16, 3, 10)).astype(np.float32)}


def constants(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def read_by(model: onnx.ModelProto, op: str) -> list[str]:
    """The operators that make the weights of a recurrent node, None for initializers."""
    makers = {name: node.op_type for node in model.graph.node for name in node.output}
    (node,) = (node for node in model.graph.node if node.op_type == op)
    return [makers.get(name) for name in node.input[1:3]]


@pytest.mark.parametrize(
    ("op", "algo", "how"),
    [
        ("LSTM", "none", {}),
        ("LSTM", "qdrop", {"directions": 2}),
        ("GRU", "bias_correction", {"directions": 2}),
        ("RNN", "none", {}),
        ("GRU", "qdrop", {"one_at_a_time": True}),
    ],
    ids=["lstm", "both ways", "gru", "rnn", "one at a time"],
)
def test_the_file_has_them_in_8_bits_and_computes_what_the_simulation_does(op, algo, how):
    model = recurrent(op, **how)
    iters = {"algo.iters": 4} if algo == "qdrop" else {}
    options = {"calib.weights": "minmax", "cluster.compile": False, **iters}
    found = dipo.quantize(model, SAMPLES, algo=algo, options=options)
    assert read_by(found.model, op) == ["DequantizeLinear"] * 2
    own, written = constants(model), constants(found.model)
    for name in ("W", "R"):
        codes, scale = written[f"{name}_quantized"], written[f"{name}_scale"]
        assert (codes.dtype, scale.shape) == (np.int8, own[name].shape[1:2]) and name not in written
        largest = np.abs(own[name]).max(axis=(0, 2))
        np.testing.assert_allclose(scale, largest / 127, rtol=1e-6)
        np.testing.assert_allclose(codes * scale[:, None], own[name], atol=scale.max() / 2 * 1.001)
    assert found.report.error["deployed_vs_simulated"].sqnr_db > 140
    assert 30 < found.report.error["simulated_vs_fp32"].sqnr_db < 70


def test_the_simulation_reads_the_rounded_ones():
    """Weights on a grid so coarse that nothing else explains the loss."""
    model = recurrent("LSTM")
    weights = constants(model)["W"].copy()
    weights[0, :, 0] *= 200
    del (initializers := model.graph.initializer)[[tensor.name for tensor in initializers].index("W")]
    initializers.append(onnx.numpy_helper.from_array(weights, "W"))
    kept = dipo.quantize(model, SAMPLES, algo="bias_correction", options={"precision.skip": ["rnn"]})
    found = dipo.quantize(model, SAMPLES, algo="bias_correction")
    assert read_by(kept.model, "LSTM") == [None, None]
    losses = [each.report.error["simulated_vs_fp32"].sqnr_db for each in (kept, found)]
    assert losses[0] > losses[1] + 3
    assert found.report.error["deployed_vs_simulated"].sqnr_db > 140


@pytest.mark.parametrize(
    ("settings", "scales"),
    [({"precision.weight_bits": 4}, 1), ({"precision.weight_per_channel": False}, 0), ({"export.format": "qop"}, 1)],
    ids=["4 bits", "one scale", "qop"],
)
def test_they_have_8_bits_whatever_layers_have(settings, scales):
    found = dipo.quantize(recurrent("LSTM"), SAMPLES, algo="none", options=settings)
    written = constants(found.model)
    assert read_by(found.model, "LSTM") == ["DequantizeLinear"] * 2
    assert written["W_quantized"].dtype == np.int8 and written["W_scale"].ndim == scales
    assert found.report.error["deployed_vs_simulated"].sqnr_db > 140


def test_what_other_nodes_read_too_stays_float_and_what_two_share_is_stored_once():
    model = network(
        """(float[N,10,8] x) => (float[N,6] y, float[N,24,6] r) {
          [time] t = Transpose<perm=[1,0,2]>(x)
          [first] a, h = LSTM<hidden_size=6>(t, W, R)
          [second] b, g = LSTM<hidden_size=6>(t, W, R2)
          [sum] s = Add(h, g)
          [flat] f = Squeeze(s, nought)
          [fc] y = Gemm(f, fw, fb)
          [row] q = Unsqueeze(f, one)
          [also] r = Add(q, R2)
        }""",
        W=(1, 24, 8), R=(1, 24, 6), R2=(1, 24, 6), nought=np.array([0]), one=np.array([1]), fw=(6, 6), fb=(6,),
    )  # fmt: skip
    samples = {"x": np.random.default_rng(0).normal(size=(16, 10, 8)).astype(np.float32)}
    found = dipo.quantize(model, samples, algo="none")
    written = constants(found.model)
    assert {name for name, array in written.items() if array.dtype == np.int8 and array.ndim == 3} == {
        "W_quantized", "R_quantized",
    }  # fmt: skip
    assert found.report.error["deployed_vs_simulated"].sqnr_db > 140


def test_a_network_without_other_layers_goes_in_where_the_target_has_them():
    model = network(
        """(float[N,10,8] x) => (float[N,6] y) {
          [time] t = Transpose<perm=[1,0,2]>(x)
          [rnn] a, h = LSTM<hidden_size=6>(t, W, R)
          [flat] y = Squeeze(h, nought)
        }""",
        W=(1, 24, 8), R=(1, 24, 6), nought=np.array([0]),
    )  # fmt: skip
    samples = {"x": np.random.default_rng(0).normal(size=(16, 10, 8)).astype(np.float32)}
    found = dipo.quantize(model, samples, algo="bias_correction")
    assert read_by(found.model, "LSTM") == ["DequantizeLinear"] * 2
    assert found.report.error["deployed_vs_simulated"].sqnr_db > 140
    with pytest.raises(UserError, match=r"no layer is left to quantize, give .* with platform=ort an LSTM"):
        dipo.quantize(model, samples, algo="bias_correction", target="trt")


def branches(place: str) -> onnx.ModelProto:
    """A network whose layers all stand in the branches of an If.

    Args:
        place: Of their weights: `outside`, `initializers` of the branches, or `constants` there.
    """
    rng = np.random.default_rng(1)
    shapes = {"cw": (6, 3, 3), "fw": (5, 6), "W": (1, 24, 6), "R": (1, 24, 6)}
    weights = {name: rng.normal(size=shape).astype(np.float32) / 2 for name, shape in shapes.items()}
    tensors = [onnx.numpy_helper.from_array(array, name) for name, array in weights.items()]
    made = [onnx.helper.make_node("Constant", [], [tensor.name], value=tensor) for tensor in tensors]
    nodes = onnx.parser.parse_graph("""rate () => (float[N,5] y) {
        [conv] a = Conv<pads=[1,1]>(x, cw)
        [turn] t = Transpose<perm=[2,0,1]>(a)
        [rnn] s, h = LSTM<hidden_size=6>(t, W, R)
        [row] f = ReduceSum<keepdims=0>(h, nought)
        [fc] y = Gemm<transB=1>(f, fw)
    }""")
    inside = {"outside": [], "initializers": tensors, "constants": []}[place]
    taken = onnx.helper.make_graph(
        [*(made if place == "constants" else []), *nodes.node], "taken", [], nodes.output, inside
    )
    other = onnx.parser.parse_graph("rate () => (float[N,5] z) { z = ReduceMax<axes=[1],keepdims=0>(x5) }")
    model = network(
        """(float[N,3,5] x, int64 rate) => (float[N,5] y) {
          [is] c = Equal(rate, sixteen)
          x5 = Identity(x)
          [either] y = Neg(x)
        }""",
        sixteen=np.array(16), nought=np.array([0]),
        **(weights if place == "outside" else {}),
    )  # fmt: skip
    model.graph.node[-1].CopyFrom(
        onnx.helper.make_node("If", ["c"], ["y"], name="either", then_branch=taken, else_branch=other)
    )
    return model


@pytest.mark.parametrize(
    ("place", "algo"), [("outside", "none"), ("initializers", "bias_correction"), ("constants", "qdrop")]
)
def test_weights_of_layers_in_branches_are_stored_in_8_bits(place, algo):
    """Voice activity detectors choose their layers by the sampling rate."""
    model = branches(place)
    samples = {"x": np.random.default_rng(0).normal(size=(16, 3, 5)).astype(np.float32), "rate": np.array(16)}
    found = dipo.quantize(model, samples, algo=algo)
    written = constants(found.model)
    codes = {name: array.shape for name, array in written.items() if array.dtype == np.int8 and array.ndim > 1}
    assert sorted(codes.values()) == [(1, 24, 6), (1, 24, 6), (5, 6), (6, 3, 3)]
    scales = [array.shape for name, array in written.items() if name.endswith("_scale")]
    assert sorted(scales) == [(5,), (6,), (24,), (24,)]
    assert not any("inner_weights" in prop.key for node in found.model.graph.node for prop in node.metadata_props)
    assert found.report.error["deployed_vs_simulated"].sqnr_db > 140
    assert 25 < found.report.error["simulated_vs_fp32"].sqnr_db < 60
    (note,) = [note.what for note in found.report.notes if note.name == "either"]
    assert note.endswith("4 weights of layers inside are stored in 8 bits")


def test_a_dry_run_says_how_weights_in_branches_are_stored(tmp_path, capsys):
    path, data = tmp_path / "net.onnx", tmp_path / "x.npz"
    onnx.save(branches("outside"), path)
    np.savez(data, x=np.random.default_rng(0).normal(size=(16, 3, 5)).astype(np.float32))
    job = [f"model.path={path}", f"data.path={data}", "data.fixed.rate=16", "cluster=inline"]
    assert main([*job, "dry_run=true"]) == 0
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "either (If), 100.0 % of the multiplications" in said
    assert "computed in ONNX Runtime, 4 weights of layers inside are stored in 8 bits" in said
    assert "headroom" not in said, "there are no activations on grids"
    assert main([*job, f"run.dir={tmp_path / 'run'}"]) == 0
    assert "worst layers" not in capsys.readouterr().out, "there are none"


def test_what_a_branch_reads_otherwise_too_stays_float():
    model = branches("outside")
    then = next(a.g for a in model.graph.node[-1].attribute if a.name == "then_branch")
    scaled = [
        onnx.helper.make_node("Cast", ["rate"], ["factor"], to=onnx.TensorProto.FLOAT),
        onnx.helper.make_node("Mul", ["fw", "factor"], ["times"]),
        onnx.helper.make_node("ReduceMax", ["times"], ["bias"], axes=[1], keepdims=0),
    ]
    for node in reversed(scaled):
        then.node.insert(0, node)
    then.node[-1].input.append("bias")
    samples = {"x": np.random.default_rng(0).normal(size=(16, 3, 5)).astype(np.float32), "rate": np.array(16)}
    found = dipo.quantize(model, samples, algo="none")
    codes = [array.shape for array in constants(found.model).values() if array.dtype == np.int8 and array.ndim > 1]
    assert sorted(codes) == [(1, 24, 6), (1, 24, 6), (6, 3, 3)]


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    base = tmp_path_factory.mktemp("recurrent")
    np.savez(base / "x.npz", **SAMPLES)
    path = saved(recurrent("LSTM", directions=2), base)
    return [f"model.path={path}", f"data.path={base / 'x.npz'}", "cluster=inline", "cluster.compile=false"]


@pytest.fixture(scope="module")
def run(job, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    how = ["+algo=brecq", "algo.iters=4", "export.also=[trt,openvino]", f"run.dir={folder}"]
    assert main([*job, *how]) == 0
    return folder


def test_targets_that_read_floats_alone_get_floats_and_the_report_says_so(run):
    written = {name: onnx.load(run / name / "quantized.onnx") for name in (".", "trt", "openvino")}
    assert {name: read_by(model, "LSTM")[0] for name, model in written.items()} == {
        ".": "DequantizeLinear", "trt": None, "openvino": None,
    }  # fmt: skip
    report = json.loads((run / "report.json").read_text())
    for row in report["targets"]:
        assert "2 weights of recurrent nodes: float, not 8 bits" in row["differences"]
    (region,) = report["network"]["regions"]
    assert region["weights"] == {"rnn": "its weights are stored in 8 bits"}
    (note,) = [note["what"] for note in report["notes"] if note["name"] == "rnn"]
    assert note.endswith("its weights are stored in 8 bits")


def test_files_made_later_from_the_run_are_the_same(run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    shutil.rmtree(folder / "trt")
    (folder / "quantized.onnx").unlink()
    assert export([f"run={folder}", "platform=[trt,ort]"]) == 0
    for ours, its in (("trt", "trt"), ("ort", ".")):
        files = [base / name / "quantized.onnx" for base, name in ((folder, ours), (run, its))]
        assert files[0].read_bytes() == files[1].read_bytes()


def test_weights_that_a_target_has_as_floats_are_rounded_for_one_that_has_8_bits(job, tmp_path):
    assert main([*job, "+algo=none", "platform=trt", "export.also=[ort]", f"run.dir={tmp_path / 'run'}"]) == 0
    assert read_by(onnx.load(tmp_path / "run" / "quantized.onnx"), "LSTM")[0] is None
    assert read_by(onnx.load(tmp_path / "run" / "ort" / "quantized.onnx"), "LSTM")[0] == "DequantizeLinear"
    (row,) = json.loads((tmp_path / "run" / "report.json").read_text())["targets"]
    assert {"W", "R"} <= row["weights"].keys()
    assert "2 weights of recurrent nodes: 8 bits, not float" in row["differences"]


def test_a_resumed_run_writes_the_same_bytes(run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    units = sorted((folder / "units").iterdir())
    for path in (folder / "report.json", folder / "quantized.onnx", folder / "network.safetensors", units[-1]):
        path.unlink()
    assert main([f"run.resume={folder}"]) == 0
    for name in ("quantized.onnx", "network.safetensors", "trt/quantized.onnx"):
        assert (folder / name).read_bytes() == (run / name).read_bytes()


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ([], "its weights are stored in 8 bits"),
        (["precision.skip=[rnn]"], "its weights stay float, left out by precision.skip"),
        (["platform=trt"], "its weights stay float, the form in which trt reads them"),
    ],
    ids=["ort", "skip", "trt"],
)
def test_a_dry_run_says_in_which_form_they_are_stored(job, capsys, how, words):
    assert main([*job, *how, "dry_run=true", "--verbose"]) == 0
    out = capsys.readouterr().out
    assert f"computed in ONNX Runtime, {words}" in " ".join(" ".join(out.replace("│", " ").split()).split())
    assert ("recurrent rnn: weight W in 8 bits, symmetric, per row" in out) == (not how)


def test_analysis_reads_the_rounded_ones_too(job, tmp_path):
    """The last layer's accumulated error has that of the recurrent node before it, its own error has not."""
    rows = []
    for name, how in (("float", ["precision.skip=[rnn]"]), ("int8", [])):
        assert main([*job, "+algo=analyze", f"run.dir={tmp_path / name}", *how]) == 0
        report = json.loads((tmp_path / name / "report.json").read_text())
        rows.append({row["name"]: row for row in report["analysis"]["layers"]}["fc"])
    assert rows[0]["accumulated"]["sqnr_db"] > rows[1]["accumulated"]["sqnr_db"] + 1
    assert rows[0]["alone"] == rows[1]["alone"]
