"""The model, the samples and the plan; and whether torch computes what ONNX Runtime does."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch

from dipo.config import Config, resolve_path
from dipo.data.dataset import Datasets, InputSpec, open_datasets
from dipo.errors import UserError
from dipo.export.platforms import RULES
from dipo.export.runtime import run_model
from dipo.graph.load import load, name_of
from dipo.graph.plan import Plan, make_plan
from dipo.graph.torch_module import GraphModule, channels_last

PARITY_SAMPLES = 4
PARITY_LIMIT = 1e-3
"""Largest difference between torch and ONNX Runtime on the float network, over the largest output, that is rounding."""


@dataclass(frozen=True)
class Loaded:
    """What a job begins with."""

    path: Path
    model: ir.Model
    data: Datasets
    plan: Plan


def load_job(config: Config) -> Loaded:
    """Reads the model, finds the samples, makes the plan.

    Raises:
        UserError: One of them is missing or wrong.
    """
    if config.model.path is None:
        raise UserError("no model: give +model=mobilenet or model.path=<file.onnx>")
    if config.data.path is None:
        raise UserError("no samples: give data.path=<file or folder>")
    path = resolve_path(config.model.path)
    model = load(path)
    data = open_datasets(
        path=resolve_path(config.data.path),
        eval_path=None if config.data.eval_path is None else resolve_path(config.data.eval_path),
        inputs=[_input_spec(value) for value in model.graph.inputs],
        num=config.data.num,
        eval_num=config.data.eval_num,
        mean=config.data.mean,
        std=config.data.std,
        scale=config.data.scale,
        size=config.data.size,
        layout=config.data.layout,
    )
    precision = config.precision
    plan = make_plan(
        model,
        rules=RULES[config.platform.name],
        weight_bits=precision.weight_bits,
        act_bits=precision.act_bits,
        weight_per_channel=precision.weight_per_channel,
        weight_symmetric=precision.weight_symmetric,
        first_last_bits=precision.first_last_bits,
        overrides=precision.overrides,
        skip=precision.skip,
    )
    if not plan.layers:
        raise UserError(
            f"model.path={path}: no layer can be quantized (Conv, ConvTranspose, Gemm, MatMul with constant weights)"
        )
    return Loaded(path, model, data, plan)


def _input_spec(value: ir.Value) -> InputSpec:
    assert value.shape is not None and value.dtype is not None
    shape = tuple(size if isinstance(size, int) else None for size in value.shape)
    return InputSpec(name=name_of(value), shape=shape, dtype=value.dtype.numpy())


def check_parity(loaded: Loaded, *, threads: int) -> float:
    """Runs a few samples through the float network in torch and, from the file as it is, in ONNX Runtime.

    Returns:
        The largest difference, over the largest output.

    Raises:
        UserError: They differ by more than rounding does.
    """
    samples = loaded.data.calib.read(0, min(PARITY_SAMPLES, len(loaded.data.calib))).inputs
    rows = len(next(iter(samples.values())))
    fixed = next(iter(loaded.model.graph.inputs)).shape
    assert fixed is not None
    step = fixed[0] if isinstance(fixed[0], int) else 1
    expected = run_model(
        loaded.path, ({name: array[i : i + step] for name, array in samples.items()} for i in range(0, rows - step + 1, step)),
        threads=threads,
    )  # fmt: skip
    with torch.inference_mode():
        module = GraphModule(loaded.model, outputs=[name_of(value) for value in loaded.model.graph.outputs]).eval()
        found = module({name: channels_last(torch.from_numpy(array)) for name, array in samples.items()})
    worst = 0.0
    for name, array in expected.items():
        scale = max(float(np.abs(array).max()), 1e-30)
        worst = max(worst, float(np.abs(found[name].numpy() - array).max()) / scale)
    if not worst <= PARITY_LIMIT:
        raise UserError(
            f"model.path={loaded.path}: torch and ONNX Runtime differ by {worst:.2g} of the largest output on the float network, "
            "so nothing derived from it would hold; please report the model"
        )
    return worst
