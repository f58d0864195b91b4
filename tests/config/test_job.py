import dataclasses
import json

import pytest

from dipo.config import AlgoConfig, ClusterConfig, Config, DataConfig, PlatformConfig, job, resolve_path, to_plain
from dipo.errors import UserError
from dipo.recipe import CalibConfig, PrecisionConfig
from dipo.section import all_options, from_plain


def test_everything_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().algo.iters = 3


def test_defaults_are_not_shared_between_configurations():
    assert Config().algo.steps is not Config().algo.steps
    assert Config().precision.overrides is not Config().precision.overrides


def test_plain_form_survives_a_file_and_comes_back_equal():
    before = Config(
        data=DataConfig(path="x.npz", mean=[0.5], std=[0.25]),
        algo=AlgoConfig(steps=["bias_correction", "qdrop"], lr_act=1e-5),
        precision=PrecisionConfig(overrides={"/a.b/*": {"weight_bits": 4, "weight_symmetric": False}}, skip=["/c"]),
        seed=7,
    )
    assert from_plain(Config, json.loads(json.dumps(to_plain(before)))) == before


def test_every_default_is_within_its_own_limits():
    for option in all_options(Config):
        assert option.read(option.default) == option.default


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (
            lambda: CalibConfig(method="foo"),
            "calib.method 'foo': choose from minmax, percentile, mse, kl, octav, batchnorm",
        ),
        (lambda: CalibConfig(weights="kl"), "calib.weights 'kl': choose from minmax, mse, percentile"),
        (lambda: CalibConfig(weight_percentile=0.9), "calib.weight_percentile 0.9: give a number from 50 to 100"),
        (lambda: CalibConfig(percentile=101.0), "calib.percentile 101: give a number from 50 to 100"),
        (
            lambda: AlgoConfig(steps=["reconstruct"]),
            "algo.steps 'reconstruct': choose from equalize, sparsify, update_bn, bias_correction, gptq, adaround, "
            "brecq, qdrop, tune, analyze",
        ),
        (lambda: AlgoConfig(fp_input_prob=1.5), "algo.fp_input_prob 1.5: give a number from 0 to 0.99"),
        (lambda: AlgoConfig(iters=0), "algo.iters 0: give a number >= 1"),
        (
            lambda: PlatformConfig(name="snpa"),
            "platform.name 'snpa': did you mean snpe, or one of ort, trt, qnn, rv, rk, atlas, ti, imx, magicmind, "
            "stpu, openvino?",
        ),
        (lambda: PrecisionConfig(placement="in"), "precision.placement 'in': choose from input, output"),
        (lambda: PrecisionConfig(weight_bits=1), "precision.weight_bits 1: give a number from 2 to 16"),
        (lambda: DataConfig(std=[0.0]), "data.std 0: give a number above 0"),
        (
            lambda: DataConfig(mean=[0.1, 0.2], std=[1.0, 1.0, 1.0]),
            "data.mean [0.1,0.2] and data.std [1,1,1]: give one number, or one for each channel",
        ),
        (lambda: DataConfig(mean=[]), "data.mean [] and data.std null: give one number, or one for each channel"),
        (
            lambda: ClusterConfig(kind="inline", workers=3),
            "cluster.workers 3: cluster=inline is one process, leave it 1 or take cluster=ray",
        ),
        (
            lambda: PrecisionConfig(overrides={"/a": {"bits": 4}}),
            "precision.overrides '/a': unknown setting 'bits': "
            "did you mean act_bits, or one of weight_bits, weight_symmetric, weight_per_channel, weight_narrow, "
            "weight_block?",
        ),
        (
            lambda: PrecisionConfig(overrides={"/a": {"weight_bits": 40}}),
            "precision.overrides '/a' weight_bits 40: give a number from 2 to 16",
        ),
        (
            lambda: PrecisionConfig(overrides={"/a": {"weight_symmetric": "no"}}),
            "precision.overrides '/a' weight_symmetric 'no': give true or false",
        ),
        (
            lambda: PrecisionConfig(overrides={"/a": 4}),
            "precision.overrides '/a' 4: give settings such as {weight_bits:4}",
        ),
    ],
)
def test_what_is_out_of_limits_is_refused(make, sentence):
    with pytest.raises(UserError) as caught:
        make()
    assert str(caught.value) == sentence


def test_one_mean_goes_with_three_standard_deviations():
    assert DataConfig(mean=[0.5], std=[0.1, 0.2, 0.3]).mean == [0.5]


def test_zoo_paths_are_files_of_the_package(monkeypatch, tmp_path):
    (tmp_path / "net.onnx").touch()
    monkeypatch.setattr(job, "ZOO", tmp_path)
    assert resolve_path("zoo:net.onnx") == tmp_path / "net.onnx"
    with pytest.raises(UserError, match=r"zoo:nett\.onnx: .* choose from net\.onnx"):
        resolve_path("zoo:nett.onnx")


def test_other_paths_are_taken_as_they_are(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    assert str(resolve_path("a/b.onnx")) == "a/b.onnx"
    assert str(resolve_path("~/b.onnx")) == "/home/someone/b.onnx"
