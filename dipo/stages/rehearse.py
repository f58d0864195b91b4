"""The rehearsal of a job: its files, written from the ranges of one sample and run on it, before the long work."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dipo.algo.activation_cache import cut
from dipo.algo.calibrate import activation_ranges, observe, quantize_model
from dipo.algo.simulate import simulate
from dipo.config import Config
from dipo.errors import UserError
from dipo.export.runtime import run_model
from dipo.export.target import QUANTIZED
from dipo.export.targets import TARGETS
from dipo.graph.torch_module import channels_last
from dipo.quant.observers import Observer, Statistics
from dipo.report.measures import least_sqnr_db
from dipo.stages.float_types import as_given
from dipo.stages.load import JobInputs
from dipo.stages.retarget import QuantizedRun, preflight_exports

CPU = torch.device("cpu")


def rehearse(loaded: JobInputs, config: Config) -> float:
    """Write the files of all targets of a job into a folder that goes away, and run each ONNX file on one sample.

    Ranges are those of the sample and weights are rounded within their largest numbers, whatever the job asks for: what
    a runtime refuses are operators, types and the shapes of scales, not their numbers.

    Returns:
        SQNR, in dB, of the own target's `quantized.onnx` against its simulation, in the worst of the outputs.

    Raises:
        UserError: A target refuses the network, or ONNX Runtime a file.
    """
    sample = loaded.data.calib.read(0, 1).inputs
    tensors = {name: channels_last(torch.from_numpy(array)) for name, array in sample.items()}
    run = _quantized_on(tensors, loaded, config)
    found: dict[str, NDArray[np.float32]] = {}

    def check(target: str, file: Path) -> None:
        if file.suffix != ".onnx":
            return
        outputs = _run(file, sample, target=target, loaded=loaded, threads=config.cluster.threads)
        if target == config.platform.name and file.name == QUANTIZED.name:
            found.update(outputs)

    preflight_exports(run, check)
    simulated = simulate(
        run.model,
        plan=run.plan,
        quantized=run.quantized,
        rules=TARGETS[config.platform.name].spec,
        batches=cut(1, 1),
        inputs=lambda _: tensors,
        profile_samples=0,
        device=CPU,
        progress=lambda _: None,
        samples=loaded.samples,
    )
    return least_sqnr_db(as_given(run.model, simulated.q_outputs), found)


def _quantized_on(sample: Mapping[str, torch.Tensor], loaded: JobInputs, config: Config) -> QuantizedRun:
    """Return the network with the ranges of one sample."""
    calib = dataclasses.replace(config.calib, method="minmax", weights="minmax")
    model, plan = loaded.model, loaded.plan
    found = observe(model, plan=plan, batches=cut(1, 1), inputs=lambda _: sample, device=CPU)
    statistics = {name: _something(name) if _is_empty(each) else each for name, each in found.statistics.items()}
    ranges = activation_ranges(plan, statistics, cfg=calib)
    quantized = quantize_model(model, plan=plan, ranges=ranges, cfg=calib)
    quantized = TARGETS[config.platform.name].on_grids(model, quantized)
    config = dataclasses.replace(config, calib=calib)
    return QuantizedRun(config, model, plan, quantized, statistics, loaded.inputs)


def _is_empty(statistics: Statistics) -> bool:
    """Return whether a value had no numbers, as the boxes have none of an image in which nothing is found."""
    return not statistics.count and not statistics.infinite


def _something(name: str) -> Statistics:
    """Return statistics of some numbers, for a value that is empty for the one sample."""
    observer = Observer(name)
    observer.update(torch.tensor([-1.0, 1.0]))
    return observer.result()


def _run(
    file: Path, sample: Mapping[str, NDArray[Any]], *, target: str, loaded: JobInputs, threads: int
) -> dict[str, NDArray[np.float32]]:
    """Return the outputs of a written file for one sample.

    Raises:
        UserError: ONNX Runtime does not run it.
    """
    floats = not TARGETS[target].spec.int32_bias
    try:
        return run_model(
            file,
            [sample],
            threads=threads,
            float_biases=floats,
            **loaded.as_run,
        )
    except Exception as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(
            f"platform={target}: ONNX Runtime does not run {file.name} as it would be written ({reason}), leave the "
            "layers that it names float with precision.skip, or take another export.format"
        ) from error
