import onnx
import pytest
from networks import network, saved, tiny_cnn

from dipo.config import ZOO
from dipo.graph.accessors import name_of, node_name
from dipo.graph.layers import layers_of
from dipo.graph.load import load
from dipo.graph.units import LONG_SKIP_LAYERS, Unit, find_units


def units_of(model: onnx.ModelProto, folder, granularity: str = "block") -> list[tuple[str, ...]]:
    loaded = load(saved(model, folder))
    units = find_units(loaded, granularity=granularity)
    check(loaded, units)
    return [unit.layers for unit in units]


def check(model, units: list[Unit]) -> None:
    """A partition in topological order, whose inputs and outputs fit together."""
    names = [name for unit in units for name in unit.nodes]
    assert sorted(names) == sorted(node_name(node) for node in model.graph)
    assert [unit.index for unit in units] == list(range(len(units)))
    nodes = {node_name(node): node for node in model.graph}
    known = {name_of(value) for value in model.graph.inputs}
    for name in names:
        read = [v for v in nodes[name].inputs if v is not None and v.const_value is None]
        assert {name_of(v) for v in read} <= known, f"{name} runs before what it reads"
        known |= {name_of(v) for v in nodes[name].outputs}
    available = {name_of(value) for value in model.graph.inputs}
    for unit in units:
        assert set(unit.inputs) <= available, f"{unit.name} reads what no unit before it gives away"
        assert unit.name in unit.nodes
        available |= set(unit.outputs)
    assert {name_of(value) for value in model.graph.outputs} <= available
    layers = [name for unit in units for name in unit.layers]
    assert sorted(layers) == sorted(layer.name for layer in layers_of(model))


def test_resnet20_has_a_unit_for_each_residual_block(shared_file):
    model = load(shared_file("resnet20_cifar10.onnx"))
    units = find_units(model, granularity="block")
    check(model, units)
    assert [len(unit.layers) for unit in units] == [1, *[2] * 9, 1]
    assert all(len(unit.inputs) == 1 and len(unit.outputs) == 1 for unit in units)


def test_mobilenet_v1_has_a_unit_for_each_depthwise_and_pointwise_pair(shared_file):
    model = load(shared_file("mobilenet_v1_025_224.onnx"))
    units = find_units(model, granularity="block")
    check(model, units)
    assert [len(unit.layers) for unit in units] == [1, *[2] * 13, 1]


def test_the_embedded_mobilenet_has_units_of_up_to_an_inverted_residual():
    path = ZOO / "mobilenet.onnx"
    if not path.exists():
        pytest.skip("no embedded network here")
    model = load(path)
    units = find_units(model, granularity="block")
    check(model, units)
    assert max(len(unit.layers) for unit in units) == 3
    assert len(units) < len(list(layers_of(model))) / 2


def inverted_residual(name: str, source: str, result: str, *, skip: bool) -> str:
    end = f"{name}p" if skip else result
    add = f"[{name}_sum] {result} = Add({end}, {source})" if skip else ""
    return f"""
      [{name}_expand] {name}a = Conv({source}, {name}_we)
      [{name}_relu1] {name}b = Clip({name}a, zero, six)
      [{name}_depth] {name}c = Conv<group=16,pads=[1,1,1,1]>({name}b, {name}_wd)
      [{name}_relu2] {name}d = Clip({name}c, zero, six)
      [{name}_point] {end} = Conv({name}d, {name}_wp)
      {add}"""


def test_inverted_residuals_are_one_unit_with_and_without_a_skip(tmp_path):
    weights = {}
    for name in ("m", "n"):
        weights |= {f"{name}_we": (16, 8, 1, 1), f"{name}_wd": (16, 1, 3, 3), f"{name}_wp": (8, 16, 1, 1)}
    model = network(
        f"""(float[N,3,8,8] x) => (float[N,8,8,8] y) {{
          [stem] s = Conv<pads=[1,1,1,1]>(x, w)
          [stem_relu] t = Clip(s, zero, six)
          {inverted_residual("m", "t", "u", skip=False)}
          {inverted_residual("n", "u", "v", skip=True)}
          [last] z = Conv(v, w_last)
          [end] y = Relu(z)
        }}""",
        w=(8, 3, 3, 3), w_last=(8, 8, 1, 1), zero=0.0, six=6.0, **weights,
    )  # fmt: skip
    for tensor in model.graph.initializer:
        if tensor.name in ("zero", "six"):
            tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor).astype("f"), tensor.name))
    assert units_of(model, tmp_path) == [
        ("stem",),
        ("m_expand", "m_depth", "m_point"),
        ("n_expand", "n_depth", "n_point"),
        ("last",),
    ]


