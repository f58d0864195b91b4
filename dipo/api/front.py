"""A model and samples in, a quantized model out."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dipo.api.inputs import Data, Model, with_inputs
from dipo.api.result import INPUTS, Result
from dipo.api.settings import Preset, compose, folder_of, path_of, threads_kept
from dipo.api.workers import free_ray
from dipo.errors import JobError
from dipo.run import CONFIG
from dipo.stages.pipeline import run_silently


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
    path = Path(tempfile.mkdtemp(prefix="dipo-")) if folder is None else path_of(folder)
    before = None if folder is None or not path.exists() else set((path / INPUTS).glob("*"))
    folder_of(path)
    try:
        with threads_kept():
            if config.cluster.kind == "ray":
                free_ray()
            config, graph = with_inputs(config, model, data, eval_data, path / INPUTS)
            return Result(run_silently(config, path, model=graph), path, temporary=folder is None)
    except JobError:
        raise  # it says how to go on in the folder
    except BaseException:
        _forget(path, before, kept=folder is not None)
        raise


def _forget(path: Path, before: set[Path] | None, *, kept: bool) -> None:
    """Remove what a call has left that came to nothing; of a run that was begun, only what is not the run's.

    Args:
        path: The run's folder.
        before: The inputs that it held before the call; None: there was no folder.
        kept: The folder is the user's.
    """
    begun = (path / CONFIG).exists()
    if not kept or (before is None and not begun):
        shutil.rmtree(path, ignore_errors=True)
        return
    text = (path / CONFIG).read_text(encoding="utf-8") if begun else ""
    for entry in set((path / INPUTS).glob("*")) - (before or set()):
        if entry.name not in text:
            shutil.rmtree(entry, ignore_errors=True)
