import os
import pty
import select
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

import dipo
from dipo.cli.completion import SCRIPTS
from dipo.cli.main import main

ROOT = Path(dipo.__file__).parents[1]


def complete(capsys, *words: str) -> list[str]:
    assert main(["completion", "--complete", *words]) == 0
    return capsys.readouterr().out.split()


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["e"], ["experiment=", "export", "export."]),
        (["mod"], ["model.", "model="]),
        (["model=mobilenet", "algo=b"], ["algo=bias_correction", "algo=brecq"]),
        (["quantize", "+algo=br"], ["+algo=brecq"]),
        (["algo.it"], ["algo.iters="]),
        (["dry_run="], ["dry_run=false", "dry_run=true"]),
        (["cluster.schedule="], ["cluster.schedule=parallel", "cluster.schedule=sequential"]),
        (["export.also=[trt,s"], ["export.also=[trt,snpe", "export.also=[trt,stpu"]),
        (["export", "platform=[trt,tr"], []),
        (["export", "r"], ["run="]),
        (["verify", "platform=q"], ["platform=qnn"]),
        (["nightly", "tr"], ["trend"]),
        (["nightly", "gate.m"], ["gate.max_minutes=", "gate.max_top1_drop=", "gate.min_cosine="]),
        (["help", "opt"], ["options"]),
        (["--c"], ["--cfg", "--config-dir="]),
        (["-m"], []),
        (["completion", ""], ["bash", "fish", "zsh"]),
        (["nothing", "=="], []),
        (["algo.iters="], []),
    ],
)
def test_words_are_completed_by_the_tables_that_read_them(capsys, words, found):
    assert complete(capsys, *words) == found


def test_what_nobody_has_typed_yet_is_a_command_a_group_or_a_section(capsys):
    found = complete(capsys)
    assert {"quantize", "export", "verify", "nightly", "help", "algo=", "algo.", "seed="} <= {*found}
    assert len(found) < 40, "all options at once are no help"


def test_presets_of_a_named_folder_are_among_the_choices(capsys, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.yaml").touch()
    assert complete(capsys, "--config-dir", str(tmp_path), "model=") == ["model=mine", "model=mobilenet"]
    assert complete(capsys, "--config-dir", "/no/such/folder", "model=") == ["model=mobilenet"]


def test_it_imports_nothing_heavy():
    heavy = (
        "{'torch', 'ray', 'onnx', 'onnx_ir', 'onnxruntime', 'hydra', 'omegaconf', 'numpy', 'pydantic', 'sqlalchemy'}"
    )
    words = "['completion', '--complete', 'algo.steps=']"
    code = f"import sys; from dipo.cli.main import main; main({words}); print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_every_shell_has_a_script_and_no_other(capsys):
    for shell, script in SCRIPTS.items():
        assert main(["completion", shell]) == 0
        assert capsys.readouterr().out == script
        assert "completion --complete" in script
    assert main(["completion", "tcsh"]) == 2
    assert "choose from bash, zsh, fish" in capsys.readouterr().err


@pytest.fixture
def path(tmp_path):
    """A folder with a `dipo` that is this one."""
    program = tmp_path / "bin" / "dipo"
    program.parent.mkdir()
    code = "import sys; from dipo.cli.main import main; sys.exit(main())"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -c {shlex.quote(code)} "$@"\n')
    program.chmod(0o755)
    return {**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "TERM": "dumb"}


def replies(path, line: str, cwd: Path) -> list[str]:
    """What bash has to choose from behind the line, once it has sourced the script."""
    ask = (
        "source <(dipo completion bash); complete -p dipo >/dev/null || exit 3; "
        f"COMP_LINE={shlex.quote(line)}; COMP_POINT=${{#COMP_LINE}}; _dipo; "
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    command = ["bash", "--norc", "-c", ask]
    done = subprocess.run(command, env=path, cwd=cwd, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout.split()


def test_bash_replaces_what_stands_behind_the_last_equals_sign(path, tmp_path):
    assert replies(path, "dipo algo=b", tmp_path) == ["bias_correction", "brecq"]
    assert replies(path, "dipo expor", tmp_path) == ["export", "export."]
    (tmp_path / "net.onnx").touch()
    assert replies(path, "dipo model.path=ne", tmp_path) == ["net.onnx"]


START = {
    "bash": (["bash", "--norc", "--noprofile", "-i"], "source <(dipo completion bash)"),
    "zsh": (["zsh", "-f", "-i"], "autoload -Uz compinit; compinit -u -D; source <(dipo completion zsh)"),
}


@pytest.mark.parametrize("name", START)
def test_a_tab_completes_the_word(path, tmp_path, name):
    command, setup = START[name]
    if shutil.which(name) is None:
        pytest.skip(f"no {name} here")
    master, slave = pty.openpty()
    ends = {"stdin": slave, "stdout": slave, "stderr": slave}
    shell = subprocess.Popen(command, env={**path, "PS1": "$ "}, cwd=tmp_path, start_new_session=True, **ends)
    os.close(slave)
    seen, latest = "", time.monotonic() + 60
    try:
        os.write(master, f"{setup}; echo rea''dy\n".encode())
        asked = False
        while "brecq" not in seen and time.monotonic() < latest:
            if select.select([master], [], [], 1)[0]:
                seen += os.read(master, 4096).decode(errors="replace")
            if "ready" in seen and not asked:
                os.write(master, b"dipo +algo=br\t")
                asked = True
    finally:
        shell.kill()
        shell.wait()
        os.close(master)
    assert "brecq" in seen


@pytest.mark.parametrize(
    ("line", "found"), [("dipo algo=b", ["algo=bias_correction", "algo=brecq"]), ("dipo model.path=ne", ["net.onnx"])]
)
def test_fish_asks_for_the_choices(path, tmp_path, line, found):
    if shutil.which("fish") is None:
        pytest.skip("no fish here")
    (tmp_path / "net.onnx").touch()
    command = ["fish", "--no-config", "-c", f"dipo completion fish | source; complete -C '{line}'"]
    done = subprocess.run(command, env=path, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert [word.split("\t")[0].removeprefix("model.path=") for word in done.stdout.splitlines()] == found
