import logging
import re
import shlex
import subprocess
import sys
import types
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import dipo
from dipo.config import Config, DataConfig
from dipo.errors import UserError
from dipo.launch import compose_config, main
from dipo.presets import default_choices, find_presets, packaged_folder

PRESETS = find_presets([])
MOBILENET = ["+model=mobilenet"]


@pytest.fixture
def jobs(monkeypatch):
    """Stand in for the job: the configurations that were run; `jobs.outcome()` is what a job does."""

    class Jobs(list):
        def outcome(self):
            return 0

        def run(self, config):
            self.append(config)
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


# Presets and overrides


def test_nothing_chosen_is_the_dataclasses_defaults():
    assert compose_config([]) == Config()


@pytest.mark.parametrize(("group", "choice"), [(group, choice) for group in PRESETS for choice in PRESETS[group]])
def test_every_choice_composes_alone(group, choice):
    config = compose_config([f"{group}={choice}"])
    if choice != default_choices()[group]:
        assert config != Config(), "a preset that changes nothing is no choice"


@settings(max_examples=10, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(st.fixed_dictionaries({group: st.sampled_from(sorted(choices)) for group, choices in PRESETS.items()}))
def test_choices_of_all_groups_go_together_and_each_keeps_its_word(choices):
    config = compose_config([f"{group}={choice}" for group, choice in choices.items()])
    assert config.algo.name == choices["algo"]
    assert config.calib.method == choices["calib"]
    assert f"w{config.precision.weight_bits}a{config.precision.act_bits}" == choices["precision"]
    assert config.platform.name == choices["platform"]
    assert config.cluster.kind == choices["cluster"]
    assert config.data.path == ("zoo:digits.npz" if choices["data"] == "digits" else None)


@pytest.mark.parametrize("plus", ["+", "++"])
def test_a_group_may_have_a_plus(plus):
    assert compose_config([f"{plus}algo=qdrop", f"{plus}model=mobilenet"]) == compose_config(["algo=qdrop", *MOBILENET])


def test_algorithms_differ_as_their_papers_do():
    algos = {name: compose_config([f"algo={name}"]).algo for name in ("adaround", "brecq", "qdrop")}
    steps = [step for algo in algos.values() for step in algo.make_steps()]
    assert {step.name: (step.granularity, step.training.fp_input_prob) for step in steps} == {
        "adaround": ("layer", 0.0),
        "brecq": ("block", 0.0),
        "qdrop": ("block", 0.5),
    }
    assert all(algo.steps == [name] for name, algo in algos.items())


def test_the_model_brings_its_samples():
    config = compose_config(MOBILENET)
    assert (config.model.name, config.model.path) == ("mobilenet", "zoo:mobilenet.onnx")
    assert config.data == DataConfig(path="zoo:digits.npz", mean=[0.5], std=[0.5])


def test_the_command_lines_groups_win_over_experiments_and_models():
    config = compose_config(["algo=brecq", "data=cifar10", "experiment=lowbit", *MOBILENET])
    assert (config.algo.name, config.calib.method, config.precision.act_bits) == ("brecq", "mse", 4)
    assert config.data.path is None
    assert config.data.std == [0.229, 0.224, 0.225]


@pytest.mark.parametrize("plus", ["", "+", "++"])
def test_values_win_over_presets_wherever_they_stand(plus):
    config = compose_config(
        [f"{plus}precision.weight_bits=6", f"{plus}data.num=3", "precision=w4a4", "experiment=smoke"]
    )
    assert (config.precision.weight_bits, config.precision.act_bits) == (6, 4)
    assert (config.data.num, config.data.eval_num) == (3, 64)


def test_the_last_of_two_values_wins():
    config = compose_config(["seed=1", "algo=brecq", "seed=2", "algo=qdrop"])
    assert (config.seed, config.algo.name) == (2, "qdrop")


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("model.path=a b (1)=[x],{y}:z.onnx", "a b (1)=[x],{y}:z.onnx"),
        ("model.path=it's.onnx", "it's.onnx"),
        ("model.path='quoted.onnx'", "quoted.onnx"),
        ("model.path=123", "123"),
        ("model.path=true", "true"),
        ("model.path=C:\\x\\", "C:\\x\\"),
        ("model.path=null", None),
    ],
)
def test_paths_need_no_quotes(override, value):
    assert compose_config([override]).model.path == value


def test_values_of_every_type():
    config = compose_config(
        [
            "precision.overrides={/features/3/*:{weight_bits:4,weight_symmetric:false},a.b:{act_bits:8}}",
            "precision.skip=/fc",
            "data.mean=[0.1,0.2,0.3]",
            "data.std=1",
            "algo.lr_act=1e-4",
            "dry_run=true",
            "cluster.address=ray://host:10001",
            "precision.first_last_bits=null",
        ]
    )
    assert config.precision.overrides == {
        "/features/3/*": {"weight_bits": 4, "weight_symmetric": False},
        "a.b": {"act_bits": 8},
    }
    assert config.precision.skip == ["/fc"]
    assert (config.data.mean, config.data.std) == ([0.1, 0.2, 0.3], [1.0])
    assert (config.algo.lr_act, config.dry_run) == (1e-4, True)
    assert config.cluster.address == "ray://host:10001"
    assert config.precision.first_last_bits is None


def test_a_value_may_come_from_the_environment(monkeypatch):
    monkeypatch.setenv("SAMPLES", "/data/x.npz")
    assert compose_config(["data.path=${oc.env:SAMPLES}"]).data.path == "/data/x.npz"


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
            "unknown algo 'xyzzy': choose from adaround, analyze, bias_correction, brecq, dfq, equalize, full, ",
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
        ("--hepl", "unknown flag '--hepl': did you mean --help, or one of --version, --cfg, --config-dir?"),
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
        ("pth: a.onnx", "unknown option 'model.pth': did you mean path or name?"),
        ("path: [a.onnx", "presets: while parsing a flow sequence"),
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
    code = f"import sys; from dipo.launch import main; main(['--help']); print(sorted({heavy} & set(sys.modules)))"
    root = Path(dipo.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_module_runs_as_a_program():
    root = Path(dipo.__file__).parents[1]
    command = [sys.executable, "-m", "dipo.launch", "+algo=xyzzy"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("dipo: unknown algo 'xyzzy': choose from ")
