import numpy as np
import onnx
import pytest
from networks import saved
from written import qdq

from dipo.launch import main
from dipo.nightly.layers import read_arrays, read_layers, same_bias, same_weights


def test_rows_stand_in_the_order_of_the_graph_with_what_each_node_makes(tmp_path):
    rows = read_layers(saved(qdq(), tmp_path), {"conv": (0.99, 30.0), "float": (0.98, 20.0)})
    assert [(row.name, row.range, row.act_scale, row.act_zero_point) for row in rows] == [
        ("image", "image", 0.5, 128),
        ("conv", "b", 0.25, 3),
        ("float", "d", 0.125, -5),
    ]
    conv, plain = rows[1:]
    assert conv.weight_scale == pytest.approx((0.1, 0.2, 0.3, 0.4))
    assert (conv.cosine, conv.sqnr_db, plain.sqnr_db) == (0.99, 30.0, 20.0)
    assert conv.weights is not None
    assert conv.bias is not None
    assert (plain.weights, plain.bias, plain.weight_scale) == (None, None, None)


@pytest.mark.parametrize(
    ("name", "value", "field"),
    [
        ("w", np.arange(1, 109, dtype=np.int8).reshape(4, 3, 3, 3), "weights"),
        ("w_zero", np.int8([0, 0, 0, 1]), "weights"),
        ("w_scale", np.float32([0.1, 0.2, 0.3, np.nextafter(np.float32(0.4), np.float32(1))]), "weight_scale"),
        ("bias", np.int32([0, 1, 2, 4]), "bias"),
        ("b_scale", np.nextafter(np.float32(0.25), np.float32(1)), "act_scale"),
        ("b_zero", np.uint8(4), "act_zero_point"),
    ],
)
def test_one_bit_of_a_layer_changes_its_row_and_no_other(tmp_path, name, value, field):
    (before, after) = (
        read_layers(saved(qdq(**changes), tmp_path, f"{index}.onnx"), {})
        for index, changes in enumerate([{}, {name: value}])
    )
    changed = [
        (a.name, key) for a, b in zip(before, after, strict=True) for key in vars(a) if vars(a)[key] != vars(b)[key]
    ]
    assert changed == [("conv", field)]


def test_the_constants_of_a_node_are_those_of_its_row(tmp_path):
    path = saved(qdq(), tmp_path)
    conv = read_layers(path, {})[1]
    arrays = read_arrays(path, "conv")
    assert arrays["weights"][0].shape == (4, 3, 3, 3)
    assert same_weights(arrays, conv.weights)
    assert same_bias(arrays, conv.bias)
    arrays["weights"][0] = arrays["weights"][0] + 1
    assert not same_weights(arrays, conv.weights)
    assert read_arrays(path, "none") == {}


@pytest.mark.parametrize("platform", ["ort", "trt"])
def test_every_layer_of_a_written_model_has_a_row(tiny_job, tmp_path, platform):
    folder = tmp_path / "run"
    assert main(tiny_job.arguments(f"run.dir={folder}", f"platform={platform}", "precision=w4a8")) == 0
    rows = read_layers(folder / "quantized.onnx", {})
    layers = [row.name for row in rows if row.weights is not None]
    assert layers == ["stem", "left", "right", "head"]
    quantized = {row.range for row in rows if row.range is not None}
    nodes = onnx.load(folder / "quantized.onnx").graph.node
    assert len(quantized) == len([node for node in nodes if node.op_type == "QuantizeLinear"])
    assert rows[0].name == "image"
    assert next(row for row in rows if row.name == "stem").range == "b"
