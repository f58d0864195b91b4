"""A model and samples in, a quantized model out."""

from __future__ import annotations

import dataclasses
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dipo.api.inputs import Data, Model, with_inputs
from dipo.api.result import INPUTS, Result
from dipo.api.settings import Preset, compose, threads_kept
from dipo.config import Config, RunConfig
from dipo.errors import JobError
from dipo.report.terminal import Terminal
from dipo.run import CONFIG, RunFolder
from dipo.stages.clock import Clock
from dipo.stages.pipeline import identify, prepare, run


def quantize(
    model: Model,
    data: Data | None = None,
    *,
    algo: Preset = "none",
    calib: Preset = None,
    precision: Preset = None,
    target: str = "ort",
    eval_data: Data | None = None,
    options: Mapping[str, Any] | None = None,
    cluster: Preset = "inline",
    seed: int = 0,
    folder: str | os.PathLike[str] | None = None,
) -> Result:
    """Quantize a model: calibrate it, run an algorithm's steps, write the target's files and compare what they compute.

    Args:
        model: A path, `onnx.ModelProto` or `ir.Model`.
        data: Calibration samples: a path; arrays by name of the input; an iterable of arrays, dicts or tuples, batched
            or one by one, such as a torch DataLoader, which is read once; a function that returns one of these; or
            `package.module:function`, which is called where the workers are. None: for `algo="dfq"`, which needs none.
        algo: What is done beyond calibration: a preset's name (`bias_correction`, `brecq`, `qdrop`, ...) or options of
            `algo`, such as `{"steps": ["bias_correction", "qdrop"], "iters": 500}`.
        calib: How ranges are chosen: a preset's name (`minmax`, `mse`, `percentile`, ...) or options of `calib`.
        precision: A preset's name (`w8a8`, `w4a8`, `w4a4`, ...) or options of `precision`.
        target: The deploy target: `ort`, `trt`, `snpe`, ...
        eval_data: Evaluation samples, as `data`; None: those that `data` holds beside the others, else the calibration
            samples.
        options: Any others, by the names of the command line: `{"algo.iters": 100, "precision.skip": ["/fc"]}`; `data`
            names how uint8 images are preprocessed: `{"data": "imagenet"}`.
        cluster: `inline`, this process; `ray`; or options of `cluster`, such as `{"workers": 4}`.
        seed: Of everything random.
        folder: The run's folder, which is kept; the same call goes on with a run that was interrupted there. None: one
            that goes away with the result.

    Raises:
        UserError: An argument is wrong.
        JobError: The run cannot go on, for a reason outside it.
    """
    config = compose(
        algo=algo, calib=calib, precision=precision, target=target, cluster=cluster, seed=seed, options=options
    )
    path = Path(tempfile.mkdtemp(prefix="dipo-")) if folder is None else Path(folder).expanduser()
    made = folder is None or not path.exists()
    try:
        with threads_kept():
            return _quantized(config, model, data, eval_data, path, temporary=folder is None)
    except JobError:
        raise  # it says how to go on in the folder
    except BaseException:
        if made and (folder is None or not (path / CONFIG).exists()):
            shutil.rmtree(path, ignore_errors=True)
        raise


def _quantized(
    config: Config, model: Model, data: Data | None, eval_data: Data | None, path: Path, *, temporary: bool
) -> Result:
    config, graph = with_inputs(config, model, data, eval_data, path / INPUTS)
    resumes = (path / CONFIG).exists()
    own = {"dir": None, "resume": str(path)} if resumes else {"dir": str(path), "resume": None}
    config = dataclasses.replace(config, run=RunConfig(**own, track=config.run.track))
    folder = RunFolder(path, resume=resumes)
    try:
        prepared = prepare(config, clock=Clock(), model=graph)
        identity = identify(prepared, folder if resumes else None)
        finished = run(prepared, folder, identity, terminal=Terminal.silent())
    finally:
        folder.close()
    return Result(finished, config, prepared.loaded.data, path, temporary=temporary)
