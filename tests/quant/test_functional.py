import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from dipo.quant.functional import TorchQParams, dequantize, fake_quantize, quantize
from dipo.quant.spec import QParams

GRAPH = """
<ir_version: 10, opset_import: ["" : 19]>
net (float[n, 4] x, float scale, {0} zero) => (float[n, 4] y, {0}[n, 4] q)
{{ q = QuantizeLinear (x, scale, zero)  y = DequantizeLinear (q, scale, zero) }}
"""


@pytest.mark.parametrize(("dtype", "kind", "limits"), [(np.uint8, "uint8", (0, 255)), (np.int8, "int8", (-128, 127))])
def test_bit_for_bit_what_onnx_runtime_computes(dtype, kind, limits):
    rng = np.random.default_rng(0)
    session = ort.InferenceSession(
        onnx.parser.parse_model(GRAPH.format(kind)).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    for scale in (0.1, 0.0037, 1.0, 3e-5):
        # Halves of the scale are where a wrong rounding mode, or a product with the reciprocal, shows.
        x = np.concatenate(
            [rng.standard_normal((2000, 4)) * 100 * scale, np.arange(-400, 400).reshape(-1, 4) * 0.5 * scale]
        ).astype(np.float32)
        zero = np.array(7, dtype)
        y, q = session.run(None, {"x": x, "scale": np.array(scale, np.float32), "zero": zero})
        qparams = TorchQParams.of(
            QParams(np.float32(scale), zero.astype(np.int32), *limits), num_dims=2, device=torch.device("cpu")
        )
        codes = quantize(torch.from_numpy(x), qparams)
        assert np.array_equal(codes.numpy(), q)
        assert np.array_equal(dequantize(codes, qparams).numpy(), y)
        assert np.array_equal(fake_quantize(torch.from_numpy(x), qparams).numpy(), y)


def test_narrow_limits_saturate_inside_their_type():
    qparams = TorchQParams.of(QParams(np.float32(1), np.int32(0), 0, 15), num_dims=1, device=torch.device("cpu"))
    assert quantize(torch.tensor([-3.0, 4.5, 5.5, 99.0]), qparams).tolist() == [0, 4, 6, 15]


def test_fake_quantize_leaves_its_input_alone():
    x = torch.tensor([0.3, 0.7])
    qparams = TorchQParams.of(QParams(np.float32(1), np.int32(0), 0, 15), num_dims=1, device=torch.device("cpu"))
    fake_quantize(x, qparams)
    assert torch.equal(x, torch.tensor([0.3, 0.7]))
