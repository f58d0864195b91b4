"""What ONNX's checker says of a file on which something broke."""

import onnx
import pytest
from networks import network, saved, tiny_cnn

from dipo.errors import JobError, UserError
from dipo.graph.load import load
from dipo.graph.validity import blamed


def test_what_broke_on_an_invalid_file_is_its_fault(tmp_path):
    model = tiny_cnn()
    model.graph.output[0].type.tensor_type.shape.dim.add().dim_value = 3
    path = saved(model, tmp_path)
    with pytest.raises(UserError, match=r"^here: not a valid ONNX graph \(.*rank"), blamed(path, source="here"):
        raise IndexError


def test_what_broke_on_a_file_that_ends_the_checker_is_its_fault(tmp_path):
    text = """(float[N,3,8,8] x) => (float[N,3,4,8] y) {
      [pool] p = MaxPool<kernel_shape=[40,1]>(x)
      [cut] y = Slice(p, at, at, axis)
    }"""
    path = saved(network(text, at=[4], axis=[2]), tmp_path)
    with pytest.raises(UserError, match="checker breaks on it"), blamed(path, source="here"):
        raise IndexError


@pytest.mark.parametrize("error", [IndexError, MemoryError, UserError("a sentence"), JobError("another")])
def test_what_broke_on_a_valid_file_stays_what_it_is(tmp_path, error):
    path = saved(tiny_cnn(), tmp_path)
    onnx.checker.check_model(path, full_check=True)
    with pytest.raises(type(error) if isinstance(error, Exception) else error) as caught, blamed(path, source="here"):
        raise error
    assert "here" not in str(caught.value)


@pytest.mark.parametrize(("opset", "said"), [(6, "older than what ONNX Runtime runs"), (99, "none that this version")])
def test_opsets_that_nothing_runs_are_refused(tmp_path, opset, said):
    model = tiny_cnn()
    model.opset_import[0].version = opset
    with pytest.raises(UserError, match=f"opset {opset} is {said}"):
        load(saved(model, tmp_path))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("(float[N,4] x) => (float[N,4] x, float[N,4] y) { y = Relu(x) }", "'x' is an input"),
        ("(float[N,4] x) => (float[N,4] y, float[N,4] y) { y = Relu(x) }", "'y' is among the outputs twice"),
        ("(float[N,4] x) => (seq(float[N,2]) y) { y = SplitToSequence<axis=1>(x) }", "'y' is no tensor"),
        ("(string[N] x) => (string[N] y) { y = StringNormalizer(x) }", "'x' holds strings"),
    ],
)
def test_inputs_and_outputs_that_nothing_is_compared_by_are_refused(tmp_path, text, said):
    with pytest.raises(UserError, match=said):
        load(saved(network(text), tmp_path))
