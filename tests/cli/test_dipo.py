"""The command `dipo` and the other names that it is started by."""

import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

import dipo
from dipo.cli.main import COMMANDS, main

ROOT = Path(dipo.__file__).parents[1]


@pytest.mark.parametrize(
    ("module", "words", "said"),
    [
        ("dipo", ["+algo=xyzzy"], "dipo: unknown algo 'xyzzy': choose from "),
        ("dipo", ["quantize", "+algo=xyzzy"], "dipo: unknown algo 'xyzzy': choose from "),
        ("dipo.launch", ["+algo=xyzzy"], "dipo: unknown algo 'xyzzy': choose from "),
        ("dipo", ["export", "platform=ort"], "dipo: run is missing: give run=the folder of a finished run"),
        ("dipo.export", ["platform=ort"], "dipo: run is missing: give run=the folder of a finished run"),
        ("dipo.verify", [], "dipo.verify: give one of run=FOLDER and file=FILE"),
        ("dipo.nightly", [], "dipo-nightly: no jobs: give jobs="),
    ],
)
def test_modules_run_as_programs(module, words, said):
    command = [sys.executable, "-m", module, *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(said)


def test_scripts_are_functions_that_are_there():
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert {*scripts} == {"dipo", "dipo-export", "dipo-verify", "dipo-nightly"}
    for place in scripts.values():
        module, _, name = place.partition(":")
        assert callable(getattr(import_module(module), name))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_tells_the_version_and_refuses_an_unknown_flag(capsys, command):
    assert main([command, "--version"]) == 0
    assert capsys.readouterr().out == f"dipo {dipo.__version__}\n"
    assert main([command, "--versoin"]) == 2
    assert "unknown flag '--versoin': did you mean --version" in capsys.readouterr().err


def test_a_misspelt_command_is_answered_with_the_nearest(capsys):
    assert main(["exprot", "run=x"]) == 2
    assert capsys.readouterr().err.startswith("dipo: unknown command 'exprot': did you mean export, or one of quantize")


def test_an_option_that_is_like_no_command_is_an_option(capsys):
    assert main(["seeed=3"]) == 2
    assert "unknown option 'seeed': did you mean seed" in capsys.readouterr().err
