"""An operator of another package, in one file: it goes through a whole job, on Ray workers too."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from networks import images, saved, tiny_cnn

HERE, REPOSITORY = Path(__file__).parent, Path(__file__).parents[2]
MICROSOFT = "com.microsoft"


@pytest.fixture
def installed(tmp_path: Path) -> dict[str, str]:
    """An environment in which a package with the operator is installed."""
    site = tmp_path / "site"
    info = site / "toys-1.0.dist-info"
    info.mkdir(parents=True)
    shutil.copy(HERE / "quick_gelu.py", site)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toys\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[dipo.operators]\n{MICROSOFT}.QuickGelu = quick_gelu:QUICK_GELU\n")
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), str(REPOSITORY)])}


@pytest.fixture
def job(tmp_path: Path) -> list[str]:
    """Arguments of a job whose network has the operator in the place of each Relu."""
    model = tiny_cnn()
    for node in model.graph.node:
        if node.op_type == "Relu":
            node.op_type, node.domain = "QuickGelu", MICROSOFT
    model.opset_import.append(onnx.helper.make_opsetid(MICROSOFT, 1))
    np.savez(tmp_path / "data.npz", image=images(16))
    arguments = [f"model.path={saved(model, tmp_path)}", f"data.path={tmp_path / 'data.npz'}", "cluster.compile=false"]
    return [*arguments, "algo.iters=4", f"run.dir={tmp_path / 'run'}"]


def launch(arguments: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dipo.launch", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("cluster", [["cluster=inline"], ["cluster=ray", "cluster.workers=2"]], ids=["inline", "ray"])
def test_a_job_quantizes_around_it(
    installed: dict[str, str], job: list[str], tmp_path: Path, cluster: list[str]
) -> None:
    more = ["algo=brecq", "platform=snpe", "precision.weight_per_channel=false"]
    done = launch([*job, *more, *cluster], installed)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["error"]["deployed_vs_simulated"]["sqnr_db"] > 15
    assert [unit["name"] for unit in report["units"]] == ["stem", "left", "head"]
    content = json.loads((tmp_path / "run" / "snpe_encodings.json").read_text())
    assert {"b", "d", "h"} <= content["activation_encodings"].keys()


def test_ranges_are_found_without_samples(installed: dict[str, str], job: list[str], tmp_path: Path) -> None:
    done = launch([*job, "+algo=dfq", "data.path=null", "cluster=inline"], installed)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["error"]["deployed_vs_fp32"]["sqnr_db"] > 10


def test_without_the_package_the_operator_runs_in_onnx_runtime(job: list[str]) -> None:
    done = launch([*job, "cluster=inline"], {**os.environ, "PYTHONPATH": str(REPOSITORY)})
    assert done.returncode == 0, done.stderr
    assert "QuickGelu" in done.stdout
