"""ONNX Runtime's own static quantization of a network, beside which dipo's is judged."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from models.architecture import Array

Feed = Mapping[str, Array]
FATAL = 4


class Reader(CalibrationDataReader):
    """Samples one by one."""

    def __init__(self, feeds: Sequence[Feed]) -> None:
        self.feeds: Iterator[Feed] = iter(feeds)

    def get_next(self) -> Feed | None:
        """Return the next sample; None behind the last."""
        return next(self.feeds, None)


def quantized(model: Path, feeds: Sequence[Feed], target: Path, *, prepared: bool) -> Path:
    """Quantize a model: QDQ, a scale for each channel of weights, MinMax.

    Args:
        model: The float network.
        feeds: Samples, one by one.
        target: The file that is written.
        prepared: Whether ONNX Runtime's preparation goes first.
    """
    # The preparation leaves files in the working folder.
    with contextlib.redirect_stdout(io.StringIO()), _silent(), contextlib.chdir(target.parent):
        source = target.with_suffix(".prepared.onnx") if prepared else model
        if prepared:
            quant_pre_process(model, source)
        quantize_static(
            source,
            target,
            Reader(feeds),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            calibrate_method=CalibrationMethod.MinMax,
        )
    return target


def outputs(model: Path, feeds: Sequence[Feed]) -> dict[str, list[Array]]:
    """Return what ONNX Runtime makes of each sample, by name of the output."""
    options = ort.SessionOptions()
    options.log_severity_level = FATAL
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    names, taken = [value.name for value in session.get_outputs()], [value.name for value in session.get_inputs()]
    rows = [
        session.run(
            names, {name: np.ascontiguousarray(feed[name]) if feed[name].ndim else feed[name] for name in taken}
        )
        for feed in feeds
    ]
    return {name: [row[place] for row in rows] for place, name in enumerate(names)}


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
