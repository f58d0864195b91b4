import numpy as np
import pytest
from networks import images, network, saved, tiny_cnn

from dipo.export.runtime import providers, run_model


@pytest.mark.parametrize("sizes", [[6], [4, 2], [1, 1, 4]])
def test_batches_are_put_together_in_their_order(tmp_path, sizes):
    path = saved(tiny_cnn(), tmp_path)
    array = images(6)
    whole = run_model(path, [{"image": array}], threads=1)["scores"]
    parts = np.split(array, np.cumsum(sizes)[:-1])
    found = run_model(path, ({"image": part} for part in parts), threads=1)["scores"]
    np.testing.assert_allclose(found, whole, atol=1e-6)


@pytest.mark.parametrize("batch", [1, 4, 8])
def test_a_fixed_batch_takes_any_number_of_samples(tmp_path, batch):
    array = images(6)
    expected = run_model(saved(tiny_cnn(), tmp_path, "free.onnx"), [{"image": array}], threads=1)["scores"]
    found = run_model(saved(tiny_cnn(batch=batch), tmp_path), [{"image": array}], threads=1)["scores"]
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_all_outputs_come_by_name(tmp_path):
    model = network("(float[N,2] p, float[N,2] q) => (float[N,2] s, float[N,2] d) { s = Add(p, q) d = Sub(p, q) }")
    p, q = np.ones((3, 2), np.float32), np.full((3, 2), 2, np.float32)
    found = run_model(saved(model, tmp_path), [{"p": p, "q": q}], threads=1)
    assert list(found) == ["s", "d"]
    np.testing.assert_array_equal(found["s"], p + q)
    np.testing.assert_array_equal(found["d"], p - q)


def test_the_runtime_keeps_quiet(tmp_path, capfd):
    path = saved(tiny_cnn(), tmp_path)
    run_model(path, [{"image": images(2)}], threads=1)
    assert capfd.readouterr() == ("", "")


def test_the_cpu_is_always_there():
    assert providers(cuda=False) == ["CPUExecutionProvider"]
    assert providers(cuda=True)[-1] == "CPUExecutionProvider"


@pytest.mark.parametrize("num", [4, 5])
def test_a_sample_of_several_rows_keeps_them_all(tmp_path, num):
    text = "(float[2,3,4] x) => (float[6,4] rows, float[2,3,4] y) { rows = Reshape(x, shape) y = Relu(x) }"
    path = saved(network(text, shape=np.array([6, 4], np.int64)), tmp_path)
    x = np.random.default_rng(0).normal(size=(num, 3, 4)).astype(np.float32)
    found = run_model(path, [{"x": x}], threads=1)
    np.testing.assert_array_equal(found["rows"], x.reshape(-1, 4))
    np.testing.assert_array_equal(found["y"], np.maximum(x, 0))
