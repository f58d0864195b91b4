import re

import pytest

from dipo.cli.help import manual
from dipo.cli.quantize import QUANTIZE
from dipo.config import AlgoConfig, Config
from dipo.config.presets import find_presets
from dipo.section import all_options


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
