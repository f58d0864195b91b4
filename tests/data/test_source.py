import pickle
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dipo.config import DataConfig
from dipo.data.dataset import Dataset, Datasets, InputSpec, open_datasets
from dipo.errors import UserError

IMAGE = InputSpec("input", (None, 3, 4, 4), np.dtype(np.float32))
FLOATS = np.random.default_rng(0).normal(size=(10, 3, 4, 4)).astype(np.float32)
MODULE = """
import numpy as np

FLOATS = np.random.default_rng(0).normal(size=(10, 3, 4, 4)).astype(np.float32)

def batches():
    open("calls", "a").write("x")
    for start in range(0, 10, 3):
        yield FLOATS[start : start + 3], np.arange(10)[start : start + 3]

def parts():
    return {"calib_x": FLOATS[:6], "test_x": FLOATS[6:]}

def random():
    return np.random.default_rng().normal(size=(4, 3, 4, 4)).astype(np.float32)

def nothing():
    pass

def broken():
    raise RuntimeError("no database\\nin sight")

def strings():
    return ["text"]

class Readers:
    batches = staticmethod(batches)

number = 3
"""


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A module in the folder in which the job is started, which Python itself does not look into."""
    (tmp_path / "tmp").mkdir()
    (tmp_path / "my_samples.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    yield
    sys.modules.pop("my_samples", None)
    assert str(tmp_path) not in sys.path


def opened(**given: Any) -> Datasets:
    settings = dict.fromkeys(("path", "eval_path", "num", "eval_num", "mean", "std", "size"))
    return open_datasets(inputs=[IMAGE], **{**settings, "scale": 1 / 255, "layout": "auto", **given})


def elsewhere(dataset: Dataset, tmp_path: Path) -> str:
    """Read the samples in another process, and say what came of it."""
    (tmp_path / "dataset").write_bytes(pickle.dumps(dataset))
    code = """
        import pickle, sys, tempfile
        from dipo.errors import UserError
        tempfile.tempdir = sys.argv[1]
        try:
            print(pickle.load(open("dataset", "rb")).read(0, 2).inputs["input"].tobytes().hex())
        except UserError as error:
            print(error)
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "tmp")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_samples_are_read_once_and_shared_between_processes(tmp_path: Path) -> None:
    calib = opened(source="my_samples:batches").calib
    samples = calib.read(3, 10)
    np.testing.assert_array_equal(samples.inputs["input"], FLOATS[3:])
    assert samples.labels is not None and samples.labels.tolist() == list(range(3, 10))
    assert len(pickle.dumps(calib)) < 3000
    assert elsewhere(calib, tmp_path) == FLOATS[:2].tobytes().hex()
    assert (tmp_path / "calls").read_text() == "x"


def test_another_node_calls_the_function_for_itself(tmp_path: Path) -> None:
    calib = opened(source="my_samples:batches").calib
    (tmp_path / "tmp").rename(tmp_path / "other")
    (tmp_path / "tmp").mkdir()
    assert elsewhere(calib, tmp_path) == FLOATS[:2].tobytes().hex()
    assert (tmp_path / "calls").read_text() == "xx"
    assert not list((tmp_path / "tmp").iterdir()), "the process that made the store took it away at its end"


def test_another_node_has_to_get_the_same(tmp_path: Path) -> None:
    calib = opened(source="my_samples:random").calib
    (tmp_path / "tmp").rename(tmp_path / "other")
    (tmp_path / "tmp").mkdir()
    assert "my_samples:random gives other samples on" in elsewhere(calib, tmp_path)


def test_what_a_killed_process_left_goes_with_the_next_store(tmp_path: Path) -> None:
    (tmp_path / "tmp" / "dipo-samples-dead" / "store").mkdir(parents=True)
    opened(source="my_samples:batches")
    (kept,) = (tmp_path / "tmp").iterdir()
    assert kept.name != "dipo-samples-dead"


def test_digest_is_that_of_a_file_with_the_same_samples(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=FLOATS)
    assert opened(source="my_samples:batches").calib.digest() == opened(path=tmp_path / "x.npz").calib.digest()
    few = opened(source="my_samples:Readers.batches", num=4).calib
    assert few.digest() == opened(path=tmp_path / "x.npz", num=4).calib.digest()
    assert few.describe() == "arrays, 4 samples of 3x4x4, labels, from my_samples:Readers.batches"


def test_parts_for_evaluation(tmp_path: Path) -> None:
    both = opened(source="my_samples:parts", eval_num=2)
    assert both.eval is not None
    np.testing.assert_array_equal(both.eval.read(0, 2).inputs["input"], FLOATS[6:8])
    np.savez(tmp_path / "x.npz", x=FLOATS[:2])
    other = opened(path=tmp_path / "x.npz", eval_source="my_samples:batches", eval_num=5)
    assert other.eval is not None and (len(other.calib), len(other.eval)) == (2, 5)


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("no_such:f", "data.source=no_such:f: no_such cannot be imported, looked for in .*No module named 'no_such'"),
        ("my_samples:f", "data.source=my_samples:f: my_samples has no 'f'"),
        ("my_samples:number", "data.source=my_samples:number is int: name a function"),
        ("my_samples:nothing", "data.source=my_samples:nothing returned nothing"),
        (
            "my_samples:broken",
            "data.source=my_samples:broken: calling it raised RuntimeError: no database: mend it there$",
        ),
        ("my_samples:strings", "element 0 of data.source=my_samples:strings, input 'input' is str"),
    ],
)
def test_what_gives_no_samples_is_refused(tmp_path: Path, reference: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        opened(source=reference)
    assert not list((tmp_path / "tmp").iterdir())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"path": "x.npz", "source": "a:b"}, "data.path and data.source: give one of them"),
        ({"eval_path": "x.npz", "eval_source": "a:b"}, "data.eval_path and data.eval_source: give one of them"),
        ({"source": "a.b"}, "data.source 'a.b': give package.module:function"),
        ({"eval_source": "a/b:c"}, "data.eval_source 'a/b:c': give package.module:function"),
    ],
)
def test_options_that_exclude_each_other(given: dict[str, str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        DataConfig(**given)
