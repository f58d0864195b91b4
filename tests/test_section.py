import dataclasses
import math
import pickle
from dataclasses import dataclass, field
from typing import Annotated, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dipo.errors import UserError
from dipo.registry import Registry
from dipo.section import (
    Between,
    OneOf,
    Option,
    Section,
    all_options,
    choose,
    choose_option,
    from_plain,
    options,
    parts,
    show,
)


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
    option = Option("x", "x", float, is_list=False, optional=False, limit=limit, default=0.0)
    inside = low < value <= low + width if above else low <= value <= low + width
    if inside:
        assert option.read(value) == value
    else:
        with pytest.raises(UserError, match=r"^x \S+: give a number "):
            option.read(value)


def test_values_are_shown_as_they_are_typed():
    assert show([None, True, 0.5, 3, "a"]) == "[null,true,0.5,3,'a']"


# Choices that have options of their own


class Growing(Registry[str]):
    """Counts how often somebody looks for what other packages announce."""

    looked = 0

    @property
    def _announced(self):
        self.looked += 1
        return {}


STEPS = Growing("step", {"fold": "a", "bake": "b"}, group="dipo.nowhere")


@dataclass(frozen=True)
class FoldOptions(Section, prefix="dough"):
    times: Annotated[int, Between(1)] = 3
    """How often it is folded."""


@dataclass(frozen=True)
class BakeOptions(Section, prefix="dough"):
    minutes: Annotated[float, Between(0, above=True)] = 30.0
    """How long it is baked."""


@dataclass(frozen=True)
class DoughConfig(FoldOptions, BakeOptions, Section):
    steps: Annotated[list[str | dict[str, Any]], OneOf(STEPS)] = field(default_factory=list)
    """What is done."""


def test_fields_of_several_bases_are_options_of_the_section_that_is_put_together():
    assert {option.key for option in options(DoughConfig)} == {"dough.times", "dough.minutes", "dough.steps"}
    assert DoughConfig(times=4).minutes == 30.0
    with pytest.raises(UserError, match=r"^dough\.times 0: give a number >= 1$"):
        DoughConfig(times=0)
    with pytest.raises(UserError, match=r"^dough\.times 0: give a number >= 1$"):
        FoldOptions(times=0)


def test_a_registry_is_asked_when_a_value_is_read_and_not_before():
    looked = STEPS.looked
    (*_, steps) = options(DoughConfig)
    assert (steps.type, steps.is_list, steps.nests) == (str, True, True)
    assert steps.read(["fold", "bake"]) == ["fold", "bake"]
    assert STEPS.looked == looked
    with pytest.raises(UserError):
        steps.read(["mix"])
    assert STEPS.looked > looked


@pytest.mark.parametrize(
    ("steps", "read"),
    [
        ([], []),
        ("fold", ["fold"]),
        ({"fold": {"times": 3}}, [{"fold": {"times": 3}}]),
        (["bake", {"fold": {}}], ["bake", {"fold": {}}]),
    ],
)
def test_a_choice_may_be_given_with_options_of_its_own(steps, read):
    assert DoughConfig(steps=steps).steps == read


@pytest.mark.parametrize(
    ("steps", "sentence"),
    [
        (["flod"], "dough.steps 'flod': did you mean fold or bake?"),
        ([{"flod": {}}], "dough.steps 'flod': did you mean fold or bake?"),
        ([3], "dough.steps '3': choose from fold, bake"),
        (
            ["bake", {"fold": {}, "bake": {}}],
            "dough.steps {fold:{},bake:{}}: give one name with its options, {NAME:{OPTION:VALUE}}",
        ),
        ([{}], "dough.steps {}: give one name with its options, {NAME:{OPTION:VALUE}}"),
        ([{"fold": 3}], "dough.steps {fold:3}: give its options as {fold:{OPTION:VALUE}}"),
        ([{"fold": None}], "dough.steps {fold:null}: give its options as {fold:{OPTION:VALUE}}"),
        (
            ["fold", [True]],
            "dough.steps [true]: give any of fold, bake, with options of its own as {NAME:{OPTION:VALUE}}, or several "
            "as [a,b]",
        ),
        (
            [{3: {}}],
            "dough.steps {3:{}}: give any of fold, bake, with options of its own as {NAME:{OPTION:VALUE}}, or several "
            "as [a,b]",
        ),
    ],
)
def test_a_wrong_choice_among_those_with_options_is_refused_in_one_sentence(steps, sentence):
    with pytest.raises(UserError) as caught:
        DoughConfig(steps=steps)
    assert str(caught.value) == sentence


def test_sections_survive_a_pickle_and_a_replacement():
    dough = DoughConfig(steps=[{"fold": {"times": 2}}], minutes=5)
    assert pickle.loads(pickle.dumps(dough)) == dough
    assert isinstance(dough.minutes, float)
    again = dataclasses.replace(dough, times=9)
    assert (again.times, again.steps) == (9, dough.steps)
    assert again.steps is not dough.steps
    with pytest.raises(dataclasses.FrozenInstanceError):
        dough.times = 3
