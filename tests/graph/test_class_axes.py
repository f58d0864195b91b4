import onnx_ir as ir
import pytest
from networks import network

from dipo.errors import UserError
from dipo.graph.class_axes import class_axes
from dipo.graph.load import normalise

IMAGE = "(float[N,3,8,8] image)"
CASES = {
    "a classifier": (f"{IMAGE} => (float[N,2] y) {{ a = Flatten(image) y = MatMul(a, w) }}", {"w": (192, 2)}, 1),
    "one number": (f"{IMAGE} => (float[N,1] y) {{ a = Flatten(image) y = MatMul(a, w) }}", {"w": (192, 1)}, None),
    "convolutional": (
        f"{IMAGE} => (float[N,3,1,1] y) {{ a = Conv(image, w) y = GlobalAveragePool(a) }}", {"w": (3, 3, 3, 3)}, 1,
    ),
    "segmentation": (f"{IMAGE} => (float[N,6,8,8] y) {{ y = Conv(image, w) }}", {"w": (6, 3, 1, 1)}, 1),
    "channels last": (
        f"{IMAGE} => (float[N,8,8,6] y) {{ a = Conv(image, w) y = Transpose<perm=[0,2,3,1]>(a) }}", {"w": (6, 3, 1, 1)},
        3,
    ),
    "an image": (f"{IMAGE} => (float[N,3,8,8] y) {{ y = Conv(image, w) }}", {"w": (3, 3, 1, 1)}, None),
    "a map at a stride": (
        f"{IMAGE} => (float[N,6,4,4] y) {{ y = Conv<strides=[2,2]>(image, w) }}", {"w": (6, 3, 1, 1)}, None,
    ),
    "few classes by a Softmax": (
        f"{IMAGE} => (float[N,2,4,4] y) {{ a = Conv<strides=[2,2]>(image, w) y = Softmax<axis=1>(a) }}",
        {"w": (2, 3, 1, 1)}, 1,
    ),
    "a Softmax before a transposition": (
        f"""{IMAGE} => (float[N,8,8,2] y) {{
          a = Conv(image, w) b = Softmax<axis=-3>(a) y = Transpose<perm=[0,2,3,1]>(b)
        }}""",
        {"w": (2, 3, 1, 1)}, 3,
    ),
    "words": (
        "(float[N,7,8] x) => (float[N,7,9] y) { a = MatMul(x, w) y = Add(a, b) }", {"w": (8, 9), "b": (9,)}, 2,
    ),
    "boxes": ("(float[N,7,8] x) => (float[N,7,4] y) { a = MatMul(x, w) y = Sigmoid(a) }", {"w": (8, 4)}, None),
    "boxes as they are": ("(float[N,7,8] x) => (float[N,7,4] y) { y = MatMul(x, w) }", {"w": (8, 4)}, None),
    "joined heads": (
        "(float[N,7,8] x) => (float[N,14,9] y) { a = MatMul(x, w) b = MatMul(x, v) y = Concat<axis=1>(a, b) }",
        {"w": (8, 9), "v": (8, 9)}, None,
    ),
    "a sum": (
        "(float[N,7,8] x) => (float[N,7,8] y) { a = MatMul(x, w) y = Add(a, x) }", {"w": (8, 8)}, None,
    ),
    "integers": ("(float[N,8] x) => (int64[N,9] y) { a = MatMul(x, w) y = Cast<to=7>(a) }", {"w": (8, 9)}, None),
}  # fmt: skip


def normalised(text, constants) -> ir.Model:
    return normalise(ir.from_proto(network(text, **constants)), source="here")


@pytest.mark.parametrize(("text", "constants", "axis"), CASES.values(), ids=CASES)
def test_classes_are_found_where_a_top_1_makes_sense(text, constants, axis):
    assert class_axes(normalised(text, constants), {}) == {"y": axis}


@pytest.mark.parametrize(("given", "axis"), [({"y": 2}, 2), ({"*": -2}, 1), ({"y": 0}, None), ({"y": 1, "*": 2}, 1)])
def test_the_user_knows_better(given, axis):
    text, constants, _ = CASES["words"]
    assert class_axes(normalised(text, constants), given) == {"y": axis}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"z": 1}, r"data\.class_axis: no output is called 'z', choose from y"),
        ({"y": 3}, r"data\.class_axis: output 'y' has 3 axes, give one from 1 to 2, or 0 for none"),
        ({"y": -3}, "has 3 axes"),
    ],
)
def test_what_cannot_be_is_refused(given, says):
    text, constants, _ = CASES["words"]
    with pytest.raises(UserError, match=says):
        class_axes(normalised(text, constants), given)
