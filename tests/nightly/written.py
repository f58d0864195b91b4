"""A small network as dipo would write it."""

from __future__ import annotations

import numpy as np
import onnx
from networks import network

QDQ = """(float[N,3,4,4] image) => (float[N,4,2,2] out) {
  [q0] image_q = QuantizeLinear(image, image_scale, image_zero)
  [d0] image_d = DequantizeLinear(image_q, image_scale, image_zero)
  [dw] w_d = DequantizeLinear<axis=0>(w, w_scale, w_zero)
  [db] bias_d = DequantizeLinear(bias, bias_scale)
  [conv] a = Conv<pads=[1,1,1,1]>(image_d, w_d, bias_d)
  [relu] b = Relu(a)
  [q1] b_q = QuantizeLinear(b, b_scale, b_zero)
  [d1] b_d = DequantizeLinear(b_q, b_scale, b_zero)
  [float] c = Conv(b_d, plain)
  [pool] d = MaxPool<kernel_shape=[2,2], strides=[2,2]>(c)
  [q2] d_q = QuantizeLinear(d, d_scale, d_zero)
  [d2] out = DequantizeLinear(d_q, d_scale, d_zero)
}"""


def qdq(**changes: object) -> onnx.ModelProto:
    constants = {
        "image_scale": np.float32(0.5), "image_zero": np.uint8(128),
        "w": np.arange(4 * 3 * 9, dtype=np.int8).reshape(4, 3, 3, 3),
        "w_scale": np.float32([0.1, 0.2, 0.3, 0.4]), "w_zero": np.zeros(4, np.int8),
        "bias": np.arange(4, dtype=np.int32), "bias_scale": np.float32(0.1),
        "b_scale": np.float32(0.25), "b_zero": np.uint8(3),
        "plain": np.ones((4, 4, 1, 1), np.float32),
        "d_scale": np.float32(0.125), "d_zero": np.int8(-5),
    }  # fmt: skip
    return network(QDQ, **{**constants, **changes})
