"""Results do not depend on the number of workers, by the default options of every preset."""

from __future__ import annotations

import numpy as np
import pytest
from networks import images, network, saved
from thread_pool import ThreadPool

from dipo.config.presets import find_presets
from dipo.launch import main

ALGOS = sorted(find_presets([])["algo"])
LEARNED = ("adaround", "brecq", "full", "qdrop", "sparse", "tune")
"""What `cluster.schedule=parallel` changes."""
CASES = [*((algo, "sequential") for algo in ALGOS), *((algo, "parallel") for algo in LEARNED)]


@pytest.fixture
def job(tmp_path):
    """A network with BatchNormalization, so that every preset has something to do, and samples in uneven shares."""
    model = network(
        """(float[N,3,8,8] image) => (float[N,5] logits) {
          [stem] a = Conv<pads=[1,1,1,1]>(image, w1, b1)
          n = BatchNormalization(a, g, h, m, v)
          r = Relu(n)
          [left] c = Conv<pads=[1,1,1,1]>(r, w2, b2)
          s = Relu(c)
          t = Add(r, s)
          p = GlobalAveragePool(t)
          f = Flatten(p)
          [head] logits = Gemm<transB=1>(f, w3, b3)
        }""",
        w1=(8, 3, 3, 3), b1=(8,), g=np.ones(8, np.float32), h=np.zeros(8, np.float32), m=np.zeros(8, np.float32),
        v=np.ones(8, np.float32), w2=(8, 8, 3, 3), b2=(8,), w3=(5, 8), b3=(5,),
    )  # fmt: skip
    np.savez(tmp_path / "samples.npz", image=images(75))
    arguments = [f"model.path={saved(model, tmp_path)}", f"data.path={tmp_path / 'samples.npz'}"]
    return [*arguments, "data.batch_size=8", "algo.iters=12", "algo.tune_iters=4"]


def written(job, folder, *options):
    assert main([*job, f"run.dir={folder}", *options]) == 0
    return {path.name: path.read_bytes() for path in folder.glob("*.onnx")} | {
        "statistics": (folder / "statistics.safetensors").read_bytes()
        if (folder / "statistics.safetensors").exists()
        else b""
    }


@pytest.mark.parametrize(("algo", "schedule"), CASES)
def test_any_number_of_workers_finds_the_same_bits(job, tmp_path, monkeypatch, algo, schedule):
    options = [f"algo={algo}", f"cluster.schedule={schedule}", "cluster.compile=false", "precision=w4a8"]
    inline = written(job, tmp_path / "inline", *options, "cluster=inline")
    for size in (2, 3):
        monkeypatch.setattr(
            "dipo.stages.pipeline.start_pool", lambda job, model, size=size, **_: ThreadPool(job, model, size)
        )
        assert written(job, tmp_path / str(size), *options, "cluster=ray") == inline


@pytest.mark.slow
@pytest.mark.parametrize("algo", ALGOS)
def test_rays_workers_find_the_same_bits_with_all_defaults(job, tmp_path, algo):
    inline = written(job, tmp_path / "inline", f"algo={algo}", "cluster=inline")
    for workers in (1, 2, 3):
        assert written(job, tmp_path / str(workers), f"algo={algo}", f"cluster.workers={workers}") == inline