def test_a_residual_block_is_one_unit_and_its_units_see_each_other(tmp_path):
    assert units_of(tiny_cnn(), tmp_path) == [("stem",), ("left", "right"), ("head",)]


def test_layers_alone_take_their_activations_along(tmp_path):
    model = load(saved(tiny_cnn(), tmp_path))
    units = find_units(model, granularity="layer")
    check(model, units)
    by_name = {unit.name: unit.nodes for unit in units}
    nodes = {node.op_type: node for node in model.graph}
    assert by_name["stem"] == ("stem", "relu1")
    assert by_name["left"] == ("left", "relu2")
    assert by_name["right"] == ("right",)
    assert by_name["sum"] == ("sum", "relu3", "pool", node_name(nodes["Reshape"]))


def test_a_block_that_starts_at_the_network_input_is_one_unit(tmp_path):
    model = network(
        """(float[N,4,8,8] x) => (float[N,4,8,8] y) {
          [first] a = Conv<pads=[1,1,1,1]>(x, w1)
          [relu] b = Relu(a)
          [second] c = Conv<pads=[1,1,1,1]>(b, w2)
          [sum] y = Add(c, x)
        }""",
        w1=(4, 4, 3, 3), w2=(4, 4, 3, 3),
    )  # fmt: skip
    assert units_of(model, tmp_path) == [("first", "second")]


def chain(length: int) -> str:
    lines = [f"[c{i}] v{i + 1} = Conv<pads=[1,1,1,1]>(v{i}, w{i})" for i in range(1, length)]
    return "\n".join(lines)


@pytest.mark.parametrize(("length", "parted"), [(LONG_SKIP_LAYERS - 2, False), (LONG_SKIP_LAYERS + 8, True)])
def test_a_long_skip_does_not_keep_a_unit_open(tmp_path, length, parted):
    model = network(
        f"""(float[N,4,8,8] v0) => (float[N,4,8,8] y) {{
          [c0] v1 = Conv<pads=[1,1,1,1]>(v0, w0)
          {chain(length)}
          [join] j = Concat<axis=1>(v{length}, v1)
          [out] y = Conv(j, w_out)
        }}""",
        w_out=(4, 8, 1, 1), **{f"w{i}": (4, 4, 3, 3) for i in range(length)},
    )  # fmt: skip
    units = units_of(model, tmp_path)
    assert (("c1",) in units) is parted
    assert len(units) == (length + 1 if parted else 3)


def test_two_inputs_meet_in_one_unit(tmp_path):
    model = network(
        """(float[N,4] p, float[N,4] q) => (float[N,3] y, float[N,4] z) {
          [fp] a = Gemm(p, w1)
          [rp] b = Relu(a)
          [fq] c = Gemm(q, w2)
          [rq] z = Relu(c)
          [sum] d = Add(b, z)
          [out] y = Gemm(d, w3)
        }""",
        w1=(4, 4), w2=(4, 4), w3=(4, 3),
    )  # fmt: skip
    assert units_of(model, tmp_path) == [("fp",), ("fq",), ("out",)]
    units = find_units(load(tmp_path / "net.onnx"), granularity="block")
    assert units[1].inputs == ("q", "b")
    assert "z" in units[1].outputs


def test_an_activation_in_two_nodes_stays_with_its_layer(tmp_path):
    model = network(
        """(float[N,4,8,8] x) => (float[N,4,8,8] y) {
          [first] a = Conv<pads=[1,1,1,1]>(x, w1)
          [gate] s = Sigmoid(a)
          [swish] b = Mul(a, s)
          [second] y = Conv<pads=[1,1,1,1]>(b, w2)
        }""",
        w1=(4, 4, 3, 3), w2=(4, 4, 3, 3),
    )  # fmt: skip
    units_of(model, tmp_path)
    units = find_units(load(tmp_path / "net.onnx"), granularity="block")
    assert units[0].nodes == ("first", "gate", "swish")


