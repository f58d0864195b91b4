import io
import json
import math
from dataclasses import asdict, dataclass, replace

import onnx
import onnx_ir as ir
import pytest
from rich.console import Console

from dipo.algo.analysis_sums import NetworkAnalysis
from dipo.config import compose_config
from dipo.export.targets import TARGETS
from dipo.graph.plan import LayerPlan, Plan
from dipo.quant.error_sums import ErrorSums
from dipo.quant.spec import QuantSpec
from dipo.report.analysis import AnalysisReport, report_analysis
from dipo.report.terminal import SENSITIVE_LAYERS, WIDE, Terminal


@dataclass(frozen=True)
class WeightSums:
    signal: float = 1.0
    per_tensor: float = 1e-3
    per_channel: float = 1e-3


def at(db: float, signal: float = 100.0) -> ErrorSums:
    noise = signal * 10 ** (-db / 10)
    return ErrorSums(signal, signal, signal - noise / 2, noise, 4)


def model_of(names: list[str]) -> ir.Model:
    """Layers in a row."""
    nodes = [
        onnx.helper.make_node("MatMul", [f"v{index}", f"w{index}"], [f"v{index + 1}"], name=name)
        for index, name in enumerate(names)
    ]
    ends = [onnx.helper.make_tensor_value_info(f"v{index}", 1, ["N", 2]) for index in (0, len(names))]
    weights = [onnx.helper.make_tensor(f"w{index}", 1, [2, 2], [1.0] * 4) for index in range(len(names))]
    return ir.from_proto(onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", ends[:1], ends[1:], weights)))


@dataclass
class Layer:
    """One layer's figures, in dB."""

    network: float | list[ErrorSums] = 30.0
    weight: float = 40.0
    activation: float | None = 40.0
    bits: int = 8
    act_bits: int = 8
    per_channel: bool = True
    scales: WeightSums = WeightSums()
    shift: float | None = None


def rated(layers: dict[str, Layer], rules=TARGETS["ort"].spec) -> AnalysisReport:
    names = list(layers)
    specs = {name: QuantSpec(each.bits, True, True, each.per_channel) for name, each in layers.items()}
    plan = Plan(
        {name: LayerPlan(name, f"w{index}", None, 1, specs[name]) for index, name in enumerate(names)},
        {
            f"v{index}": QuantSpec(layers[name].act_bits, False, False)
            for index, name in enumerate(names)
            if layers[name].activation is not None
        },
        {},
    )
    totals = {
        "weight": {name: [at(each.weight)] for name, each in layers.items()},
        "activation": {name: [at(each.activation)] for name, each in layers.items() if each.activation is not None},
        "both": {name: [at(30)] for name in names},
        "accumulated": {name: [at(20)] for name in names},
        "sensitivity": {
            name: each.network if isinstance(each.network, list) else [at(each.network)]
            for name, each in layers.items()
        },
    }
    weights = {name: each.scales for name, each in layers.items()}
    shifts = {name: each.shift for name, each in layers.items() if each.shift is not None}
    found = NetworkAnalysis(totals, weights, shifts, samples=32, sensitivity_samples=16)
    return report_analysis(model_of(names), plan=plan, rules=rules, found=found)


def row_of(report: AnalysisReport, name: str):
    return next(row for row in report.layers if row.name == name)


def test_figures_are_those_of_the_sums():
    row = row_of(rated({"a": Layer(network=20, weight=30, activation=25), "b": Layer(network=30)}), "a")
    assert row.alone.weight.sqnr_db == pytest.approx(30)
    assert row.alone.weight.mse == pytest.approx(100 * 1e-3 / 4)
    assert row.alone.weight.cosine == pytest.approx(1 - 0.5e-3)
    assert row.accumulated.sqnr_db == pytest.approx(20)
    assert row.sensitivity.relative_mse == pytest.approx(0.01)
    assert row.sensitivity.share == pytest.approx(0.01 / 0.011)
    assert (row.hurts, row.rank) == ("activation", 1)


def test_outputs_count_alike_whatever_their_magnitude():
    row = row_of(rated({"a": Layer(network=[at(20, signal=1e6), at(40, signal=1e-3)])}), "a")
    assert row.sensitivity.relative_mse == pytest.approx((0.01 + 0.0001) / 2)
    assert row.sensitivity.sqnr_db == pytest.approx(-10 * math.log10(0.00505))


def test_layers_stay_in_their_order_and_are_ranked_by_the_network():
    report = rated({name: Layer(network=db) for name, db in {"a": 30, "b": 10, "c": 20}.items()})
    assert [(row.name, row.rank) for row in report.layers] == [("a", 3), ("b", 1), ("c", 2)]
    assert [row.name for row in report.most_sensitive(2)] == ["b", "c"]


@pytest.mark.parametrize(
    ("layer", "advice", "option"),
    [
        (
            Layer(network=10, weight=20, per_channel=False, scales=WeightSums(per_channel=1e-4)),
            "per-channel weights",
            "precision.overrides={bad:{weight_per_channel:true}}",
        ),
        (Layer(network=10, weight=20, bits=4, shift=0.2), "8-bit weights", "precision.overrides={bad:{weight_bits:8}}"),
        (Layer(network=10, activation=20, act_bits=4), "8-bit input", "precision.overrides={bad:{act_bits:8}}"),
        (Layer(network=10, weight=20, bits=4, shift=0.8), "correct its bias", "+algo=bias_correction"),
        (Layer(network=10, weight=20), "keep it float", "precision.skip=[bad]"),
        (Layer(network=25, weight=20), None, None),
        (Layer(network=45, weight=20, bits=4), None, None),
    ],
)
def test_advice_is_an_option_that_can_be_typed(layer, advice, option):
    report = rated({"good": Layer(network=60), "bad": layer})
    assert row_of(report, "bad").advice == advice
    assert row_of(report, "good").advice is None
    assert report.options() == ([] if option is None else [option])
    config = compose_config(["model.path=a.onnx", "data.path=b.npz", *report.options()])
    assert config.precision.overrides == report.overrides
    assert config.precision.skip == report.skip


def test_nothing_is_advised_that_the_target_does_not_take():
    rules = replace(TARGETS["ort"].spec, weight_per_channel=False)
    layer = Layer(network=10, weight=20, bits=4, per_channel=False, scales=WeightSums(per_channel=1e-4))
    assert row_of(rated({"good": Layer(network=60), "bad": layer}, rules), "bad").advice == "8-bit weights"


@pytest.mark.parametrize("name", ["/features/3[0]/Conv", "net/conv:0", "7", "a b,c={d}", "x*y'z\"", "é"])
def test_odd_names_become_patterns_that_match_them_on_the_command_line(name):
    from fnmatch import fnmatchcase

    layers = {name: Layer(network=10, weight=20, bits=4), "good": Layer(network=60)}
    report = rated(layers)
    config = compose_config(["model.path=a.onnx", "data.path=b.npz", *report.options()])
    (pattern,) = config.precision.overrides
    assert fnmatchcase(name, pattern)
    assert not fnmatchcase("good", pattern)
    skipped = rated({**layers, name: Layer(network=10, weight=20)})
    config = compose_config(["model.path=a.onnx", "data.path=b.npz", *skipped.options()])
    assert [fnmatchcase(name, each) for each in config.precision.skip] == [True]


@pytest.mark.parametrize(
    "sums",
    [
        ErrorSums(0, 0, 0, 0, 4),
        ErrorSums(0, 1, 0, 1, 4),
        ErrorSums(1, math.inf, math.inf, math.inf, 4),
        ErrorSums(math.nan, math.nan, math.nan, math.nan, 4),
        ErrorSums(),
    ],
)
def test_json_has_finite_numbers_alone(sums):
    model, names = model_of(["a"]), ["a"]
    plan = Plan({"a": LayerPlan("a", "w0", None, 1, QuantSpec(8, True, True))}, {"v0": QuantSpec(8, False, False)}, {})
    totals = {
        question: {name: [sums] for name in names}
        for question in ("weight", "activation", "both", "accumulated", "sensitivity")
    }
    found = NetworkAnalysis(totals, {"a": WeightSums(0, 0, 0)}, {}, samples=1, sensitivity_samples=1)
    report = report_analysis(model, plan=plan, rules=TARGETS["ort"].spec, found=found)
    assert json.loads(json.dumps(asdict(report), allow_nan=False))["layers"][0]["name"] == "a"
    assert report.layers[0].per_channel_gain_db == 0


@pytest.mark.parametrize("width", [140, 110, 109, 80, 60, 40])
@pytest.mark.parametrize("color", [True, False])
def test_the_table_fits_the_console(width, color):
    layers = {f"/features/{index}/[/b]/Conv": Layer(network=50 - index) for index in range(14)}
    layers["/features/[red]/Conv"] = Layer(network=10, weight=20, bits=4, activation=None)
    report = rated(layers)
    console = Console(
        file=io.StringIO(), width=width, force_terminal=color, color_system="standard" if color else None,
        highlight=False,
    )  # fmt: skip
    Terminal(console).show_analysis(report)
    text = console.file.getvalue()
    table = [line for line in text.splitlines() if line and line[0] in "│┃┏└"]
    assert ("\x1b" in text) == color
    if not color:
        assert max(map(len, table)) <= width
        assert text.splitlines()[-1] == f"try '{report.options()[0]}'"
        assert sum("." in line for line in table) >= SENSITIVE_LAYERS
    flat = "".join(text.split())
    assert "10.00" in flat
    assert "8-bit" in flat
    if width >= 60:
        assert "/features/[red]/Conv" in flat
    assert ("w4" in text) == (width >= WIDE)
