"""Architectures that users bring: each goes in, is computed as it is written, and loses no more than elsewhere.

The fast suite has some of the architectures, each with one export and few steps. The slow one has all, each in a
process of its own, so that `pytest -k NAME` is a piece of it; the table of docs/models.md is made of the same records.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from models import trial
from models.architecture import Architecture
from models.catalogue import ARCHITECTURES
from models.trial import Job, Record
from models.verdict import faults

SECONDS = 900
"""Of all jobs of an architecture."""
THIN = (
    ("mobilenet_v2", "script-fixed", "bias_correction"),
    ("resnet", "dynamo-free", "none"),
    ("unet", "script-fixed", "qdrop"),
    ("tcn", "script-fixed", "bias_correction"),
    ("mlp", "script-free", "qdrop"),
)
"""Architecture, variant and algorithm."""
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def exports(tmp_path_factory) -> Path:
    """Where exported networks are kept while the tests run; DIPO_MODELS names a folder that keeps them for longer."""
    return Path(os.environ.get("DIPO_MODELS") or tmp_path_factory.mktemp("models"))


@pytest.mark.parametrize(("name", "variant", "algo"), THIN)
def test_a_thin_slice(exports, name, variant, algo):
    record = trial.run(Job(name, variant, algo, "ort"), exports)
    assert faults([record]) == []
    assert min(db for db in record.db.values() if db is not None) > 12


def test_the_plain_one_is_not_behind_onnx_runtimes_own(exports):
    jobs = [
        Job("mobilenet_v2", "script-fixed", algo, how) for algo, how in (("none", "ort"), ("quantize_static", "plain"))
    ]
    records = [trial.run(job, exports) for job in jobs]
    assert [record.state for record in records] == ["done", "done"]
    assert faults(records) == []


def test_what_is_behind_is_named():
    own = Job("net", "script-free", "none", "ort")
    peer = Job("net", "script-free", "quantize_static", "plain")
    records = [Record(own, "done", "", {"y": 20.0}, 70.0), Record(peer, "done", "", {"y": 20.6})]
    assert faults(records) == ["net script-free none ort: output y has 20.0 dB, 20.6 by ONNX Runtime's quantize_static"]
    assert faults([Record(own, "refused", "a sentence")]) == ["net script-free none ort: refused: a sentence"]
    assert faults([Record(own, "done", "", {"y": 20.0}, 50.0)]) == [
        "net script-free none ort: the file is 50.0 dB from its simulation"
    ]


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_every_job(exports, architecture: Architecture):
    if architecture.requires and importlib.util.find_spec(architecture.requires) is None:
        pytest.skip(f"{architecture.requires} is not installed")
    paths = os.pathsep.join((str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")))
    done = subprocess.run(
        [sys.executable, "-m", "models.trial", architecture.name, str(exports)],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    records = [Record.read(json.loads(line)) for line in done.stdout.splitlines()]
    assert done.returncode == 0, done.stderr[-2000:]
    assert {record.job for record in records} == set(trial.jobs_of(architecture))
    assert faults(records) == []