def test_a_network_without_layers_is_one_unit(tmp_path):
    model = network("(float[N,4] x) => (float[N,4] y) { [r] a = Relu(x) [s] y = Sigmoid(a) }")
    assert units_of(model, tmp_path) == [()]


def test_resnet20_has_three_stages_and_a_head(shared_file):
    model = load(shared_file("resnet20_cifar10.onnx"))
    units = find_units(model, granularity="stage")
    check(model, units)
    assert [len(unit.layers) for unit in units] == [7, 6, 6, 1]


def test_mobilenet_v1_has_five_stages_and_a_head(shared_file):
    model = load(shared_file("mobilenet_v1_025_224.onnx"))
    units = find_units(model, granularity="stage")
    check(model, units)
    assert [len(unit.layers) for unit in units] == [3, 4, 4, 12, 4, 1]


def strided_chain(batch: str, size: str) -> onnx.ModelProto:
    return network(
        f"""(float[{batch},4,{size},{size}] x) => (float[{batch},4,p,p] y) {{
          [a] v1 = Conv<pads=[1,1,1,1]>(x, w1)
          [ra] v2 = Relu(v1)
          [b] v3 = Conv<pads=[1,1,1,1]>(v2, w2)
          [rb] v4 = Relu(v3)
          [c] v5 = Conv<pads=[1,1,1,1],strides=[2,2]>(v4, w3)
          [rc] v6 = Relu(v5)
          [d] y = Conv<pads=[1,1,1,1]>(v6, w4)
        }}""",
        **{f"w{i}": (4, 4, 3, 3) for i in range(1, 5)},
    )


@pytest.mark.parametrize("size", ["16", "h"])
def test_stages_follow_shapes_or_where_they_are_unknown_strides(tmp_path, size):
    assert units_of(strided_chain("N", size), tmp_path, "stage") == [("a", "b"), ("c", "d")]


def test_a_chain_of_gemms_is_one_stage(tmp_path):
    model = network(
        """(float[N,4] x) => (float[N,4] y) {
          [one] a = Gemm(x, w1)
          [r1] b = Relu(a)
          [two] c = Gemm(b, w2)
          [r2] d = Relu(c)
          [three] y = Gemm(d, w3)
        }""",
        w1=(4, 8), w2=(8, 8), w3=(8, 4),
    )  # fmt: skip
    assert units_of(model, tmp_path, "stage") == [("one", "two", "three")]
    assert units_of(model, tmp_path) == [("one",), ("two",), ("three",)]


@pytest.mark.parametrize("model", [tiny_cnn(), strided_chain("N", "8")])
def test_a_network_is_one_unit_from_its_inputs_to_its_outputs(tmp_path, model):
    units_of(model, tmp_path, "network")
    loaded = load(tmp_path / "net.onnx")
    (unit,) = find_units(loaded, granularity="network")
    assert unit.inputs == tuple(name_of(value) for value in loaded.graph.inputs)
    assert unit.outputs == tuple(name_of(value) for value in loaded.graph.outputs)


def test_a_heads_tail_at_the_end_of_the_file_belongs_to_its_layer(tmp_path):
    """A detector's Sigmoids and Reshapes come last in the file, far behind their layers."""
    count = LONG_SKIP_LAYERS + 3
    body = [f"[c{i}] t{i} = Conv<pads=[1,1,1,1]>(r{i - 1}, w{i})\n [r{i}] r{i} = Relu(t{i})" for i in range(1, count)]
    text = f"""(float[N,3,8,8] x) => (float[N,4,8,8] a, float[N,4,8,8] b) {{
      [c0] t0 = Conv<pads=[1,1,1,1]>(x, w0)
      [r0] r0 = Relu(t0)
      [head_a] h = Conv(r0, wa)
      {chr(10).join(body)}
      [head_b] g = Conv(r{count - 1}, wb)
      [tail_a] a = Sigmoid(h)
      [tail_b] b = Sigmoid(g)
    }}"""
    weights = {f"w{i}": (8, 8, 3, 3) for i in range(1, count)} | {"w0": (8, 3, 3, 3)}
    model = load(saved(network(text, **weights, wa=(4, 8, 1, 1), wb=(4, 8, 1, 1)), tmp_path))
    for granularity in ("layer", "block"):
        units = find_units(model, granularity=granularity)
        check(model, units)
        (unit,) = [unit for unit in units if "head_a" in unit.nodes]
        assert "tail_a" in unit.nodes
