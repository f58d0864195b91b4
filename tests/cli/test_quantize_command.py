import logging
import re
import shlex
import subprocess
import sys
import types
from pathlib import Path

import pytest

import dipo
from dipo.cli.main import main
from dipo.config import compose_config
from dipo.config.presets import packaged_folder
from dipo.errors import UserError

MOBILENET = ["+model=mobilenet"]


@pytest.fixture
def jobs(monkeypatch):
    """Stand in for the job: the configurations that were run; `jobs.outcome()` is what a job does."""

    class Jobs(list):
        def outcome(self):
            return 0

        def run(self, config, *, verbose):
            self.append(config)
            self.verbose = verbose
            return self.outcome()

    jobs = Jobs()
    monkeypatch.setitem(sys.modules, "dipo.job", types.SimpleNamespace(run_job=jobs.run))
    return jobs


@pytest.fixture
def own(tmp_path):
    """A user's folder of presets."""
    (tmp_path / "mine" / "model").mkdir(parents=True)
    (tmp_path / "mine" / "model" / "tiny.yaml").write_text("# my own\npath: tiny.onnx\n")
    return tmp_path / "mine"


def fails(capsys, command: str) -> str:
    """Run a command that the user got wrong and return the sentence."""
    assert main(shlex.split(command)) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("dipo: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err
    return err.removeprefix("dipo: ").rstrip("\n")


# What is wrong


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        ("", "no model: give +model=<name> (mobilenet) or model.path=<file.onnx>"),
        ("+algo=brecq", "no model: give +model=<name> (mobilenet) or model.path=<file.onnx>"),
        ("model.path=net.onnx", "no samples: give data.path="),
        ("+model=mobilnet", "unknown model 'mobilnet': did you mean mobilenet?"),
        ("model=net.onnx", "unknown model 'net.onnx': choose from mobilenet, or give the file as model.path=net.onnx"),
        (
            "algo=adarond",
            "unknown algo 'adarond': did you mean adaround, or one of analyze, bias_correction, brecq, dfq, equalize, ",
        ),
        (
            "+algo=xyzzy",
            "unknown algo 'xyzzy': choose from adaround, analyze, bias_correction, brecq, dfq, equalize, fast, full, ",
        ),
        ("+model", "model has no value: choose from mobilenet"),
        ("+model=", "model has no value: choose from mobilenet"),
        ("modle=mobilenet", "unknown option 'modle': did you mean model, or one of "),
        ("algo=brecq,qdrop", "algo=brecq,qdrop: sweeps are not supported, "),
        ("precision.weight_bits=2,4", "precision.weight_bits=2,4: sweeps are not supported, "),
        ("algo.iters=range(1,3)", "algo.iters=range(1,3): sweeps are not supported, "),
        ("-m algo=brecq", "-m: sweeps are not supported, "),
        ("--multirun algo=brecq", "--multirun: sweeps are not supported, "),
        ("algo.itters=3", "unknown option 'algo.itters': did you mean algo.iters, or one of algo.name, "),
        ("algo.weight_bits=3", "unknown option 'algo.weight_bits': did you mean precision.weight_bits?"),
        ("itters=3", "unknown option 'itters': did you mean algo.iters?"),
        ("foo.bar=3", "unknown option 'foo.bar': choose from model, data, algo, calib, precision, platform, cluster, "),
        ("run=here", "unknown option 'run': choose from run.dir"),
        ("hydra.run.dir=x", "unknown option 'hydra.run.dir': did you mean run.dir?"),
        ("algo.iters.x=3", "unknown option 'algo.iters.x': did you mean algo.iters?"),
        ("algo@model=brecq", "unknown option 'algo@model': did you mean "),
        ("~algo=brecq", "'~algo=brecq': give group=choice or option=value, see --help"),
        ("=3", "'=3': give group=choice or option=value, see --help"),
        ("algo.iters=abc", "algo.iters 'abc': give a whole number >= 1"),
        ("algo.iters=1.5", "algo.iters 1.5: give a whole number >= 1"),
        ("algo.iters=", "algo.iters has no value: give a whole number >= 1"),
        ("algo.iters", "algo.iters has no value: give a whole number >= 1"),
        ("algo.iters=null", "algo.iters null: give a whole number >= 1"),
        ("algo.steps=[adarond]", "algo.steps 'adarond': did you mean adaround, or one of equalize, "),
        ("calib.method=foo", "calib.method 'foo': choose from minmax, percentile, mse, kl, octav, batchnorm"),
        ("data.mean=[0.5", "data.mean=[0.5: cannot be read, check its brackets and quotes"),
        (
            "precision.overrides={/a:{bits:4}}",
            "precision.overrides '/a': unknown setting 'bits': did you mean act_bits, ",
        ),
        (
            "precision.overrides.a.act_bits=4",
            "unknown option 'precision.overrides.a.act_bits': did you mean precision.overrides?",
        ),
        ("cluster=inline cluster.workers=4", "cluster.workers 4: cluster=inline is one process, "),
        ("data.path=${oc.env:NO_SUCH_VARIABLE}", "data.path: "),
        ("--hepl", "unknown flag '--hepl': did you mean --help, or one of --version, --verbose, --cfg, --config-dir?"),
        ("--config-dir", "--config-dir has no value: "),
        ("--config-dir /no/such/folder", "--config-dir /no/such/folder: no such folder, "),
    ],
)
def test_a_wrong_command_line_is_answered_in_one_sentence(capsys, jobs, command, sentence):
    said = fails(capsys, command)
    assert said.startswith(sentence)
    assert not jobs


