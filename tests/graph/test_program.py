"""Regions of nodes that ONNX Runtime computes, and the order in which a network's nodes run."""

import numpy as np
import onnx_ir as ir
import pytest
import torch
from networks import network

import dipo
from dipo.export.runtime import run_model
from dipo.graph.find_samples import find_sample_axes
from dipo.graph.load import normalise
from dipo.graph.passes import as_in_file
from dipo.graph.program import in_order, regions
from dipo.graph.torch_module import GraphModule
from dipo.graph.units import find_units

RECURRENT = """(float[N,3,10] x) => (float[N,10,5] y) {
    [conv] a = Conv<pads=[1,1]>(x, cw, cb)
    [relu] b = Relu(a)
    [time] t = Transpose<perm=[2,0,1]>(b)
    [lstm] h = LSTM<hidden_size=6>(t, W, R, B)
    [flat] f = Squeeze(h, one)
    [back] g = Transpose<perm=[1,0,2]>(f)
    [fc] y = MatMul(g, fw)
}"""
WEIGHTS = {
    "cw": (8, 3, 3), "cb": (8,), "W": (1, 24, 8), "R": (1, 24, 6), "B": (1, 48), "one": np.array([1]), "fw": (6, 5),
}  # fmt: skip
BRANCHES = """(float[N,3,6,"W"] x) => (float[N,4,2,"V"] y) {
    [conv] a = Conv(x, cw, cb)
    s = Shape(x)
    w = Gather(s, three)
    wide = Greater(w, five)
    [choice] z = If (wide) <
        then_branch = then_graph () => (float[n,c,h,v] t) { t = Mul(a, two) },
        else_branch = else_graph () => (float[n,c,h,v] e) { e = Neg(a) }
    >
    [last] y = Conv(z, dw, db)
}"""
BRANCH_WEIGHTS = {
    "cw": (5, 3, 3, 3), "cb": (5,), "three": np.array(3), "five": np.array(5), "two": np.array(2, np.float32),
    "dw": (4, 5, 3, 3), "db": (4,),
}  # fmt: skip


def loaded(text: str, **constants: object) -> ir.Model:
    return normalise(ir.from_proto(network(text, **constants)), source="here")


def written(model: ir.Model, folder) -> object:
    path = folder / "net.onnx"
    ir.save(as_in_file(model), path)
    return path


def test_a_recurrent_layer_is_a_region_and_a_unit_of_its_own(tmp_path):
    model = loaded(RECURRENT, **WEIGHTS)
    assert [[node.name for node in region] for region in regions(model)] == [["lstm"]]
    x = np.random.default_rng(0).normal(size=(4, 3, 10)).astype(np.float32)
    expected = run_model(written(model, tmp_path), [{"x": x}], threads=1)["y"]
    module = GraphModule(model)
    np.testing.assert_allclose(module({"x": torch.from_numpy(x)})["y"].numpy(), expected, atol=1e-5)
    samples = find_sample_axes(model, {"x": x})
    assert (samples.odd["h"].axis, samples.odd["t"].axis) == (2, 1)
    units = [unit.nodes for unit in find_units(model, granularity="block", samples=samples)]
    assert ("lstm",) in units
    assert [name for names in units for name in names] == [node.name for node in model.graph]


def test_other_weights_may_stand_in_for_those_of_a_recurrent_layer():
    model, scaled = loaded(RECURRENT, **WEIGHTS), loaded(RECURRENT, **WEIGHTS)
    x = np.random.default_rng(0).normal(size=(4, 3, 10)).astype(np.float32)
    module = GraphModule(model, outputs=["h"])
    assert {"W", "R"} < set(module.constant_names) and "B" not in module.constant_names
    others = {name: module.constant(name) * 1.5 for name in ("W", "R")}

    def made(constants: dict[str, torch.Tensor]) -> np.ndarray:
        return module({"x": torch.from_numpy(x)}, constants=constants)["h"].numpy()

    first = made({})
    for name in ("W", "R"):
        scaled.graph.initializers[name].const_value = ir.tensor(others[name].numpy(), name=name)
    expected = GraphModule(scaled, outputs=["h"])({"x": torch.from_numpy(x)})["h"].numpy()
    for constants in ({"W": others["W"]}, {"R": others["R"]}):
        assert np.abs(made(constants) - first).max() > 1e-3
        assert np.abs(made(constants) - expected).max() > 1e-3
    np.testing.assert_allclose(made(others), expected, atol=1e-6)
    np.testing.assert_array_equal(made({}), first)


def test_gradients_stop_at_a_region():
    model = loaded(RECURRENT, **WEIGHTS)
    module = GraphModule(model)
    x = torch.randn(2, 3, 10, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert not module({"x": x})["y"].requires_grad


@pytest.mark.parametrize("width", [5, 7])
def test_a_node_with_subgraphs_reads_what_these_read(tmp_path, width):
    model = loaded(BRANCHES, **BRANCH_WEIGHTS)
    (choice,) = (node for node in model.graph if node.name == "choice")
    assert {value.name for value in choice.inputs} == {"wide", "a", "two"}
    x = np.random.default_rng(0).normal(size=(2, 3, 6, width)).astype(np.float32)
    file = written(model, tmp_path)
    assert not ir.load(file).functions
    expected = run_model(file, [{"x": x}], threads=1)["y"]
    module = GraphModule(model)
    np.testing.assert_allclose(module({"x": torch.from_numpy(x)})["y"].numpy(), expected, atol=1e-5)


def test_regions_that_wait_for_each_other_are_apart():
    """Nothing that leaves a region comes back into it, though its nodes hang together."""
    model = loaded("""(float[N,4] x) => (float[N,4] y) {
        [a] a = RandomNormalLike(x) [b] b = Relu(a) [c] c = RandomNormalLike(b) [d] y = Add(a, c)
    }""")
    nodes = {node.name: node for node in model.graph}
    order = in_order(list(model.graph), {nodes["b"]})
    assert [[node.name for node in group] for group in order] == [["a"], ["b"], ["c", "d"]]


@pytest.mark.parametrize("target", ["qnn", "rk"])
def test_what_enters_a_region_has_a_grid_on_targets_of_integers(target):
    samples = {"x": np.random.default_rng(0).normal(size=(16, 3, 10)).astype(np.float32)}
    found = dipo.quantize(network(RECURRENT, **WEIGHTS), samples, target=target, algo="none")
    assert found.report.error["deployed_vs_fp32"].sqnr_db > 25
    assert found.report.error["deployed_vs_simulated"].sqnr_db > 60
