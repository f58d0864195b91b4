"""Networks as `dipo.graph.load` brings them in, compared with their files in ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch
from networks import saved

from dipo.export.runtime import run_model
from dipo.graph.load import load
from dipo.graph.passes.invariants import INVARIANTS
from dipo.graph.torch_module import GraphModule


def load_model(model: onnx.ModelProto, folder: Path):
    return load(saved(model, folder))


def ops(model) -> list[str]:
    return [node.op_type for node in model.graph]


def assert_same(model: onnx.ModelProto, folder: Path, *, batch: int = 3):
    """The loaded model computes what the file does, for any batch."""
    path = saved(model, folder)
    loaded = load(path)
    rng = np.random.default_rng(1)
    shapes = {
        value.name: [d.dim_value for d in value.type.tensor_type.shape.dim][1:]
        for value in model.graph.input
        if value.name not in {tensor.name for tensor in model.graph.initializer}
    }
    inputs = {name: rng.normal(size=(batch, *shape)).astype(np.float32) for name, shape in shapes.items()}
    for check in INVARIANTS:
        check(loaded)
    expected = run_model(path, [inputs], threads=1)
    with torch.inference_mode():
        found = GraphModule(loaded)({name: torch.from_numpy(array) for name, array in inputs.items()})
    for name, array in expected.items():
        np.testing.assert_allclose(found[name].numpy(), array, atol=1e-5, rtol=1e-4)
    return loaded
