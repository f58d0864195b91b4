import math
from dataclasses import dataclass, field
from typing import Annotated, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dipo.errors import UserError
from dipo.section import Between, OneOf, Section, all_options, choose, choose_option, from_plain, options, parts, show


@dataclass(frozen=True)
class OvenConfig(Section):
    heat: Annotated[float, Between(0, 300, above=True)] = 180.0
    mode: Annotated[str, OneOf(("fan", "grill"))] = "fan"
    trays: Annotated[list[int] | None, Between(1)] = None
    notes: list[str] = field(default_factory=list)
    labels: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Config(Section):
    oven: OvenConfig = field(default_factory=OvenConfig)
    lit: bool = False
    name: str | None = None


def test_options_carry_key_type_limit_and_default():
    assert [option.key for option in all_options(Config)] == [
        "lit",
        "name",
        "oven.heat",
        "oven.mode",
        "oven.trays",
        "oven.notes",
        "oven.labels",
    ]
    heat, mode, trays, notes, labels = options(OvenConfig)
    assert (heat.type, heat.default, heat.limit) == (float, 180.0, Between(0, 300, above=True))
    assert (mode.optional, mode.is_list) == (False, False)
    assert (trays.type, trays.is_list, trays.optional, trays.default) == (int, True, True, None)
    assert (notes.type, notes.default, labels.type, labels.default) == (str, [], dict, {})
    assert parts(Config) == {"oven": OvenConfig}


def test_from_plain_converts_and_fills_in_defaults():
    config = from_plain(Config, {"oven": {"heat": 200, "trays": 3, "notes": ["a", 7]}, "name": 12})
    assert config == Config(oven=OvenConfig(heat=200.0, trays=[3], notes=["a", "7"]), name="12")
    assert isinstance(config.oven.heat, float)
    assert from_plain(Config, {}) == Config()


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"oven": {"heat": "hot"}}, "oven.heat 'hot': give a number above 0 to 300"),
        ({"oven": {"heat": True}}, "oven.heat true: give a number above 0 to 300"),
        ({"oven": {"heat": 0}}, "oven.heat 0: give a number above 0 to 300"),
        ({"oven": {"heat": math.nan}}, "oven.heat nan: give a number above 0 to 300"),
        ({"oven": {"heat": None}}, "oven.heat null: give a number above 0 to 300"),
        ({"oven": {"mode": "gril"}}, "oven.mode 'gril': did you mean grill or fan?"),
        ({"oven": {"mode": 3}}, "oven.mode '3': choose from fan, grill"),
        ({"oven": {"trays": [1, 0]}}, "oven.trays 0: give a number >= 1"),
        ({"oven": {"trays": [1.5]}}, "oven.trays 1.5: give a whole number >= 1, or several as [a,b] (or null)"),
        ({"oven": {"labels": [1]}}, "oven.labels [1]: give a mapping such as {/conv1:{weight_bits:4}}"),
        ({"oven": 3}, "oven 3: give its options, heat, mode, trays, notes, labels"),
        ({"oven": {"tray": 3}}, "unknown option 'oven.tray': did you mean trays, or one of heat, mode, notes, labels?"),
        ({"lit": "yes"}, "lit 'yes': give true or false"),
        ({"name": ["a"]}, "name ['a']: give a text (or null)"),
        ({"zzz": 1}, "unknown option 'zzz': choose from oven, lit, name"),
    ],
)
def test_wrong_values_are_refused_in_one_sentence(values, sentence):
    with pytest.raises(UserError) as caught:
        from_plain(Config, values)
    assert str(caught.value) == sentence


def test_a_section_made_directly_is_checked_too():
    with pytest.raises(UserError, match=r"oven\.heat 400: give a number above 0 to 300"):
        OvenConfig(heat=400.0)


@pytest.mark.parametrize(
    ("key", "answer"),
    [
        ("oven.hat", "did you mean oven.heat, or one of oven.mode, oven.trays, oven.notes, oven.labels?"),
        ("heat", "did you mean oven.heat?"),
        ("stove.heat", "did you mean oven.heat?"),
        ("haet", "did you mean oven.heat?"),
        ("oven.heat.high", "did you mean oven.heat?"),
        ("ovn", "did you mean oven, or one of lit, name?"),
        ("qqq", "choose from oven, lit, name"),
        ("oven", "choose from oven.heat, oven.mode, oven.trays, oven.notes, oven.labels"),
    ],
)
def test_an_unknown_key_is_answered_with_what_was_meant(key, answer):
    assert choose_option(Config, key, groups=["oven"]) == answer


def test_choose_puts_the_nearest_first():
    assert choose("brec", ["adaround", "brecq", "qdrop"]) == "did you mean brecq, or one of adaround, qdrop?"
    assert choose("brec", ["brecq"]) == "did you mean brecq?"
    assert choose("x", ["adaround", "brecq"]) == "choose from adaround, brecq"


@given(st.floats(), st.floats(-10, 10), st.floats(0, 10), st.booleans())
def test_between_refuses_exactly_what_lies_outside(value, low, width, above):
    limit = Between(low, low + width, above=above)
    inside = low < value <= low + width if above else low <= value <= low + width
    assert (limit.complaint(value) is None) == inside


def test_values_are_shown_as_they_are_typed():
    assert show([None, True, 0.5, 3, "a"]) == "[null,true,0.5,3,'a']"
