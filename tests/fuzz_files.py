"""Damage to files for the fuzz tests: bytes, the fields of a model's messages, samples, options."""

from __future__ import annotations

import io
import math
import struct
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from hypothesis import strategies as st

Draw = Callable[[st.SearchStrategy[Any]], Any]
WHOLE = [0, 1, -1, 2, 3, 7, 16, 127, 1 << 15, 1 << 31, (1 << 31) - 1, 1 << 40, (1 << 63) - 1, -(1 << 63)]
FLOATS = [0.0, -0.0, 1.0, -1.0, math.nan, math.inf, -math.inf, 1e38, 1e-45]
WORDS = [
    "",
    "x",
    "Relu",
    "Conv",
    "Loop",
    "LSTM",
    "QuantizeLinear",
    "image",
    "SAME_UPPER",
    "com.microsoft",
    "a" * 2000,
    "\u0000",
]
INTEGERS = {
    FieldDescriptor.TYPE_INT32: (-(1 << 31), (1 << 31) - 1),
    FieldDescriptor.TYPE_INT64: (-(1 << 63), (1 << 63) - 1),
    FieldDescriptor.TYPE_UINT64: (0, (1 << 64) - 1),
    FieldDescriptor.TYPE_ENUM: (-(1 << 31), (1 << 31) - 1),
}


@st.composite
def damaged_bytes(draw: Any, content: bytes) -> bytes:
    """Return the file with bytes flipped, cut off, doubled, moved or replaced."""
    kind = draw(st.sampled_from(["flip", "flip", "flip", "cut", "drop", "double", "zero", "noise", "empty"]))
    at = draw(st.integers(0, max(0, len(content) - 1)))
    size = draw(st.sampled_from([1, 2, 8, 100]))
    if kind == "flip":
        changed = bytearray(content)
        for _ in range(draw(st.sampled_from([1, 1, 2, 8, 64]))):
            changed[draw(st.integers(0, len(content) - 1))] ^= 1 << draw(st.integers(0, 7))
        return bytes(changed)
    return {
        "cut": content[:at],
        "drop": content[:at] + content[at + size :],
        "double": content[:at] + content[at : at + size] * 2 + content[at + size :],
        "zero": content[:at] + bytes(size) + content[at + size :],
        "noise": content[:at] + draw(st.binary(min_size=size, max_size=size)) + content[at + size :],
        "empty": b"",
    }[kind]


