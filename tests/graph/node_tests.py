"""ONNX's node tests: models of one node of the default domain, with inputs and outputs, that come with onnx."""

from __future__ import annotations

import contextlib
import functools
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import torch
from onnx import numpy_helper

from dipo.errors import UserError
from dipo.graph import operators
from dipo.graph.operators import Kind
from dipo.graph.ops.types import HELD
from dipo.graph.torch_ops import bind

Arrays = Sequence[Any]

IR_VERSION = 10
"""Newest version of the format that ONNX Runtime reads; the tests' models state that of their onnx."""


@dataclass(frozen=True)
class NodeTest:
    """One node test."""

    name: str
    model: onnx.ModelProto
    data: Sequence[tuple[Arrays, Arrays]]
    rtol: float
    atol: float

    @property
    def operator(self) -> str:
        """The operator that it tests."""
        op_type: str = self.model.graph.node[0].op_type
        return op_type

    @property
    def has_floats(self) -> bool:
        """Whether one of its inputs or outputs is a tensor of float32."""
        graph = self.model.graph
        types = [value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)]
        return onnx.TensorProto.FLOAT in types


@functools.cache
def node_tests() -> tuple[NodeTest, ...]:
    """Return the tests of a single node, less those of quantized operators, of which a float network has none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnx.backend.test.case.node import collect_testcases

        cases = collect_testcases(None)
    quantized = operators.with_kind(Kind.QUANTIZED)
    single = (case for case in cases if len(case.model.graph.node) == 1 and not case.model.graph.node[0].domain)
    return tuple(
        NodeTest(case.name, _readable(case.model), _data(case), max(case.rtol, 1e-4), max(case.atol, 1e-5))
        for case in single
        if case.model.graph.node[0].op_type not in quantized
    )


def differs(test: NodeTest, results: Arrays, expected: Arrays) -> str | None:
    """Return how results differ from what is expected; None if they do not."""
    if len(results) != len(expected):
        return f"{len(results)} outputs, not {len(expected)}"
    for result, wanted in zip(results, expected, strict=True):
        if isinstance(wanted, list | tuple) or wanted is None:
            return "no tensor"
        result, wanted = np.asarray(result), np.asarray(wanted)  # noqa: PLW2901 - as arrays
        if (result.dtype, result.shape) != (wanted.dtype, wanted.shape):
            return f"{result.dtype} {result.shape}, not {wanted.dtype} {wanted.shape}"
        if not _close(result, wanted, test):
            return "other numbers"
    return None


def in_torch(test: NodeTest, *, constant: bool) -> list[Arrays] | None:
    """Return what torch makes of each data set; None where `bind` refuses the node.

    Args:
        test: The test.
        constant: Whether the inputs behind the first are constants of the network, or computed.
    """
    made = []
    for inputs, _ in test.data:
        if any(_to_tensor(x) is None for x in inputs):
            return None
        model = ir.serde.deserialize_model(test.model)
        (node,) = model.graph
        feed = dict(zip((value.name for value in test.model.graph.input), inputs, strict=True))
        for value in node.inputs[1:] if constant else ():
            if value is not None:
                value.const_value = ir.tensor(np.asarray(feed[value.name]), name=value.name)
        try:
            function = bind(node, model.opset_imports[""])
        except UserError:
            return None
        arguments = [None if value is None else _to_tensor(feed[value.name]) for value in node.inputs]
        before = [None if x is None else x.clone() for x in arguments]
        results = function(*arguments)
        assert all(map(_equal, arguments, before)), f"{test.name}: an argument was changed"
        results = results if isinstance(results, tuple) else (results,)
        named = zip(results, node.outputs, strict=False)
        made.append([_to_array(y, value.dtype) for y, value in named if value.name])
    return made


def in_onnxruntime(test: NodeTest) -> list[Arrays] | None:
    """Return what ONNX Runtime makes of each data set; None if it does not run the model, or lacks its types."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    names = [value.name for value in test.model.graph.input]
    with _unreleased_opsets():
        try:
            session = ort.InferenceSession(test.model.SerializeToString(), options, providers=["CPUExecutionProvider"])
            return [session.run(None, dict(zip(names, map(_fed, inputs), strict=True))) for inputs, _ in test.data]
        except Exception:  # noqa: BLE001 - of many kinds, some of them numpy's
            return None


