"""What CONTRIBUTING.md and docs/architecture.md say of the code is true of it.

WRITE_DOCS=1 in the environment writes the listings anew.
"""

from __future__ import annotations

import ast
import builtins
import os
import pkgutil
import re
import sys
import threading
import tomllib
from pathlib import Path

import numpy as np
import pytest
import yaml
from networks import images, saved, tiny_cnn
from test_floors import FLOORS
from thread_pool import ThreadPool

from dipo.algo.steps import STEPS
from dipo.config import Config
from dipo.export.targets import TARGETS
from dipo.graph.operators import OPERATORS
from dipo.launch import main
from dipo.quant.range_methods import RANGE_METHODS
from dipo.section import all_options

ROOT = Path(__file__).parents[1]
CONTRIBUTING, ARCHITECTURE = ROOT / "CONTRIBUTING.md", ROOT / "docs" / "architecture.md"
PAGES = {page.name: page.read_text("utf-8") for page in (CONTRIBUTING, ARCHITECTURE)}
LISTING = re.compile(
    r"^`(?P<file>[\w/.]+\.py)`(?:, `(?P<part>\w+)`)?:\n\n```python\n(?P<code>.*?)^```\n", re.DOTALL | re.MULTILINE
)
"""A block of code behind a line that names its file, and the class or function where it is not the whole file."""
STOP = re.compile(r"(dipo/[\w/]+\.py):([\w.]+)")
"""In a figure: `dipo/algo/network_pair.py:Pair.advance`."""
SUFFIXES = ("py", "md", "yaml", "toml", "txt")


def definition(tree, name):
    """The class, function or value of that name in the body of a module or a class; None where there is none."""
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if getattr(node, "name", None) == name or name in [getattr(target, "id", None) for target in targets]:
            return node
    return None


def source_of(file, part):
    """The text of a file, or of one of its definitions, decorators included."""
    text = (ROOT / file).read_text("utf-8")
    if part is None:
        return text
    node = definition(ast.parse(text), part)
    assert node is not None, f"{file} has no {part}"
    first = min([node.lineno, *(each.lineno for each in node.decorator_list)])
    return "".join(text.splitlines(keepends=True)[first - 1 : node.end_lineno])


def fenced(kind):
    return re.findall(rf"^```{kind}\n(.*?)^```\n", PAGES["CONTRIBUTING.md"], re.DOTALL | re.MULTILINE)


