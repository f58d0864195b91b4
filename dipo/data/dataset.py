"""Opening of datasets of any form: the entry point of this package.

| path | read as |
|---|---|
| `.npz`, `.npy` | arrays, see `npz` |
| folder with a folder of `.bin` files named like an input | raw samples, see `bin_dir` |
| folder with `calib` in it, or with `train` and one of `val`, `eval`, `test` | parts, each a folder of another kind |
| folder of .npy files named like the arrays of a .npz | arrays, see `store` |
| folder of images, or of one folder of images for each class | images, see `image_folder` |

Samples may also come from a function, see `source`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from dipo.data import bin_dir, image_folder, npz, store
from dipo.data.fixed import WithFixedInputs, fixed_values
from dipo.data.preprocess import LAYOUTS, Preprocessing
from dipo.data.samples import Dataset, Datasets, InputSpec, Parts, Samples, SubsetDataset
from dipo.data.source import open_source
from dipo.errors import UserError

__all__ = ["Dataset", "Datasets", "InputSpec", "Samples", "open_datasets"]

_EVAL_FOLDERS = ("val", "eval", "test")
_KNOWN = (
    "give a .npz with x or calib_x and test_x, a .npy, a folder of .npy files, a folder <input>/<n>.bin, a folder of "
    "images or of class folders of images, or a folder with calib and val in it"
)


def open_datasets(
    *,
    path: Path | None,
    source: str | None = None,
    eval_path: Path | None,
    eval_source: str | None = None,
    inputs: Sequence[InputSpec],
    num: int | None,
    eval_num: int | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    scale: float,
    size: int | None,
    layout: str,
    fixed: Mapping[str, Any] = MappingProxyType({}),
) -> Datasets:
    """Open the samples for calibration and for evaluation.

    Only headers and file names are read; a function is called. If there are more than `num` samples, the first are
    taken, or evenly spaced ones if they are sorted in class folders.

    Args:
        path: File or folder, of which the form is detected; None: the samples come from `source`.
        source: `package.module:function` that returns them; None: they come from `path`.
        eval_path: Samples for evaluation, in any of these forms.
        eval_source: Function that returns samples for evaluation; None both: the evaluation part of the others.
        inputs: The model's inputs.
        num: Number of samples for calibration; None: all.
        eval_num: Number of samples for evaluation; None: all.
        mean: Mean subtracted from scaled pixels, one for each channel or one for all; None: 0.
        std: Divisor of the difference, likewise; None: 1.
        scale: Factor on uint8 pixels, applied first. Values that are not uint8 are not changed.
        size: Length of an image file's shorter side before the centre crop, in pixels; None: as long as the crop needs.
        layout: Order of the axes of stored arrays: `nchw`, `nhwc`, or `auto`, which compares with the model's input.
        fixed: Values of inputs that are not among the samples, see `fixed.fixed_values`.

    Raises:
        UserError: There are no samples, their form is not known, or they do not fit the model or the settings.
    """
    assert inputs
    values = fixed_values(fixed, inputs)
    inputs = [spec for spec in inputs if spec.name not in values]
    how = preprocessing(mean=mean, std=std, scale=scale, size=size, layout=layout)
    parts = _parts(path, source, num, name="", inputs=inputs, how=how)
    assert parts is not None
    evaluation = parts.eval
    given = _parts(eval_path, eval_source, eval_num, name="eval_", inputs=inputs, how=how)
    if given is not None:
        evaluation = given.eval or given.calib
    if evaluation is None and eval_num is not None:
        raise UserError(
            f"data.eval_num={eval_num}, but {path or source} has no part for evaluation: give data.eval_path as well"
        )
    eval_from = eval_path or eval_source or path or source
    calib = parts.calib
    if values:
        calib = WithFixedInputs(calib, values)
        evaluation = None if evaluation is None else WithFixedInputs(evaluation, values)
    return Datasets(
        calib=_cut(calib, num, key="data.num", source=str(path or source)),
        eval=None if evaluation is None else _cut(evaluation, eval_num, key="data.eval_num", source=str(eval_from)),
    )


def _parts(
    path: Path | None,
    source: str | None,
    num: int | None,
    *,
    name: str,
    inputs: Sequence[InputSpec],
    how: Preprocessing,
) -> Parts | None:
    """Open the samples of one pair of options; return None if neither is given."""
    if source is not None:
        return open_source(source, key=f"data.{name}source", inputs=inputs, how=how, num=num)
    return None if path is None else _open(path, key=f"data.{name}path", inputs=inputs, how=how)


def preprocessing(
    *,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    scale: float,
    size: int | None,
    layout: str,
) -> Preprocessing:
    """Check the settings of `open_datasets` and return them.

    Raises:
        UserError: One of them is not valid.
    """
    known = next((choice for choice in LAYOUTS if choice == layout), None)
    if known is None:
        raise UserError(f"data.layout={layout}: choose from {', '.join(LAYOUTS)}")
    if size is not None and size < 1:
        raise UserError(f"data.size={size}: give a length in pixels, or nothing for the model's own")
    numbers = {
        "mean": (0.0,) if mean is None else tuple(mean),
        "std": (1.0,) if std is None else tuple(std),
        "scale": (scale,),
    }
    for key, values in numbers.items():
        if not all(math.isfinite(value) for value in values) or (key != "mean" and 0 in values):
            raise UserError(f"data.{key}={list(values)}: give finite numbers{'' if key == 'mean' else ' other than 0'}")
    return Preprocessing(mean=numbers["mean"], std=numbers["std"], scale=numbers["scale"][0], size=size, layout=known)


def _open(path: Path, *, key: str, inputs: Sequence[InputSpec], how: Preprocessing) -> Parts:
    if not path.exists():
        raise UserError(f"{key}={path} does not exist (seen from {Path.cwd()}): {_KNOWN}")
    path = path.absolute()  # a worker's working directory may be another
    if path.is_dir():
        return _open_folder(path, inputs=inputs, how=how)
    if path.suffix.lower() == ".npz":
        return npz.read_npz(path, inputs=inputs, how=how)
    if path.suffix.lower() == ".npy":
        return npz.read_npy(path, inputs=inputs, how=how)
    raise UserError(f"{key}={path} is no kind of samples that dipo knows: {_KNOWN}")


def _open_folder(path: Path, *, inputs: Sequence[InputSpec], how: Preprocessing) -> Parts:
    if bin_dir.is_bin_dir(path, inputs):
        return bin_dir.read_bin_dir(path, inputs=inputs, how=how)
    if store.is_store(path):
        return store.read_store(path, inputs=inputs, how=how)
    evaluation = _first_folder(path, _EVAL_FOLDERS)
    # "train" alone may be a class of images
    calib = _first_folder(path, ("calib",) if evaluation is None else ("calib", "train"))
    if calib is not None:
        calib_parts = _open_folder(calib, inputs=inputs, how=how)
        if evaluation is None:
            return calib_parts
        return Parts(calib_parts.calib, _open_folder(evaluation, inputs=inputs, how=how).calib)
    if evaluation is not None and all(entry.name in _EVAL_FOLDERS for entry in path.iterdir()):
        raise UserError(f"{path} has only samples for evaluation: add a folder calib beside '{evaluation.name}'")
    if image_folder.is_image_folder(path):
        return image_folder.read_image_folder(path, inputs=inputs, how=how)
    if not any(path.iterdir()):
        raise UserError(f"{path} is empty, there are no samples: {_KNOWN}")
    names = ", ".join(f"'{spec.name}'" for spec in inputs)
    raise UserError(f"{path} holds nothing that dipo knows as samples for the input(s) {names}: {_KNOWN}")


def _first_folder(path: Path, names: Sequence[str]) -> Path | None:
    return next((path / name for name in names if (path / name).is_dir()), None)


def _cut(dataset: SubsetDataset, num: int | None, *, key: str, source: str) -> Dataset:
    if len(dataset) == 0:
        raise UserError(f"{source} has no samples: {_KNOWN}")
    if num is None:
        return dataset
    if not 1 <= num <= len(dataset):
        raise UserError(f"{key}={num}, but {source} has {len(dataset)} samples: ask for 1 to {len(dataset)}")
    return dataset.take(num)
