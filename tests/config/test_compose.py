import dataclasses
import threading
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.singleton import Singleton
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from dipo.config import ClusterConfig, Config, DataConfig, compose_config, to_plain, to_yaml
from dipo.config.presets import default_choices, find_presets
from dipo.errors import UserError
from dipo.run import CONFIG

PRESETS = find_presets([])
MOBILENET = ["+model=mobilenet"]


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


# From Python


def test_a_program_that_uses_hydra_itself_keeps_what_it_told_it(tmp_path):
    (tmp_path / "theirs.yaml").write_text("a: 1\n")
    with initialize_config_dir(config_dir=str(tmp_path), version_base=None):
        before = dict(Singleton._instances)
        assert compose_config(["seed=3"]).seed == 3
        assert Singleton._instances == before
        assert compose("theirs").a == 1
    assert not GlobalHydra.instance().is_initialized()


def test_resolvers_of_the_program_stay():
    OmegaConf.register_new_resolver("hydra", lambda word: f"{word}!", replace=True)
    try:
        compose_config([])
        assert OmegaConf.create({"a": "${hydra:x}"}).a == "x!"
    finally:
        OmegaConf.clear_resolver("hydra")


def test_threads_may_compose_at_the_same_time():
    found = {}

    def work(seed):
        found[seed] = compose_config([f"seed={seed}"]).seed

    threads = [threading.Thread(target=work, args=[seed]) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {seed: seed for seed in range(4)}


def test_it_prints_nothing(capfd):
    compose_config(["+algo=qdrop"])
    assert capfd.readouterr() == ("", "")


# A run that goes on


def begun(folder: Path, *overrides: str) -> Config:
    """Leave behind what a run with these options has written first."""
    config = compose_config(overrides)
    folder.mkdir()
    (folder / CONFIG).write_text(yaml.safe_dump(to_plain(config)))
    return config


def test_a_run_goes_on_with_its_own_options(tmp_path):
    config = begun(tmp_path / "run", *MOBILENET, "algo=qdrop", "precision=w4a4", f"run.dir={tmp_path / 'run'}")
    resumed = compose_config([f"run.resume={tmp_path / 'run'}", "cluster.retries=1"])
    assert resumed.run.resume == str(tmp_path / "run")
    assert resumed.cluster == dataclasses.replace(config.cluster, retries=1)
    assert dataclasses.replace(resumed, run=config.run, cluster=config.cluster) == config


DECISIVE = ["cluster.schedule=parallel", "cluster.threads=3", "cluster.compile=false", "cluster.grad_shards=8"]


@pytest.mark.parametrize(
    ("first", "then"),
    [
        (["cluster=ray", "cluster.workers=2", "cluster.retries=1"], "inline"),
        (["cluster=inline", "cluster.workers=1", "cluster.retries=1"], "ray"),
    ],
)
def test_other_workers_go_on_with_what_results_depend_on(tmp_path, first, then):
    begun(tmp_path / "run", *MOBILENET, *first, *DECISIVE)
    resumed = compose_config([f"run.resume={tmp_path / 'run'}", f"cluster={then}"]).cluster
    assert resumed == ClusterConfig(kind=then, schedule="parallel", threads=3, compile=False, grad_shards=8)


def test_workers_that_one_process_cannot_have_are_refused_when_a_run_goes_on_too(tmp_path):
    begun(tmp_path / "run", *MOBILENET, "cluster.workers=2")
    with pytest.raises(UserError, match=r"^cluster\.workers 4: cluster=inline is one process"):
        compose_config([f"run.resume={tmp_path / 'run'}", "cluster=inline", "cluster.workers=4"])


def test_the_yaml_of_a_configuration_makes_it_again():
    config = compose_config([*MOBILENET, "algo=full", "precision.overrides={/a:{weight_bits:4}}"])
    assert yaml.safe_load(to_yaml(config)) == to_plain(config)


STEPS = ["equalize", {"qdrop": {"iters": 100}}, "tune"]


def test_steps_with_options_of_their_own_from_the_command_line_a_preset_and_a_run(tmp_path):
    config = compose_config(["algo=full", "algo.steps=[equalize,{qdrop:{iters:100}},tune]"])
    assert config.algo.steps == STEPS
    assert compose_config(["algo=full", "algo.steps={qdrop:{iters:100}}"]).algo.steps == STEPS[1:2]
    (tmp_path / "own" / "algo").mkdir(parents=True)
    (tmp_path / "own" / "algo" / "mine.yaml").write_text(yaml.safe_dump({"name": "mine", "steps": STEPS}))
    assert compose_config(["algo=mine"], [tmp_path / "own"]).algo.steps == STEPS
    begun(tmp_path / "run", "algo.steps=[equalize,{qdrop:{iters:100}},tune]")
    assert compose_config([f"run.resume={tmp_path / 'run'}"]).algo.steps == STEPS
    assert yaml.safe_load(to_yaml(config))["algo"]["steps"] == STEPS
