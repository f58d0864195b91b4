"""The operators' records: complete, true of what torch computes, and the only place where such facts stand."""

from __future__ import annotations

import ast
import dataclasses
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import onnx_ir as ir
import pytest
import torch

import dipo
from dipo.algo.integer_kernels import INTEGER_FUNCTIONS
from dipo.algo.moment_ops import RULES as MOMENT_RULES
from dipo.errors import UserError
from dipo.export.targets import TARGETS
from dipo.export.targets.ti import LAYER_TYPES
from dipo.graph import operators
from dipo.graph.operators import OPERATORS, Channels, IntegerKernel, Kind, LimitsFrom, MomentRule, Operator, Sign
from dipo.graph.torch_ops import bind

OPSET = 24
PACKAGE = Path(dipo.__file__).parent
OF_THE_TABLE = PACKAGE / "graph" / "operators"
OF_TARGETS = PACKAGE / "export" / "targets"
NEED_MORE_THAN_THE_NODE = {MomentRule.CURVE, MomentRule.MOVED, MomentRule.LAYER}
FLOAT = [operator for operator in OPERATORS.values() if operator.torch is not None]


def ids(operator: Operator) -> str:
    return operator.key


def test_facts_that_all_operators_must_decide_on_have_no_default() -> None:
    needed = {field.name for field in dataclasses.fields(Operator) if field.default is dataclasses.MISSING}
    assert needed == {
        "name", "kind", "torch", "sign", "homogeneous", "keeps_shifts", "channels", "moments", "full_integer",
    }  # fmt: skip
    with pytest.raises(TypeError, match="'sign'"):
        Operator(name="Squash", kind=Kind.ACTIVATION, torch=None)  # type: ignore[call-arg]


@pytest.mark.parametrize("operator", FLOAT, ids=ids)
def test_a_row_is_complete(operator: Operator) -> None:
    assert operator.kind is not Kind.OTHER
    assert (operator.kind is Kind.WEIGHTED) == (operator.weight is not None)
    no_floats = operator.kind in {Kind.INDEX, Kind.CONVERSION}
    assert operator.full_integer or operator.moves or operator.clips or operator.name == "Where" or no_floats
    if operator.kind is Kind.MOVEMENT:
        assert operator.moves is not None
    if operator.kind is Kind.ACTIVATION:
        assert operator.channels is Channels.KEPT
        assert operator.moments is not None
        assert operator.data_inputs == 1
    if operator.on_codes:
        assert operator.moves is not None
    if operator.own_grid:
        assert operator.output_range is not None
        assert operator.output_range[1] == 1
    if operator.qoperator is not None:
        known = {each.name for each in OPERATORS.values() if each.kind is Kind.QUANTIZED}
        assert operator.qoperator in known


@pytest.mark.parametrize("operator", FLOAT, ids=ids)
def test_what_a_row_names_is_there(operator: Operator) -> None:
    rule = operator.moments
    assert rule is None or rule in MOMENT_RULES or rule in NEED_MORE_THAN_THE_NODE
    if operator.integer_kernel is IntegerKernel.CODES and operator.weight is None:
        assert operator.name in INTEGER_FUNCTIONS


def test_no_rule_and_no_kernel_is_without_an_operator() -> None:
    assert set(MOMENT_RULES) | NEED_MORE_THAN_THE_NODE == set(MomentRule)
    assert set(MOMENT_RULES) <= {operator.moments for operator in FLOAT}
    assert set(INTEGER_FUNCTIONS) == {each.name for each in FLOAT if each.integer_kernel and each.weight is None}


def test_targets_name_operators_of_the_table() -> None:
    for target in TARGETS.values():
        assert target.spec.operators <= set(OPERATORS), target.name
    assert set(LAYER_TYPES) <= set(OPERATORS)


ATTRIBUTES = {
    "AveragePool": {"kernel_shape": [2, 2]},
    "MaxPool": {"kernel_shape": [2, 2]},
    "Transpose": {"perm": [1, 0, 2, 3]},
    "DepthToSpace": {"blocksize": 2},
    "LpPool": {"kernel_shape": [2, 2]},
    "SpaceToDepth": {"blocksize": 2},
    "Shrink": {"bias": 2.0},
}
DIVISORS = {"Asin": 12.0, "Acos": 12.0, "Atanh": 12.0, "ReduceLogSum": 1e4}
"""Of the numbers, for operators that take those below 1, or show their sign there."""
OF_ONE = [
    operator
    for operator in FLOAT
    if operator.data_inputs == 1
    and operator.torch is not None
    and operator.kind in {Kind.ACTIVATION, Kind.ELEMENTWISE, Kind.POOLING, Kind.REDUCTION, Kind.MOVEMENT}
    and operator.name not in {"PRelu", "Resize", "Upsample", "Clip"}  # need more inputs
    and operator.name not in {"CumSum", "CumProd", "TopK", "Unique", "ReduceProd"}  # or return more, or overflow
    and not (operator.kind is Kind.MOVEMENT and operator.name not in {"Identity", "Dropout", "Flatten", *ATTRIBUTES})
]
"""Those that compute something of one tensor alone."""


