import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

from dipo.errors import UserError
from dipo.export import onnx_file
from dipo.export.onnx_file import raise_opset, save_model


def model_with_weight(shape: tuple[int, int] = (64, 64)) -> ir.Model:
    proto = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["": 13]> g (float[N,{shape[0]}] x) => (float[N,{shape[1]}] y)'
        "{ [mm] y = MatMul(x, w) }"
    )
    weight = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    return ir.from_proto(proto)


def test_small_model_is_one_file(tmp_path):
    save_model(model_with_weight(), tmp_path / "m.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


def test_large_model_keeps_its_tensors_beside_it(tmp_path, monkeypatch, run):
    monkeypatch.setattr(onnx_file, "_INLINE_BYTES", 1024)
    model = model_with_weight()
    save_model(model, tmp_path / "m.onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.onnx", "m.onnx.data"]
    assert (tmp_path / "m.onnx").stat().st_size < 1024
    x = np.random.default_rng(1).normal(size=(2, 64)).astype(np.float32)
    weight = model.graph.initializers["w"].const_value.numpy()
    np.testing.assert_allclose(run(tmp_path / "m.onnx", {"x": x})["y"], x @ weight, atol=1e-5)


def test_tensors_of_a_model_in_two_files_are_copied(tmp_path, run):
    ir.save(model_with_weight(), tmp_path / "source.onnx", external_data="source.data")
    (tmp_path / "out").mkdir()
    save_model(ir.load(tmp_path / "source.onnx"), tmp_path / "out" / "m.onnx")
    (tmp_path / "source.data").unlink()
    assert run(tmp_path / "out" / "m.onnx", {"x": np.ones((1, 64), np.float32)})["y"].shape == (1, 64)


def test_a_file_with_its_tensors_inside_leaves_none_beside_it(tmp_path):
    save_model(model_with_weight(), tmp_path / "m.onnx", external=True)
    save_model(model_with_weight(), tmp_path / "m.onnx")
    assert [each.name for each in tmp_path.iterdir()] == ["m.onnx"]


def test_invalid_model_leaves_what_was_there(tmp_path):
    path = tmp_path / "m.onnx"
    save_model(model_with_weight(), path)
    before = path.read_bytes()
    broken = model_with_weight()
    broken.graph[0].op_type = "NoSuchOperator"
    with pytest.raises(UserError, match=r"^m.onnx would not be valid ONNX \(.*NoSuchOperator"):
        save_model(broken, path)
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["m.onnx"]


def test_an_output_whose_dimensions_nobody_knows_is_written(tmp_path, run):
    """Behind an operator of another domain; ONNX's checker calls such a file invalid, and runtimes do not."""
    model = model_with_weight()
    model.graph.outputs[0].shape = None
    save_model(model, tmp_path / "m.onnx")
    assert run(tmp_path / "m.onnx", {"x": np.ones((3, 64), np.float32)})["y"].shape == (3, 64)


def test_raised_opset_converts_what_changed_its_meaning(run, tmp_path):
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 18]> g (float[1,4,3,3] x, float[1,2,2,2] at) => (float[1,4,2,2] y)'
        '{ y = GridSample<mode="bilinear">(x, at) }'
    )
    model = ir.from_proto(proto)
    rng = np.random.default_rng(0)
    feeds = {"x": rng.normal(size=(1, 4, 3, 3)).astype(np.float32), "at": rng.uniform(-1, 1, (1, 2, 2, 2)).astype("f")}
    save_model(model, tmp_path / "before.onnx")
    raise_opset(model, 21)
    save_model(model, tmp_path / "after.onnx")
    assert model.opset_imports[""] == 21
    assert model.ir_version >= 10
    for optimize in (False, True):
        before = run(tmp_path / "before.onnx", feeds, optimize=optimize)["y"]
        np.testing.assert_allclose(run(tmp_path / "after.onnx", feeds, optimize=optimize)["y"], before, atol=1e-6)


def test_raising_an_old_opset_says_nothing(caplog):
    model = model_with_weight()
    model.opset_imports[""] = 10
    raise_opset(model, 13)
    assert model.opset_imports[""] == 13 and not caplog.records


def test_newer_opset_is_left():
    model = model_with_weight()
    model.opset_imports[""] = 20
    raise_opset(model, 13)
    assert model.opset_imports[""] == 20
