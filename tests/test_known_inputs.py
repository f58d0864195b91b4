"""Ranges without a pass of samples: inputs are measured where samples are, else the run says what it assumes."""

import json

import numpy as np
import onnx
import pytest
from networks import images, network, saved

from dipo.cli.main import main as dipo
from dipo.config import DataConfig
from dipo.data.samples import Samples
from dipo.launch import main
from dipo.stages.known_inputs import KnownInputs, measure

SHIFTED = 6.0
"""Mean of the samples: no pixels' between 0 and 1."""


@pytest.fixture
def job(tmp_path):
    """Return what runs a network with BatchNormalization without its statistics of values, with its report."""
    rng = np.random.default_rng(3)
    model = network(
        """(float[N,3,8,8] image) => (float[N,5] scores) {
          [stem] a = Conv<pads=[1,1,1,1]>(image, w1)
          [norm] n = BatchNormalization(a, scale, shift, mean, var)
          [relu] b = Relu(n)
          [pool] c = GlobalAveragePool(b)
          [flat] d = Flatten(c)
          [head] scores = Gemm<transB=1>(d, w2, b2)
        }""",
        w1=(8, 3, 3, 3), scale=np.ones(8, np.float32), shift=rng.normal(size=8).astype(np.float32),
        mean=np.zeros(8, np.float32), var=np.full(8, 30, np.float32), w2=(5, 8), b2=(5,),
    )  # fmt: skip
    path = saved(model, tmp_path)
    np.savez(tmp_path / "samples.npz", image=images(24) + np.float32(SHIFTED))

    def run(*how: str, name: str = "run") -> dict:
        assert main([f"model.path={path}", "cluster=inline", f"run.dir={tmp_path / name}", "+algo=dfq", *how]) == 0
        return json.loads((tmp_path / name / "report.json").read_text())

    return run


def grid(folder, name: str) -> tuple[float, float]:
    """Return the smallest and the largest number of a value's grid of 8 bits."""
    kept = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(folder / "quantized.onnx").graph.initializer}
    scale, zero = float(kept[f"{name}_scale"]), kept[f"{name}_zero_point"]
    limits = np.iinfo(zero.dtype)
    return (limits.min - int(zero)) * scale, (limits.max - int(zero)) * scale


@pytest.mark.parametrize("how", [(), ("precision.weight_per_channel=false",)])
def test_samples_are_believed(job, tmp_path, how):
    report = job(f"data.path={tmp_path / 'samples.npz'}", *how)
    low, high = grid(tmp_path / "run", "image")
    assert low == 0
    assert high == pytest.approx((images(24) + SHIFTED).max(), rel=0.01)
    assert not [note for note in report["notes"] if note["name"] == "image"]
    assert report["error"]["deployed_vs_fp32"]["sqnr_db"] > 20


@pytest.mark.parametrize(
    ("how", "range_", "says"),
    [
        ((), (0, 1), "numbers from 0 to 1 are assumed, those of pixels from 0 to 1;"),
        (("data.mean=[0.5]", "data.std=[0.25]"), (-2, 2), "numbers from -2 to 2 are assumed, those of pixels less"),
        (("data.std=[0.5]",), (0, 2), "numbers from 0 to 2 are assumed, those of pixels from 0 to 1 over data.std;"),
    ],
)
def test_what_is_assumed_without_samples_is_said(job, tmp_path, capsys, how, range_, says):
    report = job(*how)
    assert grid(tmp_path / "run", "image") == pytest.approx(range_, abs=0.03)
    (note,) = [note["what"] for note in report["notes"] if note["name"] == "image"]
    assert note.startswith(f"there are no samples, so {says}")
    said = capsys.readouterr().out
    assert said.index(note) < said.index("verify: ") < said.rindex(note)
    assert report["error"]["deployed_vs_fp32"]["cosine"] > 0.98, "noise is what is assumed"


def test_another_target_later_knows_the_samples_too(job, tmp_path):
    data = f"data.path={tmp_path / 'samples.npz'}"
    job(data, "export.also=[rk]", "precision.weight_per_channel=false")
    before = {file.name: file.read_bytes() for file in (tmp_path / "run" / "rk").iterdir()}
    (tmp_path / "samples.npz").unlink()
    assert dipo(["export", f"run={tmp_path / 'run'}", "platform=rk"]) == 0
    after = {file.name: file.read_bytes() for file in (tmp_path / "run" / "rk").iterdir()}
    assert {name: after[name] for name in before} == before


class Stored:
    """Samples in memory."""

    def __init__(self, **arrays):
        self.arrays = arrays

    def __len__(self):
        return len(next(iter(self.arrays.values())))

    def read(self, start, stop):
        return Samples({name: array[start:stop] for name, array in self.arrays.items()}, None)


def test_moments_are_those_of_the_channels():
    rng = np.random.default_rng(0)
    array = (rng.normal(size=(37, 3, 4, 4)) * [[[1.0]], [[2.0]], [[3.0]]] + 5).astype(np.float32)
    found = measure(Stored(x=array, k=np.arange(37)[:, None], scalar=array[:, 0, 0, 0]))
    assert found.keys() == {"x"}
    wide, axes = array.astype(np.float64), (0, 2, 3)
    np.testing.assert_allclose(found["x"].mean, wide.mean(axes), rtol=1e-9)
    np.testing.assert_allclose(found["x"].std, wide.std(axes), rtol=1e-9)
    np.testing.assert_array_equal(found["x"].low, wide.min(axes))
    np.testing.assert_array_equal(found["x"].high, wide.max(axes))
    assert found["x"].num_dims_behind == 2


def test_what_was_not_used_is_not_saved():
    known = KnownInputs(DataConfig())
    assert known.to_save is None
    assert known.measured is None
