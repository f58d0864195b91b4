from dataclasses import replace

import numpy as np
import onnx
import pytest
from export_networks import residual_case
from exported import write_files
from onnx.numpy_helper import to_array

from dipo.errors import UserError
from dipo.export.targets import openvino
from dipo.quant.spec import QuantSpec

W8 = QuantSpec(8, signed=True, symmetric=True, per_channel=True)
A8 = QuantSpec(8, signed=False, symmetric=False)


def test_writes_one_file_with_float_biases(tmp_path):
    case = residual_case(W8, A8)
    files = write_files(openvino.TARGET, case.model, case.quantized, tmp_path)
    assert files == list(tmp_path.iterdir()) == [tmp_path / "quantized.onnx"]
    stored = {tensor.name: to_array(tensor) for tensor in onnx.load(files[0]).graph.initializer}
    np.testing.assert_array_equal(stored["b1"], case.quantized.layers["conv1"].bias)
    assert stored["w1_quantized"].dtype == np.int8 and stored["x_zero_point"].dtype == np.uint8


@pytest.mark.parametrize("bits", [8, 4])
def test_openvino_computes_what_the_definition_says(tmp_path, bits):
    runtime = pytest.importorskip("openvino")
    case = residual_case(replace(W8, bits=bits), replace(A8, bits=bits))
    path = write_files(openvino.TARGET, case.model, case.quantized, tmp_path)[0]
    compiled = runtime.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    expected = case.simulate(int32_bias=False)["y"]
    found = compiled(case.feeds)[0]
    assert np.abs(found - expected).max() < 0.05 * np.abs(expected).max()


def test_wider_codes_are_refused(tmp_path):
    case = residual_case(W8, replace(A8, bits=16))
    with pytest.raises(UserError, match="'x' has 16 bits"):
        write_files(openvino.TARGET, case.model, case.quantized, tmp_path)
    assert not list(tmp_path.iterdir())
