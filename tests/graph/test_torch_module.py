import weakref

import numpy as np
import onnx
import pytest
import torch
from networks import images, network, saved, tiny_cnn

from dipo.errors import UserError
from dipo.export.runtime import run_model
from dipo.graph.accessors import node_name
from dipo.graph.load import load
from dipo.graph.runtime_region import RuntimeRegion
from dipo.graph.torch_module import GraphModule, channels_last
from dipo.graph.units import find_units


@pytest.fixture
def tiny(tmp_path):
    return load(saved(tiny_cnn(), tmp_path))


def tensor_images(num: int = 4) -> dict[str, torch.Tensor]:
    return {"image": channels_last(torch.from_numpy(images(num)))}


@pytest.mark.parametrize(
    ("name", "shape"), [("resnet20_cifar10.onnx", (3, 32, 32)), ("mobilenet_v1_025_224.onnx", (3, 224, 224))]
)
def test_real_networks_compute_what_onnx_runtime_does(shared_file, name, shape):
    path = shared_file(name)
    model = load(path)
    (entry,) = model.graph.inputs
    array = np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)
    expected = run_model(path, [{entry.name: array}], threads=1)
    with torch.inference_mode():
        found = GraphModule(model)({entry.name: channels_last(torch.from_numpy(array))})
    for key, value in expected.items():
        np.testing.assert_allclose(found[key].numpy(), value, atol=1e-4 * np.abs(value).max())


def test_units_in_a_row_compute_what_the_whole_does(tiny):
    values = tensor_images()
    whole = GraphModule(tiny)(values)
    nodes = {node_name(node): node for node in tiny.graph}
    for unit in find_units(tiny, granularity="layer"):
        module = GraphModule(tiny, nodes=[nodes[name] for name in unit.nodes])
        assert module.inputs == unit.inputs
        assert module.outputs == unit.outputs
        values |= module({name: values[name] for name in module.inputs})
    torch.testing.assert_close(values["scores"], whole["scores"])


def test_a_part_with_several_inputs_and_outputs(tiny):
    nodes = [node for node in tiny.graph if node_name(node) in ("right", "sum", "relu3")]
    module = GraphModule(tiny, nodes=nodes, outputs=["e", "h", "d"])
    assert set(module.inputs) == {"d", "b"}
    rng = np.random.default_rng(0)
    d, b = (torch.from_numpy(rng.normal(size=(2, 8, 8, 8)).astype(np.float32)) for _ in range(2))
    made = module({"d": d, "b": b})
    assert list(made) == ["e", "h", "d"]
    torch.testing.assert_close(made["h"], torch.relu(made["e"] + b))
    assert made["d"] is d, "an input that was asked for is handed through"


def test_the_hook_sees_every_value_and_readers_see_what_it_returns(tiny):
    module = GraphModule(tiny, outputs=["a", "b", "scores"])
    seen = []

    def hook(name, value):
        seen.append(name)
        return torch.zeros_like(value) if name == "a" else value

    plain, hooked = module(tensor_images()), module(tensor_images(), hook=hook)
    assert seen == ["image", "a", "b", "c", "d", "e", "f", "h", "i", "j", "scores"]
    torch.testing.assert_close(hooked["a"], plain["a"], msg="the output is the value, not what the hook made of it")
    assert not hooked["b"].any()
    assert not torch.equal(hooked["scores"], plain["scores"])


def test_the_hook_sees_network_inputs(tiny):
    module = GraphModule(tiny, outputs=["a"])
    doubled = module(tensor_images(), hook=lambda name, value: value * 2 if name == "image" else value)
    expected = module({"image": tensor_images()["image"] * 2})
    torch.testing.assert_close(doubled["a"], expected["a"])


def test_constants_can_be_replaced_for_one_call_and_get_gradients(tiny):
    module = GraphModule(tiny)
    plain = module(tensor_images())["scores"]
    assert "w1" in module.constant_names
    weight = (module.constant("w1") * 2).requires_grad_()
    changed = module(tensor_images(), constants={"w1": weight})["scores"]
    assert not torch.equal(changed, plain)
    changed.sum().backward()
    assert weight.grad is not None
    assert weight.grad.any()
    torch.testing.assert_close(module(tensor_images())["scores"], plain)


