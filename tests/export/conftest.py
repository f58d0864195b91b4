"""Ways to run what was exported."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

Arrays = dict[str, np.ndarray]


@pytest.fixture
def run() -> Callable[..., Arrays]:
    """Runs a file in ONNX Runtime's CPU provider, optimized or literally."""

    def in_runtime(path: Path, feeds: Arrays, *, optimize: bool = True, keep_float_bias: bool = False) -> Arrays:
        options = ort.SessionOptions()
        options.log_severity_level, options.intra_op_num_threads = 3, 1
        if not optimize:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        skipped = ["WeightBiasQuantization"] if keep_float_bias else []
        session = ort.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"], disabled_optimizers=skipped
        )
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(None, feeds), strict=True))

    return in_runtime


@pytest.fixture
def kernels(tmp_path: Path) -> Callable[[Path], list[str]]:
    """The operators that ONNX Runtime really runs for a file."""

    def optimized(path: Path) -> list[str]:
        options = ort.SessionOptions()
        options.log_severity_level, options.intra_op_num_threads = 3, 1
        options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
        ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        return [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]

    return optimized
