"""The command line, where nothing is run."""

import contextlib
import subprocess
import sys

import pytest

from dipo.cli.nightly import main
from dipo.nightly.history import History
from dipo.nightly.settings import Config, TrendConfig
from dipo.section import all_options


def fails(capsys, *words: str) -> str:
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("dipo-nightly: ")
    assert err.count("\n") == 1
    return err


def test_help_names_every_option_and_fits_the_terminal(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["--help"]) == 0
    page = capsys.readouterr().out
    assert max(map(len, page.splitlines())) <= 80
    for option in (*all_options(Config), *all_options(TrendConfig)):
        assert f"    {option.key}=" in page, option.key


def test_help_and_a_wrong_word_import_nothing_heavy():
    code = (
        "import sys; from dipo.cli.nightly import main; assert main(['--help']) == 0; assert main(['x=1']) == 2\n"
        "heavy = {'torch', 'ray', 'sqlalchemy', 'onnx_ir', 'jinja2', 'hydra'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_version_is_told(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("dipo 0.")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "no jobs: give jobs="),
        (["job=x.yaml"], "unknown option 'job': did you mean jobs"),
        (["gate.max_top_drop=1"], "did you mean gate.max_top1_drop"),
        (["jobs"], "jobs has no value"),
        (["jobs=x.yaml", "parallel=0"], "parallel 0: give a number >= 1"),
        (["jobs=x.yaml", "parallel=two"], "parallel 'two': give a whole number"),
        (["jobs=x.yaml", "gate.max_minutes=1h"], "gate.max_minutes '1h': give a number"),
        (["jobs=none.yaml"], "jobs=none.yaml: cannot be read"),
        (["--hepl"], "unknown flag '--hepl': did you mean --help"),
        (["trend"], "trend: give one job or model"),
        (["trend", "a", "b"], "trend: give one job or model"),
        (["trend", "a", "lst=3"], "did you mean last"),
        (["trend", "a", "last=0"], "last 0"),
        (["trend", "a", "history=none.sqlite"], "no such file"),
        (["jobs=x", "history=postgresql://me:s3cret@h/d", "out"], "out has no value"),
    ],
)
def test_what_the_user_got_wrong_is_told_in_a_sentence(capsys, tmp_path, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    sentence = fails(capsys, *words)
    assert said in sentence
    assert "s3cret" not in sentence
    assert not list(tmp_path.iterdir())


def test_a_night_that_cannot_be_is_refused_before_anything_is_made(capsys, tmp_path, jobs_file):
    path = jobs_file(jobs=[{"name": "wide", "options": ["+model=mobilenet", "cluster=inline", "cluster.threads=4"]}])
    sentence = fails(capsys, f"jobs={path}", f"out={tmp_path / 'out'}", "cluster.cpus=3")
    assert "job 'wide' needs 4 CPUs" in sentence
    assert [each.name for each in (tmp_path / "out").iterdir()] == ["history.sqlite"]
    (tmp_path / "file").touch()
    assert "file" in fails(capsys, f"jobs={path}", f"out={tmp_path / 'file'}", "cluster.cpus=4")


def test_a_trend_of_an_unknown_name_lists_the_names(capsys, tmp_path, job_result):
    with contextlib.closing(History(str(tmp_path / "history.sqlite"))) as history:
        history.add(history.start_night("n", started="2026-01-02T03:04:05+00:00", version="0", jobs="j"), job_result())
    assert "did you mean net-none or net?" in fails(capsys, "trend", "net-non", f"out={tmp_path}")
    assert main(["trend", "net", f"history={tmp_path / 'history.sqlite'}"]) == 0
    assert "89.00" in capsys.readouterr().out
