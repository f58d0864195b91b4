import onnx
import onnx.parser
import pytest
import yaml

from dipo.export.rknn_config import main, merged, own_values, sources_of

NETWORK = """<ir_version: 8, opset_import: ["": 13]>
    given (float[1,3,8,8] x) => (float[1,5] y) {
        [conv] c = Conv(x, w, b)
        [cut] r = Clip(c, low, high)
        [mean] m = GlobalAveragePool(r)
        [flat] f = Flatten(m)
        [fc] y = Gemm<transB=1>(f, v, d)
    }"""

TOOLKIT = """<ir_version: 8, opset_import: ["": 13]>
    theirs (float[1,3,8,8] x) => (float[1,5] y)
    <float[4] limits = {6, 6, 6, 6}, float[5] d = {0, 0, 0, 0, 0}> {
        [cast] x_int8 = exDataConvert(x)
        [conv] c = Conv(x_int8, w, b)
        [cut] r_Relu = Relu(c)
        [limit] r = Min(r_Relu, limits)
        [rows] r_rows = Conv(r, ones)
        [columns] r_mean = Conv(r_rows, ones)
        ["fc#2"] y_mm = Conv(r_mean, v, d)
        [shape] y_int8 = Reshape(y_mm, sizes)
        [uncast] y = exDataConvert(y_int8)
    }"""
TENSORS = ("x", "x_int8", "c", "r_Relu", "r", "limits", "r_rows", "r_mean", "y_mm", "y_int8", "y", "w", "v", "d")


def ends(largest):
    return {"min": [-float(largest)], "max": [float(largest)]}


OURS = {name: ends(number) for number, name in enumerate(("x", "c", "r", "m", "f", "y", "w", "v", "fc_b"), start=1)}


def parsed(text):
    # The parser takes plain words for names of nodes.
    model = onnx.parser.parse_model(text.replace('"fc#2"', "fc_2"))
    for node in model.graph.node:
        node.name = node.name.replace("fc_2", "fc#2")
    return model


@pytest.fixture
def config():
    own = {name: {**ends(100), "scale": [0.5], "dtype": "int8"} for name in TENSORS}
    return {"custom_quantize_layers": {}, "quantize_parameters": own}


def test_a_tensor_that_the_file_does_not_name_takes_the_range_of_the_same_numbers():
    sources = sources_of(TENSORS, OURS, toolkit=parsed(TOOLKIT), network=parsed(NETWORK))
    assert sources == {
        "x": "x", "x_int8": "x", "c": "c", "r": "r", "y": "y", "w": "w", "v": "v",
        "r_Relu": "r", "limits": "r",  # part of the kernel that makes r
        "r_mean": "f", "y_mm": "y",  # what the layer reads and makes that became another
        "y_int8": "y",
    }  # fmt: skip
    assert own_values(TENSORS, sources, parsed(TOOLKIT)) == ["r_rows"]


def test_a_node_that_computes_on_reshaped_values_gives_them_the_ranges_of_the_originals():
    """As the toolkit writes a detector's head: one Sigmoid before the Split, reshapes moved behind the arithmetic."""
    network = parsed("""<ir_version: 8, opset_import: ["": 13]>
        given (float[1,4,8] x) => (float[1,4,8] y) {
            [part] a, b = Split<axis=1>(x, sizes)
            [gate] c = Sigmoid(a)
            [cells] d = Add(c, cell)
            [large] e = Mul(b, anchor)
            [join] y = Concat<axis=1>(d, e)
        }""")
    toolkit = parsed("""<ir_version: 8, opset_import: ["": 13]>
        theirs (float[1,4,8] x) => (float[1,4,8] y) <float[1] other = {1}> {
            [gate] all = Sigmoid(x)
            [part] c_rs, b_rs = Split<axis=1>(all, sizes)
            [cells] d_rs = Add(c_rs, other)
            [large] e_rs = Mul(b_rs, anchor)
            [join] y_rs = Concat<axis=1>(d_rs, e_rs)
            [rows] y = Reshape(y_rs, shape)
        }""")
    names = ("x", "all", "c_rs", "b_rs", "d_rs", "e_rs", "y_rs", "y", "other")
    ours = {name: ends(number) for number, name in enumerate(("x", "a", "b", "c", "d", "e", "y", "cell"), start=1)}
    sources = sources_of(names, ours, toolkit=toolkit, network=network)
    assert {name: source for name, source in sources.items() if name != source} == {
        "d_rs": "d", "c_rs": "c", "e_rs": "e", "y_rs": "y", "b_rs": "b",
    }  # fmt: skip
    assert own_values(names, sources, toolkit) == ["all"], "what is in all three pieces has no range of ours"


def test_only_the_ends_change(config):
    made = merged(config, OURS, {"x_int8": "x", "limits": "r"})
    changed = {name: each for name, each in made["quantize_parameters"].items() if each["max"] != [100.0]}
    assert changed == {
        "x_int8": {**ends(1), "scale": [0.5], "dtype": "int8"},
        "limits": {**ends(3), "scale": [0.5], "dtype": "int8"},
    }
    assert all(each["max"] == [100.0] for each in config["quantize_parameters"].values()), "what was given stays"


@pytest.fixture
def files(tmp_path, config):
    """Both programs' files; returns the two that are named."""
    theirs, ours = tmp_path / "net.quantization.cfg", tmp_path / "ours" / "rk_quantized_param.yaml"
    ours.parent.mkdir()
    theirs.write_text(yaml.safe_dump(config))
    ours.write_text(yaml.safe_dump({"custom_quantize_layers": {}, "quantize_parameters": OURS}))
    onnx.save(parsed(TOOLKIT), tmp_path / "net.model", format="protobuf")
    onnx.save(parsed(NETWORK), ours.with_name("deploy.onnx"))
    return theirs, ours


def test_the_command(files, capsys):
    theirs, ours = files
    assert main([str(theirs), str(ours)]) == 0
    said = capsys.readouterr().out
    assert f"{theirs}: 12 of 14 tensors have the ranges of {ours}" in said
    assert "as the toolkit calibrated them: r_rows\n" in said
    assert yaml.safe_load(theirs.read_text())["quantize_parameters"]["r_mean"]["max"] == OURS["f"]["max"]


def test_mistakes_are_told_in_a_sentence(files, capsys):
    theirs, ours = files

    def complaint(*arguments):
        assert main([str(each) for each in arguments]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    assert "give the .quantization.cfg" in complaint(ours, ours)
    assert "there is no such file" in complaint(theirs, ours.with_name("none.yaml"))
    ours.write_text("nothing: here")
    assert "no quantize_parameters are in it" in complaint(theirs, ours)
    ours.write_text(yaml.safe_dump({"quantize_parameters": OURS}))
    theirs.with_name("net.model").write_text("no network")
    assert "no network can be read there" in complaint(theirs, ours)
    assert main([]) == 2 and "usage:" in capsys.readouterr().out
    assert main(["--help"]) == 0