@st.composite
def damaged_models(draw: Any, model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy with one to three fields changed, anywhere in the model; names are swapped for others of it."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 3]))):
        messages = list(_messages(copy))
        kinds = sorted({type(message).__name__ for message in messages})
        kind = draw(st.sampled_from(kinds))
        message = draw(st.sampled_from([message for message in messages if type(message).__name__ == kind]))
        _damage(draw, message, names=_names(copy))
    return copy


@st.composite
def damaged_numbers(draw: Any, model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy with other whole numbers: in attributes, constants such as pads and limits, and declared shapes."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for _ in range(draw(st.sampled_from([1, 1, 2, 3]))):
        places = [
            *((attribute, "i") for node in copy.graph.node for attribute in node.attribute if attribute.type == 2),
            *((attribute.ints, at) for node in copy.graph.node for attribute in node.attribute
              for at in range(len(attribute.ints))),
            *((dim, "dim_value") for value in (*copy.graph.input, *copy.graph.output)
              for dim in value.type.tensor_type.shape.dim),
            *((tensor, None) for tensor in copy.graph.initializer if tensor.data_type == onnx.TensorProto.INT64),
        ]  # fmt: skip
        if places:
            _change_number(draw, *draw(st.sampled_from(places)))
    return copy


def _change_number(draw: Draw, holder: Any, at: str | int | None) -> None:
    if isinstance(at, int):
        holder[at] = _near(draw, holder[at])
    elif at is not None:
        setattr(holder, at, _near(draw, getattr(holder, at)))
    else:
        array = onnx.numpy_helper.to_array(holder).copy()
        if array.size:
            index = draw(st.integers(0, array.size - 1))
            array.flat[index] = _near(draw, int(array.flat[index]))
            holder.CopyFrom(onnx.numpy_helper.from_array(array, holder.name))


def _near(draw: Draw, number: int) -> int:
    """Return another number, most often one that might be meant."""
    low, high = -(1 << 63), (1 << 63) - 1
    some = [number + 1, number - 1, -number, number * 2, number * 10, -1, -2, 0, 1, 2, 3, 4, 8, 40, 1000, -1000]
    return max(low, min(high, draw(st.sampled_from([*some, *some, 1 << 31, -(1 << 31), 1 << 62, high, low]))))


def _messages(message: Message) -> list[Message]:
    found = [message]
    for descriptor, value in message.ListFields():
        if descriptor.type == FieldDescriptor.TYPE_MESSAGE:
            for part in value if descriptor.is_repeated else [value]:
                found += _messages(part)
    return found


def _names(model: onnx.ModelProto) -> list[str]:
    names = {name: None for node in model.graph.node for name in (*node.input, *node.output)}
    return [*names, *WORDS]


def _damage(draw: Draw, message: Message, *, names: list[str]) -> None:
    """Change one field of a message: most often one that is there."""
    fields = list(message.DESCRIPTOR.fields)
    present = [descriptor for descriptor, _ in message.ListFields()]
    descriptor = draw(st.sampled_from(present if present and draw(st.integers(0, 3)) else fields))
    if not descriptor.is_repeated:
        if descriptor.type == FieldDescriptor.TYPE_MESSAGE or draw(st.integers(0, 5)) == 0:
            message.ClearField(descriptor.name)
        else:
            setattr(message, descriptor.name, _other(draw, descriptor, getattr(message, descriptor.name), names))
        return
    values = getattr(message, descriptor.name)
    if not len(values):
        if descriptor.type != FieldDescriptor.TYPE_MESSAGE:
            values.append(_other(draw, descriptor, None, names))
        return
    at = draw(st.integers(0, len(values) - 1))
    kind = draw(st.sampled_from(["change", "change", "delete", "double", "swap", "clear"]))
    if kind == "delete":
        del values[at]
    elif kind == "clear":
        message.ClearField(descriptor.name)
    elif kind == "double":
        values.append(values[at])
    elif kind == "swap":
        moved = [values[index] for index in draw(st.permutations(range(min(len(values), 12))))]
        kept = [type(v).FromString(v.SerializeToString()) if isinstance(v, Message) else v for v in moved]
        del values[: len(kept)]
        values.extend(kept)
    elif descriptor.type == FieldDescriptor.TYPE_MESSAGE:
        _damage(draw, values[at], names=names)
    else:
        values[at] = _other(draw, descriptor, values[at], names)


def _other(draw: Draw, descriptor: FieldDescriptor, value: Any, names: list[str]) -> Any:
    if descriptor.type in INTEGERS:
        low, high = INTEGERS[descriptor.type]
        near = [value + 1, value - 1] if isinstance(value, int) else []
        fitting = [number for number in [*near, *near, *WHOLE] if low <= number <= high]
        closed = descriptor.enum_type is not None and descriptor.enum_type.is_closed
        return draw(st.sampled_from([number.number for number in descriptor.enum_type.values] if closed else fitting))
    if descriptor.type in (FieldDescriptor.TYPE_FLOAT, FieldDescriptor.TYPE_DOUBLE):
        return draw(st.sampled_from(FLOATS))
    if descriptor.type == FieldDescriptor.TYPE_STRING:
        return draw(st.sampled_from(names))
    content = value or b""
    return draw(
        st.sampled_from(
            [b"", content[:-1], content[: len(content) // 2], content + b"\0", content * 2, b"\xff\xfe",
             b"\0\0\xc0\x7f" + content[4:], b"\0\0\x80\x7f" + content[4:]]
        )
    )  # fmt: skip


@st.composite
def damaged_samples(draw: Any, arrays: dict[str, np.ndarray]) -> bytes:
    """Return a .npz of these samples with something wrong in it."""
    name = draw(st.sampled_from(sorted(arrays)))
    array = arrays[name]
    kind = draw(
        st.sampled_from(
            ["bytes", "bytes", "nan", "inf", "dtype", "dtype", "shape", "shape", "name", "empty", "objects", "none",
             "header", "header", "few", "strange", "huge"]
        )
    )  # fmt: skip
    changed = dict(arrays)
    if kind == "bytes":
        return draw(damaged_bytes(to_npz(arrays)))
    if kind in ("nan", "inf") and array.dtype.kind == "f" and array.size:
        changed[name] = array.copy()
        changed[name].flat[draw(st.integers(0, array.size - 1))] = math.nan if kind == "nan" else math.inf
    elif kind == "dtype":
        to = draw(
            st.sampled_from(["f2", "f8", "i1", "u1", "i8", "u8", "?", "c8", "S3", "U2", "M8[s]", "V4", ">f4", "i2"])
        )
        changed[name] = np.zeros(array.shape, np.dtype(to)) if to in ("M8[s]", "V4") else array.astype(np.dtype(to))
    elif kind == "shape":
        other = draw(
            st.sampled_from(
                [
                    array[..., :-1] if array.ndim else array,
                    array[None],
                    array.ravel(),
                    array.T,
                    array[:, :0] if array.ndim > 1 else array,
                    np.float32(3),
                ]
            )
        )
        changed[name] = np.asarray(other)
    elif kind == "name":
        del changed[name]
        changed[draw(st.sampled_from(["x", "y", "calib_x", "test_x", "labels", "", "a/b", "ünï", "inputs.npy"]))] = (
            array
        )
    elif kind == "empty":
        changed[name] = array[:0]
    elif kind == "objects":
        return to_npz({**arrays, name: np.array([None, {}], object)})
    elif kind == "none":
        return to_npz({})
    elif kind == "few":
        changed[name] = array[:1]
    elif kind == "strange":
        changed["labels"] = draw(
            st.sampled_from(
                [
                    np.zeros(len(array) if array.ndim else 1),
                    np.array("a"),
                    np.full(array.shape[:1], 1 << 40),
                    np.full(array.shape[:1], -1),
                ]
            )
        )
    elif kind in ("header", "huge"):
        return _with_header(draw, changed, name)
    return to_npz(changed)


def _with_header(draw: Draw, arrays: dict[str, np.ndarray], name: str) -> bytes:
    """Return a .npz where one array's header says other things than its content is."""
    text = draw(
        st.sampled_from(
            [
                "{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776, 3, 8, 8), }",
                "{'descr': '<f4', 'fortran_order': False, 'shape': (-4, 3, 8, 8), }",
                "{'descr': '<f4', 'fortran_order': True, 'shape': (8, 3, 8, 8), }",
                "{'descr': '|O', 'fortran_order': False, 'shape': (8,), }",
                "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (8, 3, 8, 8), }",
                "{'descr': '<f4', 'shape': (8,), }",
                "{'descr': '<f999', 'fortran_order': False, 'shape': (8,), }",
                "[" * 5000,
                "not a header",
                "{'descr': '<f4', 'fortran_order': False, 'shape': (4, 3, 8, 8), 'more': 1}",
            ]
        )
    )
    header = (text + " " * 4 + "\n").encode()
    content = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + arrays[name].tobytes()[: 4 * 64]
    if draw(st.booleans()):
        content += bytes(1 << 22)  # packs to nothing
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", draw(st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))) as archive:
        archive.writestr(f"{name}.npy", content)
        for other, array in arrays.items():
            if other != name:
                archive.writestr(f"{other}.npy", _npy(array))
    return file.getvalue()


def _npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def to_npz(arrays: dict[str, np.ndarray]) -> bytes:
    """Return the content of a .npz."""
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


OPTIONS = [
    "precision", "precision.weight_bits", "precision.act_bits", "precision.skip", "precision.overrides", "algo",
    "algo.steps", "algo.iters", "calib", "calib.method", "data.num", "data.mean", "data.std", "data.layout",
    "platform", "export.format", "export.also", "seed", "cluster.threads", "nothing", "model.name",
    "data.class_axis", "data.scale", "data.size",
]  # fmt: skip
VALUES = [
    "", "1", "-1", "0", "1e400", "nan", "null", "true", "[]", "[1,2", "{}", "{a:{b:1}}", "{a:", "[[[]]]", "abc", "'",
    "w4a8", "trt", "mse", "[trt,rk]", "[equalize,bias_correction]", "&a [*a]", "!!python/object:os.system {}",
    "{'*':{weight_bits:4}}", "[nothing*]", "ünï", "a=b", "${oc.env:HOME}", "${nothing}", "[0.1,0.2,0.3]", "NCHW", "8x8",
    "999999999999", "[8,8]", '"',
]  # fmt: skip


@st.composite
def odd_options(draw: Any) -> list[str]:
    """Return one or two options with values that may or may not mean something."""
    return [
        f"{draw(st.sampled_from(OPTIONS))}={draw(st.sampled_from(VALUES))}"
        for _ in range(draw(st.sampled_from([1, 1, 2])))
    ]