def in_backticks(text):
    """Return the texts between backticks, outside of blocks of code."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```\n", "", text, flags=re.DOTALL | re.MULTILINE))


def test_listings_are_the_files():
    text = PAGES["CONTRIBUTING.md"]

    def current(match):
        head = match[0].partition("```python\n")[0]
        return f"{head}```python\n{source_of(match['file'], match['part'])}```\n"

    wanted = LISTING.sub(current, text)
    if os.environ.get("WRITE_DOCS") == "1":
        CONTRIBUTING.write_text(wanted, "utf-8")
        text = wanted
    shown = {match["file"] for match in LISTING.finditer(text)}
    toys = ("quick_gelu", "toy_step", "toy_target", "toy_range")
    assert shown == {f"tests/extending/{name}.py" for name in toys}
    assert len(fenced("python")) == len(list(LISTING.finditer(text))), "a listing does not say whose it is"
    assert text == wanted, "CONTRIBUTING.md is stale, run this test with WRITE_DOCS=1"


@pytest.mark.parametrize("page", PAGES)
def test_files_and_folders_exist(page):
    links = [(ROOT / page if page == "CONTRIBUTING.md" else ARCHITECTURE).parent / target.partition("#")[0]
             for target in re.findall(r"\]\(([^)]+)\)", PAGES[page])]  # fmt: skip
    words = [word for word in in_backticks(PAGES[page]) if re.fullmatch(r"[\w./]+", word)]
    named = [word for word in words if "/" in word and (word.endswith("/") or word.rpartition(".")[2] in SUFFIXES)]
    ours = [word for word in named if not word.startswith("./") and not word.endswith("toy.yaml")]
    assert ours
    missing = [str(path) for path in [*links, *(ROOT / word for word in ours)] if not path.exists()]
    assert not missing


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda page: page.name
)
def test_files_in_other_documents_exist(page):
    text = page.read_text("utf-8")
    linked = [target.partition("#")[0] for target in re.findall(r"\]\(([^)]+)\)", text) if ":" not in target]
    named = re.findall(r"`((?:dipo|tests|benchmarks|launch|docs)/[\w./-]+)`", text)
    inner = re.findall(r"`((?:algo|graph|export|cluster|config|stages|quant|data)/[\w/]+\.py)`", text)
    paths = [page.parent / target for target in linked if target]
    paths += [*(ROOT / word for word in named), *(ROOT / "dipo" / word for word in inner)]
    assert not [str(path) for path in paths if not path.exists()]


@pytest.mark.parametrize("page", PAGES)
def test_dotted_names_are_there(page):
    groups = {registry.group for registry in (OPERATORS, STEPS, TARGETS, RANGE_METHODS)}
    names = {word for word in in_backticks(PAGES[page]) if re.fullmatch(r"dipo(\.\w+)+", word)} - groups
    for name in names:
        pkgutil.resolve_name(name)


def test_stops_of_the_figures_are_there():
    stops = STOP.findall(PAGES["architecture.md"])
    assert len(stops) > 40
    for file, name in stops:
        node = ast.parse((ROOT / file).read_text("utf-8"))
        for part in name.split("."):
            node = definition(node, part)
            assert node is not None, f"{file}:{name}"


def test_a_job_passes_all_stops_of_the_figures(tmp_path, monkeypatch):
    """On two workers; of a protocol's method or an abstract one, some implementation."""
    passed = set()

    def note(frame, event, _):
        if event == "call":
            passed.add((frame.f_code.co_filename, frame.f_code.co_qualname))

    np.savez(tmp_path / "samples.npz", image=images(40))
    job = [f"model.path={saved(tiny_cnn(), tmp_path)}", f"data.path={tmp_path / 'samples.npz'}", "algo=brecq"]
    monkeypatch.setattr("dipo.stages.pipeline.start_pool", lambda job, model, **_: ThreadPool(job, model, 2))
    threading.setprofile(note)
    sys.setprofile(note)
    try:
        assert main([*job, f"run.dir={tmp_path / 'run'}", "algo.iters=4", "cluster.compile=false"]) == 0
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    methods = {name.rpartition(".")[2] for _, name in passed if "." in name}
    stops = [(file, name) for file, name in STOP.findall(PAGES["architecture.md"]) if not name.isupper()]
    assert not [
        f"{file}:{name}"
        for file, name in stops
        if (str(ROOT / file), name) not in passed
        and not (is_abstract(ROOT / file, name) and name.rpartition(".")[2] in methods)
    ]


def is_abstract(path, name):
    """Whether a class of this method leaves it to others."""
    owner = definition(ast.parse(path.read_text("utf-8")), name.partition(".")[0])
    bases = {ast.unparse(base) for base in getattr(owner, "bases", [])}
    return bool(bases & {"Protocol", "ABC"})


def test_classes_in_backticks_are_there():
    known = {
        node.name
        for folder in ("dipo", "tests/extending")
        for path in (ROOT / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.ClassDef)
    }
    operators = {operator.name for operator in OPERATORS.values()}
    for text in PAGES.values():
        words = {word for word in in_backticks(text) if re.fullmatch(r"_?[A-Z][a-z]+\w*", word)}
        assert not words - known - operators - set(dir(builtins))


def test_entry_points_are_those_of_the_registries():
    (text,) = fenced("toml")
    groups = tomllib.loads(text)["project"]["entry-points"]
    assert groups.keys() == {registry.group for registry in (OPERATORS, STEPS, TARGETS, RANGE_METHODS)}
    for points in groups.values():
        for value in points.values():
            module, _, name = value.partition(":")
            tree = ast.parse((ROOT / "tests" / "extending" / f"{module}.py").read_text("utf-8"))
            assert definition(tree, name) is not None, value


def test_the_preset_has_options_of_its_group():
    (text,) = fenced("yaml")
    options = {option.key for option in all_options(Config)}
    assert {f"algo.{key}" for key in yaml.safe_load(text)} <= options


def test_the_floors_are_those_that_are_tested():
    drawn = PAGES["CONTRIBUTING.md"].partition("## Floors")[2].partition("## ")[0]
    lines = [set(line.split()) for line in drawn.splitlines() if line.startswith("    ")]
    assert lines == FLOORS
