"""What the documents show of the command line is made of commands, groups, choices and options that dipo knows."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from dipo.cli.main import COMMANDS
from dipo.config import Config
from dipo.config.presets import find_presets
from dipo.graph.operators import OPERATORS
from dipo.section import all_options

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
STARTS = re.compile(
    r"^ {4}(?:\$ )?(?:\S+=\S+ )?(?:\S*python -m )?(dipo(?:\.launch|\.export|\.verify|\.nightly)?)(?= )(.*)$"
)
FILES = (".py", ".md", ".yaml", ".json", ".txt", ".onnx", ".npz")
MAPPINGS = {option.key for option in all_options(Config) if option.type is dict and not option.is_list}
"""Options whose entries may be given one by one."""
FOREIGN = {"toy"}
"""Names of things that the documents suppose another package to have brought."""
LINES = [
    pytest.param(match[1], match[2], id=f"{page.name}:{number}")
    for page in PAGES
    for number, line in enumerate(page.read_text("utf-8").splitlines(), 1)
    if (match := STARTS.match(line))
]


def test_there_are_some():
    assert len(LINES) > 40


@pytest.mark.parametrize(("program", "rest"), LINES)
def test_its_words_are_known(program, rest):
    words = [word for word in shlex.split(rest, comments=True) if word not in {"...", "|"}]
    command = program.partition(".")[2].replace("launch", "") or (words.pop(0) if words[0] in COMMANDS else "quantize")
    if command in {"help", "completion"} or words[:1] == ["--help"]:
        return
    known = set(COMMANDS[command].options())
    if words[0] == "trend":
        words, known = words[2:], {"history", "out", "last"}
    presets = find_presets([]) if command == "quantize" else {}
    for word in words:
        key, equals, value = word.lstrip("+").partition("=")
        assert equals, word
        if key in presets:
            assert value in presets[key].keys() | FOREIGN, word
        else:
            assert key in known or key.rpartition(".")[0] in MAPPINGS, word


def test_groups_in_the_readme_are_all():
    rows = re.findall(r"^\| `(\w+)` \| (`.*) \|$", PAGES[0].read_text("utf-8"), re.MULTILINE)
    listed = {group: set(re.findall(r"`(\w+)`", text)) for group, text in rows if group in find_presets([])}
    assert listed.keys() == {"algo", "precision", "calib", "platform", "cluster"}
    for group, choices in listed.items():
        assert choices >= find_presets([])[group].keys(), group


def test_the_readme_counts_operators_right():
    computed = sum(operator.torch is not None for operator in OPERATORS.values())
    assert f"Torch computes {computed} of ONNX's operators" in PAGES[0].read_text("utf-8")


def test_options_in_backticks_exist():
    known = {key for command in COMMANDS.values() for key in command.options()}
    sections = {key.partition(".")[0] for key in known if "." in key}
    for page in PAGES:
        named = re.findall(r"`(\w+\.\w+)(?:=[^`]*)?`", page.read_text("utf-8"))
        wrong = [word for word in named if word.partition(".")[0] in sections and word not in known]
        assert not [word for word in wrong if not word.endswith(FILES)], page.name
