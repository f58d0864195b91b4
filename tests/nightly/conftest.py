"""Jobs files, and nights that were not run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from dipo.nightly.layers import LayerState
from dipo.nightly.result import JobResult, Status


@pytest.fixture
def jobs_file(tmp_path: Path) -> Callable[..., Path]:
    """Writes a jobs file."""

    def write(**content: object) -> Path:
        path = tmp_path / "jobs.yaml"
        path.write_text(yaml.safe_dump(content, sort_keys=False))
        return path

    return write


@pytest.fixture
def job_result(tmp_path: Path) -> Callable[..., JobResult]:
    """A result of two layers behind a quantized input, with some things changed."""

    def make(name: str = "net-none", **changes: object) -> JobResult:
        layers = (
            LayerState("image", range="image", act_scale=0.02, act_zero_point=128),
            LayerState("conv", "aa" * 16, (0.5, 0.25), "bb" * 16, "b", 0.1, 0, cosine=0.999, sqnr_db=30.0),
            LayerState("head", "cc" * 16, (0.5,), "dd" * 16, cosine=0.998, sqnr_db=28.0),
        )
        fields: dict[str, object] = {
            "name": name, "model": "net", "algo": "none", "platform": "ort", "precision": "w8a8",
            "options": ("model.path=net.onnx",), "status": Status.PASSED, "seconds": 10.0,
            "folder": str(tmp_path / "none-such"), "accuracy_fp32": 90.0, "accuracy_deployed": 89.0,
            "agreement": 98.0, "cosine": 0.998, "sqnr_db": 28.0, "layers": layers,
        }  # fmt: skip
        return JobResult(**{**fields, **changes})  # type: ignore[arg-type]

    return make