@pytest.mark.parametrize(
    ("preset", "sentence"),
    [
        ("pth: a.onnx", "unknown option 'model.pth': did you mean path, or one of name, op_library?"),
        ("path: [a.onnx", "presets: not valid YAML (while parsing a flow sequence"),
        ("- a", "model ['a']: give its options, name, path"),
        ("path: ???", "model.path: "),
        ("path: ${nowhere.at.all}", "model.path: "),
        ("defaults:\n  - nope", "presets: In 'model/tiny': Could not load 'model/nope'"),
    ],
)
def test_a_wrong_preset_is_answered_in_one_sentence(capsys, jobs, own, preset, sentence):
    (own / "model" / "tiny.yaml").write_text(preset)
    assert fails(capsys, f"--config-dir {own} model=tiny").startswith(sentence)


def test_the_jobs_user_errors_are_sentences_too(capsys, jobs):
    def outcome():
        raise UserError("sample 3:\n  NaN")

    jobs.outcome = outcome
    assert fails(capsys, "+model=mobilenet") == "sample 3: NaN"


# The job


def test_the_job_gets_the_configuration_and_gives_the_exit_status(jobs):
    jobs.outcome = lambda: 1
    assert main([*MOBILENET, "seed=3"]) == 1
    assert jobs == [compose_config([*MOBILENET, "seed=3"])]


def test_an_interrupt_is_130(capsys, jobs):
    def outcome():
        raise KeyboardInterrupt

    jobs.outcome = outcome
    assert main(MOBILENET) == 130
    assert capsys.readouterr().err == "dipo: interrupted\n"


def test_a_crash_is_one_sentence_and_a_traceback_in_a_file(capsys, jobs, monkeypatch, tmp_path):
    def outcome():
        raise RuntimeError("the disk\nis full")

    jobs.outcome = outcome
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert main(MOBILENET) == 1
    err = capsys.readouterr().err
    found = re.fullmatch(r"dipo: RuntimeError: the disk \(traceback in (.+)\)\n", err)
    assert found
    assert "raise RuntimeError" in Path(found[1]).read_text()


def test_a_crash_is_logged_in_the_runs_log_where_there_is_one(capsys, jobs, tmp_path):
    def outcome():
        raise RuntimeError

    jobs.outcome = outcome
    handler = logging.FileHandler(tmp_path / "dipo.log")
    log = logging.getLogger("dipo")
    log.addHandler(handler)
    try:
        assert main(MOBILENET) == 1
    finally:
        log.removeHandler(handler)
        handler.close()
    err = capsys.readouterr().err
    assert str(tmp_path / "dipo.log") in err
    assert "Traceback" not in err
    assert "raise RuntimeError" in (tmp_path / "dipo.log").read_text()


# The user's own presets


def test_own_presets_from_a_named_folder(jobs, own):
    assert main(["--config-dir", str(own), "model=tiny", "data.path=x"]) == 0
    assert main([f"--config-dir={own}", "model=tiny", "data.path=x"]) == 0
    assert [config.model.path for config in jobs] == ["tiny.onnx", "tiny.onnx"]


def test_own_presets_from_conf_in_the_working_directory(jobs, own, monkeypatch):
    own.rename(own.with_name("conf"))
    monkeypatch.chdir(own.parent)
    assert main(["model=tiny", "data.path=x"]) == 0
    assert jobs[0].model.path == "tiny.onnx"


def test_own_presets_are_among_the_choices(capsys, jobs, own):
    assert fails(capsys, f"--config-dir {own} model=tinny") == "unknown model 'tinny': did you mean tiny or mobilenet?"
    assert fails(capsys, f"--config-dir {own}").startswith("no model: give +model=<name> (tiny, mobilenet)")


def test_an_own_preset_that_dipos_would_hide_is_refused(capsys, jobs, own):
    (own / "model" / "mobilenet.yaml").write_text("path: other.onnx\n")
    said = fails(capsys, f"--config-dir {own} model=mobilenet")
    assert "mobilenet.yaml has the name of a preset that comes with dipo, rename it" in said


def test_a_copy_of_dipos_presets_is_no_conflict(jobs, own):
    (own / "model" / "mobilenet.yaml").write_bytes((packaged_folder() / "model" / "mobilenet.yaml").read_bytes())
    assert main(["--config-dir", str(own), "model=mobilenet"]) == 0


def test_another_projects_primary_config_is_left_alone(jobs, own):
    (own / "config.yaml").write_text("defaults: [nothing]\nfoo: 1\n")
    assert main(["--config-dir", str(own), "model=tiny", "data.path=x"]) == 0


# Flags


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"dipo {dipo.__version__}\n"


def test_cfg_prints_every_option_and_runs_nothing(capsys, jobs):
    assert main(["--cfg", "algo=qdrop"]) == 0
    out = capsys.readouterr().out
    assert "  steps:\n  - qdrop\n" in out
    assert "  weight_bits: 8\n" in out
    assert not jobs


@pytest.mark.parametrize("columns", [60, 120])
def test_help_follows_the_terminal(capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    assert main(["algo=brecq", "--help"]) == 0
    longest = max(len(line) for line in capsys.readouterr().out.splitlines())
    assert columns - 10 < longest <= columns


def test_help_imports_nothing_heavy():
    heavy = "{'torch', 'ray', 'onnx', 'onnx_ir', 'onnxruntime', 'hydra', 'omegaconf', 'numpy'}"
    code = f"import sys; from dipo.cli.main import main; main(['--help']); print(sorted({heavy} & set(sys.modules)))"
    root = Path(dipo.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_module_runs_as_a_program():
    root = Path(dipo.__file__).parents[1]
    command = [sys.executable, "-m", "dipo.launch", "+algo=xyzzy"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("dipo: unknown algo 'xyzzy': choose from ")
