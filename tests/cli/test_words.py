from typing import Any

import pytest

from dipo.cli.words import HELP, Flag, Line, nested, read_values, sort_words, texts
from dipo.errors import UserError
from dipo.section import Between, OneOf, Option

FOLDER = Flag("--folder", "Where.", value="DIR", wanted="a folder")
SWEEP = Flag("--sweep", "", short="-s", refusal="there are no sweeps")
FLAGS = (HELP, FOLDER, SWEEP)


def option(key: str, kind: type, **more: Any) -> Option:
    plain: dict[str, Any] = {"is_list": False, "optional": False, "limit": None, "default": None}
    return Option(key=key, name=key.rpartition(".")[2], type=kind, **(plain | more))


KNOWN = {
    each.key: each
    for each in (
        option("run", str, noun="a folder"),
        option("version", str, optional=True),
        option("num", int, limit=Between(1)),
        option("gate.cosine", float, limit=Between(0, 1), optional=True),
        option("all", bool),
        option("targets", str, is_list=True, limit=OneOf(("ort", "trt"))),
    )
}


def test_flags_and_words_are_told_apart_wherever_they_stand():
    assert sort_words(["a=1", "-h", "b", "--folder", "x", "+c=2"], FLAGS) == Line(
        frozenset({"--help"}), {"--folder": "x"}, ("a=1", "b", "+c=2")
    )
    assert sort_words(["--folder=a=b"], FLAGS).values == {"--folder": "a=b"}


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--hlep"], "unknown flag '--hlep': did you mean --help or --folder?"),
        (["--help=3"], "unknown flag '--help=3': did you mean --help or --folder?"),
        (["--folder"], "--folder has no value: give a folder"),
        (["--folder="], "--folder has no value: give a folder"),
        (["-s"], "-s: there are no sweeps"),
    ],
)
def test_a_wrong_flag_is_answered_in_one_sentence(words, sentence):
    with pytest.raises(UserError) as caught:
        sort_words(words, FLAGS)
    assert str(caught.value) == sentence


def test_the_help_shows_short_forms_and_values_and_nothing_that_is_refused():
    assert list(texts(FLAGS)) == ["-h, --help", "--folder DIR"]


def test_values_have_the_types_of_their_options():
    words = ["run='a b'", "+version=10.10", "num=3", "gate.cosine=1e-1", "all=true", "targets=[ort,trt]", "num=4"]
    assert read_values(words, KNOWN) == {
        "run": "a b",
        "version": "10.10",
        "num": 4,
        "gate.cosine": 0.1,
        "all": True,
        "targets": ["ort", "trt"],
    }
    assert read_values(["version=null", "gate.cosine=null", "targets=ort"], KNOWN) == {
        "version": None,
        "gate.cosine": None,
        "targets": ["ort"],
    }


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("rnu=x", "unknown option 'rnu': did you mean run, or one of version, num, gate.cosine, all, targets?"),
        ("run", "run has no value: give a folder"),
        ("num=", "num has no value: give a whole number >= 1"),
        ("num=1.5", "num '1.5': give a whole number >= 1"),
        ("num=0", "num 0: give a number >= 1"),
        ("num=null", "num 'null': give a whole number >= 1"),
        ("gate.cosine=nan", "gate.cosine nan: give a number from 0 to 1"),
        ("all=yes", "all 'yes': give true or false"),
        ("targets=[ort", "targets=[ort: cannot be read, check its brackets and quotes"),
        ("targets=[ort,tr]", "targets 'tr': did you mean trt or ort?"),
    ],
)
def test_a_wrong_word_is_answered_in_one_sentence(word, sentence):
    with pytest.raises(UserError) as caught:
        read_values([word], KNOWN)
    assert str(caught.value) == sentence


def test_dotted_options_become_mappings_in_mappings():
    assert nested({"a": 1, "b.c": 2, "b.d.e": 3}) == {"a": 1, "b": {"c": 2, "d": {"e": 3}}}
