"""Whatever a user gets wrong: one sentence, exit status 2, and nothing left behind."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from networks import images, network, saved, tiny_cnn

from dipo.launch import main


@pytest.fixture
def complaint(tiny_job, tmp_path, monkeypatch, capfd):
    """Run a job that must fail on its input and return the sentence; it must leave no results."""
    monkeypatch.chdir(tmp_path)

    def of(*arguments: str) -> str:
        before = everything(tmp_path)
        status = main(tiny_job.arguments(f"run.dir={tmp_path / 'run'}", *arguments))
        out, err = capfd.readouterr()
        assert status == 2, err
        assert err.startswith("dipo: ")
        assert err.count("\n") == 1, "one sentence on one line"
        assert "Traceback" not in out + err
        left = everything(tmp_path) - before
        assert not [path for path in left if path.name.endswith(".part") or path.suffix in {".onnx", ".json"}]
        assert left == set(), "a job that came to nothing leaves nothing"
        return err.removeprefix("dipo: ").rstrip("\n")

    return of


def everything(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


# The model


def test_no_such_model(complaint, tmp_path):
    message = complaint(f"model.path={tmp_path / 'absent.onnx'}")
    assert "absent.onnx" in message
    assert "no such file" in message


def test_a_model_that_is_no_onnx_file(complaint, tmp_path):
    (tmp_path / "net.onnx").write_text("words, no network\n" * 20)
    assert "not an ONNX file" in complaint(f"model.path={tmp_path / 'net.onnx'}")


@pytest.mark.parametrize("keep", [0.2, 0.6, 0.95])
def test_a_truncated_model(complaint, tmp_path, keep):
    content = tiny_cnn().SerializeToString()
    (tmp_path / "cut.onnx").write_bytes(content[: int(len(content) * keep)])
    message = complaint(f"model.path={tmp_path / 'cut.onnx'}")
    assert "cut.onnx" in message
    assert "truncated" in message


def test_a_model_without_layers(complaint, tmp_path):
    model = network("(float[N,3,8,8] image) => (float[N,3,8,8] y) { y = Relu(image) }")
    assert "no layer is left to quantize" in complaint(f"model.path={saved(model, tmp_path)}")


def test_a_model_with_an_operator_that_nobody_knows(complaint, tmp_path):
    text = """(float[N,3,8,8] image) => (float[N,3,8,8] y) {
      [conv] a = Conv(image, w) [odd] y = com.example.Squash(a)
    }"""
    message = complaint(f"model.path={saved(network(text, domain='com.example', w=(3, 3, 1, 1)), tmp_path)}")
    assert "com.example" in message
    assert "Squash" in message
    assert "model.op_library" in message


def test_a_model_that_onnx_runtime_refuses(complaint, tmp_path):
    model = network(
        "(float[N,3,8,8] image) => (float[N,4,8,8] y) { [conv] a = Conv(image, w) [sum] y = Add(a, b) }",
        w=(4, 3, 1, 1), b=(7, 1, 1),
    )  # fmt: skip
    assert "net.onnx" in complaint(f"model.path={saved(model, tmp_path)}")


@pytest.mark.parametrize(
    "noise", ["[noise] n = RandomNormalLike(a) y = Add(a, n)", "[noise] y = Dropout(a, half, on)"], ids=["add", "drop"]
)
def test_a_model_that_draws_random_numbers(complaint, tmp_path, noise):
    model = network(
        f"(float[N,3,8,8] image) => (float[N,3,8,8] y) {{ [conv] a = Conv(image, w)\n{noise} }}",
        w=(3, 3, 1, 1), half=np.float32(0.5), on=np.array(True),
    )  # fmt: skip
    message = complaint(f"model.path={saved(model, tmp_path)}")
    assert "'noise'" in message
    assert "random numbers" in message


# The samples


def test_no_such_samples(complaint, tmp_path):
    assert "absent.npz" in complaint(f"data.path={tmp_path / 'absent.npz'}")


def test_samples_of_another_shape(complaint, tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((4, 3, 9, 8), np.float32))
    message = complaint(f"data.path={tmp_path / 'x.npy'}")
    assert "x.npy" in message
    assert "3x9x8" in message
    assert "3x8x8" in message


@pytest.mark.parametrize("at", [0, 20])
def test_a_sample_that_is_not_a_number(complaint, tmp_path, at):
    array = images(24)
    array[at, 1, 2, 3] = np.nan
    np.save(tmp_path / "x.npy", array)
    message = complaint(f"data.path={tmp_path / 'x.npy'}")
    assert "x.npy" in message
    assert f"{at}" in message


def test_no_samples(complaint, tmp_path):
    np.save(tmp_path / "x.npy", images(0))
    assert "x.npy" in complaint(f"data.path={tmp_path / 'x.npy'}")
    (tmp_path / "empty").mkdir()
    assert "empty" in complaint(f"data.path={tmp_path / 'empty'}")


def test_more_samples_wanted_than_there_are(complaint):
    assert "data.num=25" in complaint("data.num=25")


@pytest.mark.parametrize("labels", [[99] * 8, [-1] * 8, [0] * 7 + [10]])
def test_labels_that_the_network_has_no_class_for(complaint, tmp_path, labels):
    np.savez(tmp_path / "x.npz", x=images(8), y=np.array(labels))
    message = complaint(f"data.path={tmp_path / 'x.npz'}")
    assert "labels" in message
    assert "10 classes" in message


@pytest.mark.parametrize("labels", [np.zeros(7, np.int64), np.zeros((8, 2), np.int64), np.zeros(8, np.float32)])
def test_labels_that_are_none(complaint, tmp_path, labels):
    np.savez(tmp_path / "x.npz", x=images(8), y=labels)
    assert "label" in complaint(f"data.path={tmp_path / 'x.npz'}")


def test_a_broken_archive(complaint, tmp_path, tiny_job):
    (tmp_path / "x.npz").write_bytes(tiny_job.data.read_bytes()[:-200])
    assert "x.npz" in complaint(f"data.path={tmp_path / 'x.npz'}")


# The command line


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("platform=trtt", ["platform", "trt"]),
        ("algo=brecqq", ["algo", "brecq"]),
        ("precision=w4a5", ["precision", "w4a4"]),
        ("algo.iter=3", ["algo.iter", "iters"]),
        ("seeed=1", ["seeed", "seed"]),
        ("algo.iters=many", ["algo.iters", "number"]),
        ("algo.iters=0", ["algo.iters", ">= 1"]),
        ("precision.weight_bits=1", ["precision.weight_bits", "2 to 16"]),
        ("precision.skip=[nothing*]", ["nothing*", "stem"]),
        ("precision.overrides={stam:{weight_bits:4}}", ["stam", "stem"]),
        ("--loud", ["--loud"]),
    ],
)
def test_what_was_typed_wrongly(complaint, argument, words):
    message = complaint(argument)
    for word in words:
        assert word in message


def test_what_the_platform_cannot_do(complaint):
    assert "trt" in complaint("platform=trt", "precision.weight_symmetric=false")


# The run folder


def test_a_run_folder_that_cannot_be_written(complaint, tmp_path):
    (tmp_path / "file").write_text("in the way")
    for folder in (tmp_path / "file" / "run", tmp_path / "file"):
        message = complaint(f"run.dir={folder}")
        assert "run.dir" in message
        assert str(folder) in message


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a file system that takes no folders")
def test_a_file_system_that_takes_no_folders(complaint):
    assert "run.dir" in complaint("run.dir=/proc/dipo-run")


def test_the_process_itself_ends_with_status_2_and_one_line(tiny_job, tmp_path):
    cut = tmp_path / "cut.onnx"
    cut.write_bytes(tiny_job.model.read_bytes()[:-100])
    ran = subprocess.run(
        [sys.executable, "-m", "dipo.launch", *tiny_job.arguments(f"model.path={cut}")],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.startswith(f"dipo: model.path={cut}: ")
    assert ran.stderr.count("\n") == 1
    assert not (tmp_path / "outputs").exists()


def test_a_quantized_model_given_again(complaint, tiny_job, tmp_path):
    assert main(tiny_job.arguments(f"run.dir={tmp_path / 'first'}")) == 0
    path = tmp_path / "first" / "quantized.onnx"
    onnx.checker.check_model(path)
    message = complaint(f"model.path={path}")
    assert "quantized already" in message
