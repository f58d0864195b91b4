"""The float network on its way to workers."""

import pickle

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from networks import images, saved, tiny_cnn

from dipo.cluster.network import SMALL_BYTES, PackedNetwork
from dipo.graph.load import load
from dipo.launch import main


@pytest.fixture
def outside(tmp_path):
    """A network whose tensors lie in a file beside it."""
    path = tmp_path / "model" / "net.onnx"
    path.parent.mkdir()
    onnx.save(tiny_cnn(), path, save_as_external_data=True, location="net.data", size_threshold=0)
    assert (path.parent / "net.data").exists()
    return path


def test_it_arrives_as_it_left(outside, tmp_path, monkeypatch):
    """Without the file of its tensors, wherever the process is."""
    model = load(outside)
    before = {name: value.const_value.numpy().copy() for name, value in model.graph.initializers.items()}
    packed = pickle.dumps(PackedNetwork.of(model), protocol=5)
    assert all(np.array_equal(model.graph.initializers[name].const_value.numpy(), before[name]) for name in before)
    (outside.parent / "net.data").unlink()
    monkeypatch.chdir(tmp_path)
    found = pickle.loads(packed).model()
    assert found.graph.initializers.keys() == before.keys()
    for name, array in before.items():
        value = found.graph.initializers[name]
        assert np.array_equal(value.const_value.numpy(), array)
        assert value.const_value.numpy().dtype == array.dtype
        assert tuple(value.shape) == array.shape
        assert value.dtype == ir.DataType.from_numpy(array.dtype)
    assert [(node.name, node.op_type) for node in found.graph] == [(node.name, node.op_type) for node in model.graph]


def test_large_tensors_are_no_part_of_the_graph(tmp_path):
    model = load(saved(tiny_cnn(), tmp_path))
    packed = PackedNetwork.of(model)
    assert packed.tensors and all(array.nbytes > SMALL_BYTES for array in packed.tensors.values())
    assert (
        len(packed.graph)
        < len(ir.to_proto(model).SerializeToString()) - sum(a.nbytes for a in packed.tensors.values()) / 2
    )


def test_a_job_on_ray_needs_no_file_beside_the_model(outside, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez(tmp_path / "samples.npz", image=images(24))
    how = [f"model.path={outside}", f"data.path={tmp_path / 'samples.npz'}", "+algo=bias_correction"]
    assert main([*how, "cluster=inline", f"run.dir={tmp_path / 'inline'}"]) == 0
    assert main([*how, "cluster.workers=2", f"run.dir={tmp_path / 'ray'}"]) == 0
    inline, ray = ((tmp_path / name / "quantized.onnx").read_bytes() for name in ("inline", "ray"))
    assert inline == ray
