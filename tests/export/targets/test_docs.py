"""The table of docs/platforms.md is what the code does; WRITE_DOCS=1 in the environment writes it anew."""

import os
import re
from pathlib import Path

import pytest
from exported import write_files
from platform_networks import platform_case

from dipo.export.targets import TARGETS
from dipo.export.targets.full_integer import OPERATORS
from dipo.graph.plan import make_plan
from dipo.recipe import PrecisionConfig

DOCS = Path(__file__).parents[3] / "docs" / "platforms.md"
BETWEEN = re.compile(r"(<!-- platforms:[^\n]*-->\n).*?(<!-- end -->)", re.DOTALL)


def choice(only, if_true, if_false, default):
    """What a target takes; what it is by default stands first where it takes both."""
    if only is not None:
        return if_true if only else if_false
    first, second = (if_true, if_false) if default else (if_false, if_true)
    return f"{first} ({second} too)"


def widths(found):
    return (
        f"{found[0]}-{found[-1]}"
        if len(found) > 2 and found[-1] - found[0] == len(found) - 1
        else ", ".join(map(str, found))
    )


def row(name, tmp_path):
    rules = TARGETS[name].spec
    model, quantized = platform_case(rules)
    plan = make_plan(model, rules, PrecisionConfig(weight_bits=8, act_bits=8))
    layers, activations = plan.layers.values(), plan.activations.values()
    (tmp_path / name).mkdir()
    files = [file.name for file in write_files(TARGETS[name], model, quantized, tmp_path / name)]
    symmetry = {spec.symmetric for spec in activations}
    channels = [layer.node for layer in layers if layer.spec.per_channel]
    where = "a scale per channel" if len(channels) == len(layers) else "one scale"
    where = (
        f"a scale per channel ({', '.join(sorted(rules.channel_operators))}), else one"
        if rules.channel_operators
        else where
    )
    if rules.weight_blocks:
        up_to = f" up to {rules.block_bits} bits" if rules.block_bits < rules.weight_widths[-1] else ""
        whole = "whole blocks" if rules.whole_blocks else "blocks"
        where += f" or for {whole} ({', '.join(sorted(rules.weight_blocks))}{up_to})"
    narrow = sorted(bits for bits in rules.weight_types if bits < 8)
    narrow_in = f" of {', '.join(sorted(rules.narrow_operators))}" if rules.narrow_operators else ""
    where += "".join(f", {bits} bits{narrow_in} as int{bits}" for bits in narrow)
    where += ", 8 bits of LSTM, GRU, RNN" if rules.recurrent_weights else ""
    weight = choice(rules.weight_symmetric, "symmetric", "asymmetric", True)
    powers = rules.power_of_two or rules.prefers_power_of_two
    scales = "powers of two" + (" (others too)" if rules.prefers_power_of_two else "") if powers else "any"
    signed = "int" if rules.act_signed else "uint"
    signed = "int, uint where nothing is negative" if rules.unsigned_where_positive else signed
    act = "symmetric" if rules.act_symmetric else "asymmetric"
    assert len(symmetry) == 1 or rules.unsigned_where_positive
    all_of_them = rules.operators == OPERATORS
    return [
        f"`{name}`",
        "all that compute with floats" if all_of_them else ", ".join(sorted(rules.operators)),
        f"{widths(rules.weight_widths)} bits, {weight}, {where}",
        f"{widths(rules.act_widths)} bits, {signed}, {act}" + (" (others too)" if rules.any_act_grid else ""),
        scales + (f", those of {', '.join(sorted(rules.fixed_ranges))} fixed" if rules.fixed_ranges else ""),
        "int32" if rules.int32_bias else "float",
        "yes" if rules.quantize_outputs else "no",
        ", ".join(f"`platform.{option}`" for option in TARGETS[name].option_names),
        ", ".join(f"`{file}`" for file in files),
    ]


def table(tmp_path):
    head = [
        "`platform=`",
        "operators",
        "weights",
        "activations",
        "scales",
        "biases",
        "outputs quantized",
        "options",
        "files",
    ]
    rows = [head, ["---"] * len(head), *(row(name, tmp_path) for name in TARGETS)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in rows)


def test_the_table_is_what_the_code_does(tmp_path):
    text = DOCS.read_text("utf-8")
    wanted = BETWEEN.sub(lambda match: match[1] + table(tmp_path) + match[2], text)
    if os.environ.get("WRITE_DOCS") == "1":
        DOCS.write_text(wanted, "utf-8")
        text = wanted
    assert text == wanted, "docs/platforms.md is stale, run this test with WRITE_DOCS=1"


@pytest.mark.parametrize("name", TARGETS)
def test_each_has_an_example(name):
    assert f"**{name}**" in DOCS.read_text("utf-8").partition("## On the device")[2]


@pytest.mark.parametrize("name", TARGETS)
def test_each_has_a_preset(name):
    assert f"name: {name}\n" in (DOCS.parents[1] / "conf" / "platform" / f"{name}.yaml").read_text("utf-8")
