"""Fixtures of all tests."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import images, saved, tiny_cnn

SHARED_DATA = Path(__file__).parents[1] / ".." / "shared" / "data"

torch.set_num_threads(1)


@dataclass(frozen=True)
class TinyJob:
    """Files of a small job."""

    model: Path
    data: Path

    def arguments(self, *more: str) -> list[str]:
        """Return a command line that runs in this process, without the compiler; later ones win."""
        return [
            f"model.path={self.model}",
            f"data.path={self.data}",
            "cluster=inline",
            "cluster.compile=false",
            "algo.iters=4",
            "calib.headroom=none",  # a quarter of such a job's time, and tests/test_few_samples.py is about it
            *more,
        ]


@pytest.fixture(autouse=True)
def own_log() -> Iterator[None]:
    """Give each test's job a log file of its own."""
    yield
    log = logging.getLogger("dipo")
    for handler in list(log.handlers):
        log.removeHandler(handler)
        handler.close()
    log.propagate = True


@pytest.fixture
def shared_file() -> Callable[[str], Path]:
    """Find one of the larger files beside the repository; the test is skipped where it is absent."""

    def find(name: str) -> Path:
        path = SHARED_DATA / name
        if not path.exists():
            pytest.skip(f"no {name} beside the repository")
        return path

    return find


@pytest.fixture
def tiny_job(tmp_path: Path) -> TinyJob:
    """Write a tiny CNN and samples with labels, for calibration and for evaluation."""
    labels = np.random.default_rng(1).integers(0, 10, 40)
    data = tmp_path / "samples.npz"
    np.savez(data, calib_x=images(24), calib_y=labels[:24], test_x=images(16, seed=1), test_y=labels[24:])
    return TinyJob(saved(tiny_cnn(), tmp_path, "tiny.onnx"), data)
