"""Multiplications of a node, against those counted by hand."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from networks import network

from dipo.graph.multiplications import multiplications

CASES = {
    "convolution": ("(float[1,4,8,8] x) => (float[1,6,8,8] y) { y = Conv<pads=[1,1,1,1]>(x, w) }", (6, 4, 3, 3)),
    "in groups": ("(float[1,4,8,8] x) => (float[1,6,6,6] y) { y = Conv<group=2>(x, w) }", (6, 2, 3, 3)),
    "transposed": (
        "(float[1,4,8,8] x) => (float[1,6,9,9] y) { y = ConvTranspose(x, w) }",
        (4, 6, 2, 2),
    ),
    "turned matrix": ("(float[1,4] x) => (float[1,6] y) { y = Gemm<transB=1>(x, w) }", (6, 4)),
    "matrix": ("(float[1,5,4] x) => (float[1,5,6] y) { y = MatMul(x, w) }", (4, 6)),
    "stack of matrices": ("(float[1,3,5,4] x) => (float[1,3,5,6] y) { y = MatMul(x, w) }", (3, 4, 6)),
    "recurrent": ("(float[7,1,4] x) => (float[7,1,1,6] y) { y = LSTM<hidden_size=6>(x, w, w2) }", (1, 24, 4)),
}
COUNTS = {
    "convolution": 6 * 8 * 8 * 4 * 9,
    "in groups": 6 * 6 * 6 * 2 * 9,
    "transposed": 4 * 8 * 8 * 6 * 4,
    "turned matrix": 24,
    "matrix": 5 * 4 * 6,
    "stack of matrices": 3 * 5 * 4 * 6,
    "recurrent": 7 * 24 * (4 + 6),
}


def counted(model: onnx.ModelProto, **more: tuple[int, ...]) -> int:
    shapes = {
        value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
        for value in (*model.graph.input, *model.graph.output)
    }
    return sum(multiplications(node, shapes | more) for node in ir.from_proto(model).graph)


@pytest.mark.parametrize("case", CASES)
def test_products_with_weights(case):
    text, shape = CASES[case]
    assert counted(network(text, w=shape, w2=(1, 24, 6))) == COUNTS[case]


@pytest.mark.parametrize(
    ("call", "count"),
    [
        ("MatMul(a, b)", 2 * 5 * 6 * 4),
        ('Einsum<equation="bhij,bhjk->bhik">(a, b)', 2 * 5 * 6 * 4),
        ('Einsum<equation="...ij, ...jk -> ...ik">(a, b)', 2 * 5 * 6 * 4),
        ("Attention(a, c, c)", 2 * 2 * 5 * 7 * 4),
    ],
)
def test_products_of_activations(call, count):
    text = f"(float[1,2,5,4] a, float[1,2,4,6] b, float[1,2,7,4] c) => (float[1,2,5,6] y) {{ y = {call} }}"
    assert counted(network(text, opset=23)) == count


def test_nothing_else_counts():
    text = "(float[1,4,8,8] x) => (float[1,4,8,8] y) { a = Mul(x, k) b = Relu(a) y = Add(b, x) }"
    assert counted(network(text, k=np.ones(8, np.float32)), a=(1, 4, 8, 8), b=(1, 4, 8, 8)) == 0
