"""The same bytes from Ray's workers as from this process, with samples from memory and from a function."""

import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from networks import images, saved, tiny_cnn

import dipo
from dipo.launch import main

IMAGES = images(24)
MODULE = """
import os
import numpy as np

def samples():
    open(f"calls-{os.getpid()}", "w").close()
    images = np.random.default_rng(0).normal(size=(24, 3, 8, 8)).astype(np.float32)
    for start in range(0, 24, 7):
        yield images[start : start + 7]
"""


@pytest.fixture
def reference(tmp_path: Path) -> str:
    """What this process makes of the samples."""
    options = {"cluster.compile": False, "algo.iters": 2}
    result = dipo.quantize(tiny_cnn(), IMAGES, algo="qdrop", precision="w4a4", options=options)
    return digest(result.folder)


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / "quantized.onnx").read_bytes()).hexdigest()


def batches() -> Iterator[np.ndarray]:
    for start in range(0, 24, 5):
        yield IMAGES[start : start + 5]


@pytest.mark.slow
def test_workers_share_samples_from_memory(reference: str) -> None:
    options = {"cluster.compile": False, "cluster.workers": 2, "algo.iters": 2}
    result = dipo.quantize(tiny_cnn(), batches(), algo="qdrop", precision="w4a4", cluster="ray", options=options)
    assert result.report.workers["kind"] == "ray"
    assert digest(result.folder) == reference


@pytest.mark.slow
def test_a_function_is_called_once_for_all_workers_of_a_node(
    reference: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ray_samples.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    path = saved(tiny_cnn(), tmp_path)
    words = [f"model.path={path}", "data.source=ray_samples:samples", "cluster.workers=2", "cluster.compile=false"]
    assert main([*words, "algo=qdrop", "algo.iters=2", "precision=w4a4", "run.dir=run"]) == 0
    sys.modules.pop("ray_samples", None)
    assert digest(tmp_path / "run") == reference
    assert len(list(tmp_path.glob("calls-*"))) == 1
