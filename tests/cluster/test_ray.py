"""The same job inline and on Ray workers; one Ray for all tests of the file."""

import numpy as np
import psutil
import pytest
import safetensors.numpy

from dipo.config import compose_config
from dipo.errors import UserError
from dipo.stages.load import load_job

MODEL = [
    "+model=mobilenet",
    "data.num=72",
    "data.eval_num=32",
    "data.batch_size=8",
    "cluster.compile=false",
    "cluster.threads=1",
]


def run(folder, *overrides):
    from dipo.job import run_job

    assert run_job(compose_config([*MODEL, f"run.dir={folder}", *overrides])) == 0
    units = {path.name: safetensors.numpy.load_file(path) for path in sorted((folder / "units").glob("*.safetensors"))}
    return (
        safetensors.numpy.load_file(folder / "statistics.safetensors"),
        units,
        (folder / "quantized.onnx").read_bytes(),
    )


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a)


def test_one_worker_and_three_give_the_same_bits(tmp_path):
    """Statistics of nine batches on one worker and on three; a step in two pieces on one worker and on two of three."""
    how = ["+algo=qdrop", "precision=w4a4", "algo.iters=2", "cluster.grad_shards=2"]
    one = run(tmp_path / "one", *how, "cluster=inline")
    three = run(tmp_path / "three", *how, "cluster=ray", "cluster.workers=3")
    assert same(one[0], three[0]), "statistics"
    assert one[1].keys() == three[1].keys()
    assert len(one[1]) == 13
    for name in one[1]:
        assert same(one[1][name], three[1][name]), name
    assert one[2] == three[2], "quantized.onnx"
    assert not [process for process in psutil.Process().children(recursive=True) if "ray::" in process.name()]


@pytest.mark.slow
def test_bias_correction_does_not_depend_on_the_workers(tmp_path):
    how = ["+algo=bias_correction", "cluster.grad_shards=5"]
    one = run(tmp_path / "one", *how, "cluster=inline")
    two = run(tmp_path / "two", *how, "cluster.workers=2")
    assert one[2] == two[2]


def test_what_the_user_got_wrong_comes_back_from_a_worker_as_it_was_raised(tmp_path):
    from dipo.job import run_job

    images = np.zeros((24, 32, 32, 1), np.float32)
    images[10, 3, 3] = np.nan
    np.savez(tmp_path / "x.npz", x=images)
    config = compose_config(
        [
            *MODEL,
            "data=auto",
            f"data.path={tmp_path / 'x.npz'}",
            "data.num=24",
            "data.eval_num=null",
            "cluster.workers=2",
            f"run.dir={tmp_path / 'run'}",
        ]
    )
    with pytest.raises(UserError, match="10"):
        run_job(config)


def test_load_job_reads_the_embedded_network():
    loaded = load_job(compose_config(MODEL))
    assert len(loaded.plan.layers) == 32


def test_workers_that_cannot_start_end_the_run_with_a_sentence(tmp_path, monkeypatch, capsys):
    import ray

    import dipo.cluster.ray_pool
    from dipo.launch import main

    class Broken:
        def __init__(self, *_):
            raise ImportError("no module named torch")

        @ray.method(concurrency_group="aside")
        def node(self):
            return ""

    monkeypatch.setattr(dipo.cluster.ray_pool, "ACTOR", ray.remote(concurrency_groups={"aside": 1})(Broken))
    assert main([*MODEL, "cluster.workers=1", "cluster.retries=1", f"run.dir={tmp_path / 'run'}"]) == 1
    error = capsys.readouterr().err
    assert "worker 0 failed to start 2 times" in error
    assert error.count("\n") == 1
    assert not ray.is_initialized()
