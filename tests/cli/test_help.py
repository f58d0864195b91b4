import re
from dataclasses import dataclass

import pytest

from dipo.cli.export import EXPORT
from dipo.cli.help import OFTEN, manual, topics
from dipo.cli.main import COMMANDS, main
from dipo.cli.page import docs_of, option_blocks
from dipo.cli.quantize import QUANTIZE
from dipo.cli.words import read_values
from dipo.config import AlgoConfig, Config
from dipo.config.presets import find_presets
from dipo.section import Section, all_options


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_page_fits_the_terminal_and_uses_it(width):
    lengths = [len(line) for line in manual(flags=QUANTIZE.flags, width=width).splitlines()]
    assert max(lengths) <= width
    assert max(lengths) > width - 10


@pytest.mark.parametrize("width", [60, 120])
def test_no_line_ends_in_a_blank_and_no_two_are_empty(width):
    page = manual(flags=QUANTIZE.flags, width=width)
    assert not re.search(r"[ \t]$", page, re.MULTILINE)
    assert "\n\n\n" not in page


def test_chapters_stand_in_the_order_of_a_manual_page():
    titles = [line for line in manual(flags=QUANTIZE.flags, width=80).splitlines() if line and not line.startswith(" ")]
    assert titles == [
        "NAME",
        "SYNOPSIS",
        "DESCRIPTION",
        "FLAGS",
        "GROUPS",
        "OPTIONS",
        "FILES",
        "EXIT STATUS",
        "EXAMPLES",
    ]


def test_every_option_has_its_default_a_doc_and_its_type():
    page = manual(flags=QUANTIZE.flags, width=120)
    for option in all_options(Config):
        entry = re.search(rf"^    {re.escape(option.key)}=(\S*)\n((?:        .*\n)+)", page, re.MULTILINE)
        assert entry, f"{option.key} is missing"
        assert re.search(r"\w.*\(.+\)$", " ".join(entry[2].split())), f"{option.key} lacks a doc or a type"
    assert f"    algo.iters={AlgoConfig().iters}\n        Optimizer steps for each unit. (int >= 1)\n" in page
    assert "    data.std=null\n" in page
    assert "null: 1. (list of float above 0, or null)" in " ".join(page.split())
    assert "    algo.train_bias=true\n" in page


def test_every_choice_is_listed_with_what_it_is():
    page = manual(flags=QUANTIZE.flags, width=120)
    for group, presets in find_presets([]).items():
        block = re.search(rf"^    {group}=\n((?:        .*\n)+)", page, re.MULTILINE)
        assert block
        for choice in presets:
            assert re.search(rf"^        {choice}  +\w", block[1], re.MULTILINE), f"{group}={choice} has no summary"
    assert re.search(r"none .*\(default\)", page)
    assert re.search(r"w8a8 .*\(default\)", page)


def test_the_users_own_choices_are_listed(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.yaml").write_text("# @package _global_\n# my own network\nmodel: {path: a.onnx}\n")
    assert re.search(r"mine +my own network", manual(flags=QUANTIZE.flags, width=80, own=[tmp_path]))


def test_a_long_example_is_a_command_that_can_be_copied():
    page = manual(flags=QUANTIZE.flags, width=60)
    assert "data.path=samples/ \\\n    +algo=qdrop" in page


# The page that fits a screen, and those of topics


def said(capsys, *words: str) -> str:
    assert main(words) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("words", [["--help"], ["-h"], ["help"], ["algo=brecq", "--help"]])
def test_help_is_a_page_that_fits_a_terminal(capsys, monkeypatch, words):
    monkeypatch.setenv("COLUMNS", "80")
    lines = said(capsys, *words).splitlines()
    assert len(lines) < 50
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("topic", [[], ["options"], *([name] for name in COMMANDS), *([name] for name in topics())])
def test_every_page_fits_the_terminal(capsys, monkeypatch, topic, width):
    monkeypatch.setenv("COLUMNS", str(width))
    text = said(capsys, "help", *topic)
    code = text.partition("JOBS FILE")[2].partition("FILES")[0]
    assert max(len(line) for line in text.replace(code, "").splitlines()) <= width
    assert "\n\n\n" not in text
    assert not re.search(r"[ \t]$", text, re.MULTILINE)


def test_the_page_names_all_commands_and_groups(capsys):
    text = said(capsys, "help")
    for word in (*COMMANDS, *(f"{group}=" for group in find_presets([]))):
        assert re.search(rf"^    {re.escape(word)} ", text, re.MULTILINE), word


def test_the_options_of_the_page_are_options_with_values_that_they_take():
    known = {option.key: option for option in all_options(Config)}
    for word in OFTEN:
        key = word.partition("=")[0]
        assert read_values([word], {key: known[key]})[key] is not None
    assert len(OFTEN) == 10


def test_the_long_list_has_three_names(capsys):
    whole = said(capsys, "help", "options")
    assert said(capsys, "--help", "options") == whole
    assert said(capsys, "quantize", "--help") == whole
    assert "    algo.iters=" in whole


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "help"])
def test_a_command_explains_itself(capsys, name):
    page = said(capsys, name, "--help")
    assert said(capsys, "help", name) == page
    assert said(capsys, "--help", name) == page
    assert page.startswith("NAME\n")


def test_a_group_is_explained_with_its_options_alone(capsys):
    text = said(capsys, "help", "cluster")
    assert "inline  this process alone" in text
    assert "    cluster.workers=null" in text
    assert "algo" not in text


def test_no_help_on_what_is_not_there(capsys):
    assert main(["help", "algos"]) == 2
    assert capsys.readouterr().err.startswith("dipo: no help on 'algos': did you mean algo, or one of quantize, ")


def test_options_that_have_to_be_given_have_no_default(capsys):
    text = said(capsys, "export", "--help")
    assert "    run=\n" in text
    assert "    platform=\n" in text
    assert "    platform.version=null\n" in text
    for key in EXPORT.options():
        assert f"    {key}=" in text


@dataclass(frozen=True)
class FirstOptions(Section, prefix="mixed"):
    one: int = 1
    """The first."""
    both: int = 1
    """As the first has it."""


@dataclass(frozen=True)
class SecondOptions(Section, prefix="mixed"):
    two: int = 2
    """The second,
    in two lines."""


@dataclass(frozen=True)
class MixedConfig(FirstOptions, SecondOptions, Section):
    """Put together."""

    both: int = 3
    three: int = 3
    """The third."""


def test_docs_are_found_beside_the_fields_of_every_base():
    assert docs_of(MixedConfig) == {
        "one": "The first.",
        "two": "The second, in two lines.",
        "both": "As the first has it.",
        "three": "The third.",
    }
    blocks = [block[0] for block in option_blocks(MixedConfig, 80)]
    assert sorted(blocks) == ["    mixed.both=3", "    mixed.one=1", "    mixed.three=3", "    mixed.two=2"]