@contextlib.contextmanager
def _unreleased_opsets() -> Iterator[None]:
    """Let ONNX Runtime read operator sets that are newer than itself."""
    key = "ALLOW_RELEASED_ONNX_OPSET_ONLY"
    before: Mapping[str, str] = {key: os.environ[key]} if key in os.environ else {}
    os.environ[key] = "0"
    try:
        yield
    finally:
        del os.environ[key]
        os.environ.update(before)


def _readable(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.ir_version = min(copy.ir_version, IR_VERSION)
    return copy


def _data(case: Any) -> list[tuple[Arrays, Arrays]]:
    return [(list(map(_array, inputs)), list(map(_array, outputs))) for inputs, outputs in case.data_sets]


def _array(value: Any) -> Any:
    value = numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else value
    return np.asarray(value) if isinstance(value, np.generic) else value


def _fed(value: Any) -> Any:
    if isinstance(value, np.ndarray) and value.dtype.name in _BY_BITS:
        kind = getattr(onnx.TensorProto, value.dtype.name.upper().replace("_", ""))
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(value.view(_BY_BITS[value.dtype.name][0]), kind)
    return value


_BY_BITS = {
    "bfloat16": (np.int16, torch.bfloat16),
    "float8_e4m3fn": (np.uint8, torch.float8_e4m3fn),
    "float8_e4m3fnuz": (np.uint8, torch.float8_e4m3fnuz),
    "float8_e5m2": (np.uint8, torch.float8_e5m2),
    "float8_e5m2fnuz": (np.uint8, torch.float8_e5m2fnuz),
}
"""Types that numpy and torch exchange as integers: these, and torch's own."""
_HELD = {ir.DataType[name].numpy().name: name for name in HELD}
"""Names of the types that torch holds in others, by numpy's."""
_PLAIN = {"bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
          "float16", "float32", "float64"}  # fmt: skip


def _to_tensor(value: Any) -> torch.Tensor | None:
    """Return a tensor; None if torch has none such."""
    name = value.dtype.name if isinstance(value, np.ndarray) else ""
    if name in _BY_BITS:
        bits, dtype = _BY_BITS[name]
        return torch.from_numpy(value.view(bits).copy()).view(dtype)
    if name in _HELD:
        return torch.from_numpy(value.astype(np.float32)).to(HELD[_HELD[name]])
    return torch.from_numpy(np.array(value)) if name in _PLAIN else None


def _to_array(tensor: torch.Tensor, kind: ir.DataType | None) -> np.ndarray:
    if kind is not None and kind.name in HELD:
        numbers = tensor.numpy().astype(kind.numpy())
        assert np.array_equal(numbers.astype(np.float32), tensor.float().numpy()), f"no values of {kind.name}"
        return numbers
    for name, (bits, dtype) in _BY_BITS.items():
        if tensor.dtype == dtype:
            import ml_dtypes

            return tensor.view(getattr(torch, np.dtype(bits).name)).numpy().view(getattr(ml_dtypes, name))
    return tensor.numpy()


def _equal(a: torch.Tensor | None, b: torch.Tensor | None) -> bool:
    if a is None or b is None:
        return a is b
    return a.numel() == 0 or torch.equal(*(x.reshape(-1).contiguous().view(torch.uint8) for x in (a, b)))


def _close(result: np.ndarray, wanted: np.ndarray, test: NodeTest) -> bool:
    if wanted.dtype.kind in "bOUS":
        return bool(np.array_equal(result, wanted))
    kind = np.complex128 if wanted.dtype.kind == "c" else np.float64
    return bool(np.allclose(result.astype(kind), wanted.astype(kind), rtol=test.rtol, atol=test.atol, equal_nan=True))
