"""A model and samples from memory, as the files that a job reads and that its workers share."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from dipo.config import Config, resolve_path
from dipo.config.job import SOURCE
from dipo.data.dataset import preprocessing
from dipo.data.preprocess import Preprocessing
from dipo.data.samples import InputSpec, digest_files
from dipo.data.store import write_store
from dipo.errors import UserError
from dipo.graph.load import load
from dipo.graph.sparse import make_dense
from dipo.stages.sample_forms import in_one_of_the_forms

Model = str | os.PathLike[str] | onnx.ModelProto | ir.Model
"""An ONNX file, `zoo:` and the name of one that comes with dipo, or a model in memory."""
Data = str | os.PathLike[str] | Mapping[str, Any] | Iterable[Any] | Callable[[], Any]
"""A file or folder of samples; arrays by name; an iterable of arrays, dicts or tuples, such as a torch DataLoader; a
function that returns one of these; or `package.module:function`, which is called where the workers are."""
MODEL_FILE = "model.onnx"
"""In a folder of its own."""
_EXTERNAL_BYTES = 1 << 30
"""Size of weights from which on they lie beside the model's file: protobuf takes no more than twice that."""


def with_inputs(
    config: Config, model: Model, data: Data | None, eval_data: Data | None, folder: Path
) -> tuple[Config, ir.Model]:
    """Return the configuration with the model and the samples as files, and the model, loaded.

    Args:
        config: Says how many samples are taken and how they are preprocessed.
        model: The float model.
        data: Calibration samples; None: there are none.
        eval_data: Evaluation samples; None: those that `data` holds beside the others.
        folder: Where what is in memory gets files.

    Raises:
        UserError: The model is no float model, the samples do not fit it, or one of them cannot be read.
    """
    path = model_file(model, folder)
    name = config.model.name or (None if isinstance(model, str | os.PathLike) else _name_of(model))
    loaded = load(resolve_path(path))
    given: dict[str, Any] = {}
    for prefix, samples, num in (("", data, config.data.num), ("eval_", eval_data, config.data.eval_num)):
        if samples is not None:
            how = preprocessing_of(config)
            given |= {f"{prefix}path": None, f"{prefix}source": None}  # those of a preset
            given |= place(samples, folder, prefix=prefix, model=loaded, fixed=config.data.fixed, how=how, num=num)
    config = dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, path=path, name=name),
        data=dataclasses.replace(config.data, **given),
    )
    return config, loaded


def model_file(model: Model, folder: Path) -> str:
    """Return the path of a model, which is written into a folder where it is in memory.

    Raises:
        UserError: It is no model.
    """
    if isinstance(model, str | os.PathLike):
        text = os.fspath(model)
        return text if text.startswith("zoo:") else str(Path(text).expanduser().absolute())
    if not isinstance(model, onnx.ModelProto | ir.Model):
        raise UserError(f"model is {type(model).__name__}: give the path of an ONNX file, onnx.ModelProto or ir.Model")
    graph = ir.from_proto(make_dense(model)) if isinstance(model, onnx.ModelProto) else model
    tensors = [value.const_value for value in graph.graph.initializers.values() if value.const_value is not None]
    outside = any(isinstance(tensor, ir.ExternalTensor) for tensor in tensors)
    large = outside or sum(tensor.nbytes for tensor in tensors) > _EXTERNAL_BYTES
    with _new_folder(folder) as new:
        try:
            ir.save(graph, new / MODEL_FILE, external_data=f"{MODEL_FILE}.data" if large else None)
        except (OSError, ValueError, TypeError) as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise UserError(f"model: it cannot be written ({reason}), give a complete model or a path") from error
        return str(_named_by_content(new, folder, "model") / MODEL_FILE)


def place(
    data: Data,
    folder: Path,
    *,
    prefix: str,
    model: ir.Model,
    fixed: Container[str],
    how: Preprocessing,
    num: int | None,
) -> dict[str, str]:
    """Return the option of `data` that says where samples are; those in memory get a store.

    Args:
        data: The samples.
        folder: Where stores lie, each under a name that its content decides.
        prefix: Before the option's name: `eval_`, or nothing.
        model: The normalised model.
        fixed: Names of the inputs that have no samples.
        how: Layout and normalisation.
        num: Samples after which an iterable is left alone; None: never.

    Raises:
        UserError: They are no samples, or do not fit the model.
    """
    if isinstance(data, str) and SOURCE.fullmatch(data) and not data.startswith("zoo:") and not Path(data).exists():
        return {f"{prefix}source": data}
    if isinstance(data, str | os.PathLike):
        text = os.fspath(data)
        return {f"{prefix}path": text if text.startswith("zoo:") else str(Path(text).expanduser().absolute())}
    title = f"{prefix}data"
    if callable(data) and not hasattr(data, "__iter__"):
        data = _called(data, title)
    with _new_folder(folder) as new:

        def write(inputs: Sequence[InputSpec]) -> None:
            own = [spec for spec in inputs if spec.name not in fixed]
            write_store(new / "store", data, inputs=own, how=how, num=num, title=title)

        in_one_of_the_forms(model, title, write)
        return {f"{prefix}path": str(_named_by_content(new / "store", folder, "samples"))}


@contextlib.contextmanager
def _new_folder(parent: Path) -> Iterator[Path]:
    """Yield a folder for files that get their place when they are complete; what is left in it goes away."""
    parent.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix=".", suffix=".part", dir=parent))
    try:
        yield new
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _named_by_content(new: Path, parent: Path, name: str) -> Path:
    """Move a folder to where one with these files lies, or will lie: the same content never has two places."""
    files = sorted(new.iterdir())
    text = "\n".join([*(file.name for file in files), digest_files(files)])
    final = (parent / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}").absolute()
    if not final.exists():
        new.rename(final)
        final.chmod(0o755)
    return final


def preprocessing_of(config: Config) -> Preprocessing:
    """Return how a job's samples become the model's inputs."""
    data = config.data
    return preprocessing(mean=data.mean, std=data.std, scale=data.scale, size=data.size, layout=data.layout)


def _called(function: Callable[[], Any], title: str) -> Any:
    try:
        found = function()
    except UserError:
        raise
    except Exception as error:
        reason = next(iter(str(error).splitlines()), "no more is known")
        raise UserError(f"{title}: calling it raised {type(error).__name__}: {reason}: mend it there") from error
    if found is None:
        raise UserError(f"{title}: the function returned nothing: return an iterable of samples, or arrays by name")
    return found


def _name_of(model: onnx.ModelProto | ir.Model) -> str:
    name = model.graph.name or ""
    return "".join(letter if letter.isalnum() or letter in "._-" else "_" for letter in name) or "model"