@pytest.mark.parametrize("outputs", [None, ["a", "scores"]])
def test_values_are_freed_after_their_last_reader(tiny, outputs):
    """`b` is read by the sum, `d` by one layer; neither may live to the end. What a hook made of an output neither."""
    alive: dict[str, weakref.ref] = {}
    at_the_end = []

    def hook(name, value):
        if name == "scores":
            at_the_end.extend(key for key, reference in alive.items() if reference() is not None)
        copy = value.clone()
        alive[name] = weakref.ref(copy)
        return copy

    GraphModule(tiny, outputs=outputs)(tensor_images(), hook=hook)
    assert set(at_the_end) <= {"j", "i"}, "only what the last layer reads, and what that is a view of"


def test_values_that_nobody_reads_are_not_kept(tmp_path):
    model = load(
        saved(
            network(
                """(float[N,2,4,4] x) => (float[N,2,2,2] y) {
                  [pool] a, index = MaxPool<kernel_shape=[2,2],strides=[2,2]>(x)
                  [relu] y = Relu(a)
                }"""
            ),
            tmp_path,
        )
    )
    module = GraphModule(model)
    x = torch.randn(1, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    expected = torch.relu(torch.nn.functional.max_pool2d(x, 2))
    torch.testing.assert_close(module({"x": x})["y"], expected)
    assert module.outputs == ("y",)


def test_a_scan_whose_subgraph_declares_no_shapes_runs(tmp_path):
    """ONNX Runtime infers them from the ranks of what the node reads."""
    body = onnx.parser.parse_graph("sums (float s, float e) => (float t, float o) { t = Add(s, e) o = Identity(t) }")
    for value in (*body.input, *body.output):
        value.type.tensor_type.ClearField("shape")
    model = network("(float[N,5,4] x) => (float[N,5,4] y) { y = Identity(x) }")
    scan = onnx.helper.make_node(
        "Scan", ["z", "x"], ["last", "y"], body=body, num_scan_inputs=1, scan_input_axes=[1], scan_output_axes=[1]
    )
    del model.graph.node[:]
    model.graph.node.extend([onnx.helper.make_node("ReduceSum", ["x", "axis"], ["z"], keepdims=0), scan])
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1]), "axis"))
    module = GraphModule(load(saved(model, tmp_path)))
    for num in (1, 3):
        x = torch.randn(num, 5, 4, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(module({"x": x})["y"], x.sum(1, keepdim=True) + x.cumsum(1))


def test_an_index_beyond_its_table_is_told_of_by_its_node(tmp_path):
    text = "(int64[N,3] ids) => (float[N,3,4] y) { [look_up] y = Gather(table, ids) }"
    module = GraphModule(load(saved(network(text, table=(10, 4)), tmp_path)))
    assert module({"ids": torch.tensor([[0, -10, 9]])})["y"].shape == (1, 3, 4)
    with pytest.raises(UserError, match=r"'look_up' is asked for a row that is not there \(.*10.*\)"):
        module({"ids": torch.tensor([[0, 1, 10]])})


def test_operators_that_torch_lacks_run_in_onnx_runtime_together(tmp_path):
    text = """(float[N,4] x) => (float[N,4] y, float[N,4] z) {
      [odd] a = com.microsoft.QuickGelu(x) [odder] b = com.microsoft.QuickGelu(a) [relu] c = Relu(b)
      [last] z = com.microsoft.QuickGelu(c) y = Neg(a)
    }"""
    model = load(saved(network(text, domain="com.microsoft"), tmp_path))
    module = GraphModule(model)
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    made = module({"x": x})
    a = x * torch.sigmoid(1.702 * x)
    b = a * torch.sigmoid(1.702 * a)
    c = torch.relu(b)
    torch.testing.assert_close(made["y"], -a)
    torch.testing.assert_close(made["z"], c * torch.sigmoid(1.702 * c))
    assert [step.node for step in module.steps if isinstance(step.function, RuntimeRegion)] == ["odd", "last"]
