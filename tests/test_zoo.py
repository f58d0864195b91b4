"""The embedded MobileNet is what the documentation says: unfolded, small, accurate, and measured on unseen digits."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

ZOO = Path(__file__).parents[1] / "dipo" / "zoo"
MODEL = ZOO / "mobilenet.onnx"


@pytest.fixture(scope="module")
def model():
    return onnx.load(MODEL)


@pytest.fixture(scope="module")
def digits():
    with np.load(ZOO / "digits.npz", allow_pickle=False) as arrays:
        return dict(arrays)


def run(x):
    pixels = (x.transpose(0, 3, 1, 2).astype(np.float32) / 255 - 0.5) / 0.5
    session = onnxruntime.InferenceSession(MODEL, providers=["CPUExecutionProvider"])
    return session.run(["logits"], {"input": pixels})[0]


def test_model_is_valid_small_and_opset_18(model):
    onnx.checker.check_model(model, full_check=True)
    assert MODEL.stat().st_size < 1_000_000
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 18)]
    assert not any(onnx.external_data_helper.uses_external_data(weight) for weight in model.graph.initializer)


def test_input_and_output_have_a_dynamic_batch(model):
    def shape(value):
        return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]

    assert [(value.name, shape(value)) for value in model.graph.input] == [("input", ["batch", 1, 32, 32])]
    assert [(value.name, shape(value)) for value in model.graph.output] == [("logits", ["batch", 10])]


def test_batch_norm_is_a_node_after_every_conv(model):
    nodes = {node.name: node for node in model.graph.node}
    assert len(nodes) == len(model.graph.node)
    convs = [node for node in nodes.values() if node.op_type == "Conv"]
    assert len(convs) == 31
    for conv in convs:
        readers = [node for node in nodes.values() if conv.output[0] in node.input]
        assert [node.op_type for node in readers] == ["BatchNormalization"]
        assert len(conv.input) == 2


def test_blocks_are_inverted_residuals_with_and_without_a_skip(model):
    names = {node.name: node.op_type for node in model.graph.node}
    blocks = {name.split("/")[2] for name in names if name.startswith("/features/")}
    skips = {block for block in blocks if names.get(f"/features/{block}/add") == "Add"}
    assert (len(blocks), len(skips)) == (10, 5)
    for block in blocks:
        assert names[f"/features/{block}/depthwise/relu6"] == "Clip"
        assert f"/features/{block}/project/relu6" not in names


def test_digits_have_the_layout_of_the_npz_reader(digits):
    assert set(digits) == {"calib_x", "calib_y", "test_x", "test_y"}
    for part, count in (("calib", 512), ("test", 600)):
        assert digits[f"{part}_x"].shape == (count, 32, 32, 1)
        assert digits[f"{part}_x"].dtype == np.uint8
        assert digits[f"{part}_y"].dtype == np.int64
        assert np.bincount(digits[f"{part}_y"]).min() > count / 10 * 0.9
    assert (ZOO / "digits.npz").stat().st_size < 700_000


def test_calibration_and_test_images_do_not_overlap(digits):
    calib = {image.tobytes() for image in digits["calib_x"]}
    test = {image.tobytes() for image in digits["test_x"]}
    assert len(calib) == 512
    assert len(test) == 600
    assert not calib & test


def test_float_accuracy(digits):
    assert np.mean(run(digits["test_x"]).argmax(1) == digits["test_y"]) >= 0.985


def test_any_batch_size_gives_the_same_logits(digits):
    x = digits["test_x"][:7]
    np.testing.assert_allclose(run(x[3:4]), run(x)[3:4], rtol=1e-4, atol=1e-4)


def test_no_test_digit_is_trained_on_or_calibrated_with():
    datasets = pytest.importorskip("sklearn.datasets")
    train_digits = pytest.importorskip("dipo.zoo.train_digits")
    source = datasets.load_digits()
    ids = train_digits.split_ids(source.target, seed=train_digits.SEED)
    assert set(ids.calib) <= set(ids.train)
    assert not set(ids.train) & set(ids.test)
    images = [{source.images[i].tobytes() for i in part} for part in (ids.train, ids.test)]
    assert not images[0] & images[1]


def test_the_script_regenerates_the_committed_digits(digits):
    pytest.importorskip("sklearn")
    train_digits = pytest.importorskip("dipo.zoo.train_digits")
    split = train_digits.load_split(seed=train_digits.SEED)
    for name, part in (("calib", split.calib), ("test", split.test)):
        np.testing.assert_array_equal(part.y, digits[f"{name}_y"])
        # Another release of torch may resample or round a pixel differently; one grey level is 255 / 63.
        assert np.abs(part.x.astype(int) - digits[f"{name}_x"]).max() <= 5


def test_the_exported_graph_computes_what_torch_does():
    torch = pytest.importorskip("torch")
    from dipo.zoo.mobilenet import ConvBn, MobileNetV2, to_onnx

    generator = torch.Generator().manual_seed(0)
    net = MobileNetV2()
    net.initialize(generator)
    for layer in net.modules():
        if isinstance(layer, ConvBn):
            layer.bn.running_mean.normal_(generator=generator)
            layer.bn.running_var.uniform_(0.5, 2, generator=generator)
    net.eval()
    x = torch.randn(2, 1, 32, 32, generator=generator)
    session = onnxruntime.InferenceSession(to_onnx(net).SerializeToString(), providers=["CPUExecutionProvider"])
    with torch.no_grad():
        np.testing.assert_allclose(session.run(None, {"input": x.numpy()})[0], net(x).numpy(), rtol=1e-3, atol=1e-4)