def computed(operator: Operator, x: torch.Tensor) -> torch.Tensor:
    value = ir.Value(name="x", shape=ir.Shape(x.shape), type=ir.TensorType(ir.DataType.FLOAT))
    attributes = ATTRIBUTES.get(operator.name, {})
    x = x / DIVISORS.get(operator.name, 1.0)
    y = bind(ir.node(operator.name, [value], attributes, name="node"), OPSET)(x)
    assert isinstance(y, torch.Tensor)
    return y


@pytest.fixture
def x() -> torch.Tensor:
    return 3 * torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("operator", OF_ONE, ids=ids)
def test_the_sign_is_what_the_row_says(operator: Operator, x: torch.Tensor) -> None:
    if operator.sign is Sign.NEVER_NEGATIVE:
        assert not (computed(operator, x) < 0).any()
    elif operator.sign is Sign.KEPT:
        assert not (computed(operator, x.abs()) < 0).any()
        # Rows that could promise more do so.
        below = [computed(operator, -factor * x.abs()) for factor in (1, 100)]
        assert any((y < 0).any() for y in below) or operator.name == "ThresholdedRelu"
    else:
        assert (computed(operator, x.abs()) < 0).any()


@pytest.mark.parametrize("operator", OF_ONE, ids=ids)
def test_factors_and_shifts_pass_where_the_row_says_so(operator: Operator, x: torch.Tensor) -> None:
    y = computed(operator, x)
    passes = torch.allclose(computed(operator, 3 * x), 3 * y, rtol=1e-5, atol=1e-5)
    assert passes == operator.homogeneous
    x = x.abs()
    passes = torch.allclose(computed(operator, x + 1.7), computed(operator, x) + 1.7, rtol=1e-5, atol=1e-5)
    assert passes == operator.keeps_shifts


@pytest.mark.parametrize("operator", [each for each in OF_ONE if each.channels is Channels.KEPT], ids=ids)
def test_channels_stay_apart_where_the_row_says_so(operator: Operator, x: torch.Tensor) -> None:
    y = computed(operator, x.abs())
    changed = x.abs()
    changed[:, 1] *= 5
    others = [0, 2, 3]
    torch.testing.assert_close(computed(operator, changed)[:, others], y[:, others], equal_nan=True)


@pytest.mark.parametrize("operator", [each for each in OF_ONE if each.output_range], ids=ids)
def test_the_output_stays_in_its_range(operator: Operator, x: torch.Tensor) -> None:
    assert operator.output_range is not None
    low, high = operator.output_range
    y = computed(operator, 100 * x)
    assert ((low <= y) & (y <= high)).all()
    assert y.max() > high - 0.05
    assert y.min() < low + 0.05


@pytest.mark.parametrize("operator", [each for each in OF_ONE if each.moves], ids=ids)
def test_what_moves_makes_no_new_numbers(operator: Operator, x: torch.Tensor) -> None:
    assert set(computed(operator, x).flatten().tolist()) <= set(x.flatten().tolist())


@pytest.mark.parametrize("operator", [each for each in OF_ONE if each.limits], ids=ids)
def test_limits_cut_off(operator: Operator, x: torch.Tensor) -> None:
    limits = operator.limits
    assert limits is not None
    assert limits.source is LimitsFrom.ITSELF
    torch.testing.assert_close(computed(operator, x), x.clamp(limits.low, limits.high))


def _names_in(node: ast.AST) -> list[str]:
    constants = [each.value for each in ast.iter_child_nodes(node) if isinstance(each, ast.Constant)]
    return [value for value in constants if isinstance(value, str)]


def _lists_of_operators(source: str) -> Iterator[tuple[int, list[str]]]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Set | ast.List | ast.Tuple):
            found = [name for name in _names_in(node) if name in NAMES]
            if len(found) > 1:
                yield node.lineno, found


NAMES = {operator.name for operator in OPERATORS.values()}


def test_no_other_module_lists_operators() -> None:
    """What several have in common is a fact, and belongs to their records; a target's own list is its device's."""
    assert list(_lists_of_operators('x in frozenset({"Relu", "Clip"}) or x == "Conv"')) == [(1, ["Relu", "Clip"])]
    found = [
        f"{path.relative_to(PACKAGE)}:{line}: {', '.join(names)}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if not path.is_relative_to(OF_THE_TABLE) and not path.is_relative_to(OF_TARGETS)
        for line, names in _lists_of_operators(path.read_text("utf-8"))
    ]
    assert found == []


def test_the_table_is_light() -> None:
    """It is read beside a vendor's toolkit, and by pages of help."""
    heavy = "{'torch', 'onnx', 'onnx_ir', 'onnxruntime', 'numpy', 'ray'}"
    code = f"import sys; from dipo.graph import operators; operators.names(bool); print({heavy} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_an_unknown_operator_promises_nothing() -> None:
    node = ir.node("Relu", [ir.Value(name="x")], domain="com.example")
    operator = operators.of(node)
    assert (operator.kind, operator.torch, operator.moments) == (Kind.OTHER, None, None)
    assert not (operator.homogeneous or operator.keeps_shifts or operator.full_integer or operator.clips)
    assert operators.key_of(node) == "com.example.Relu"
    assert operators.of(ir.node("Relu", [ir.Value(name="x")], domain="ai.onnx")) is OPERATORS["Relu"]


def test_a_record_is_announced_by_its_own_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OPERATORS._own, "Squash", OPERATORS["Relu"])  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="operator 'Squash' of another package: its entry point gives Relu"):
        operators.of(ir.node("Squash", [ir.Value(name="x")]))
