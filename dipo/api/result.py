"""What `quantize` returns."""

from __future__ import annotations

import dataclasses
import functools
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import yaml
from numpy.typing import NDArray

from dipo.algo.activation_cache import cut
from dipo.api.files import wanted, write_files
from dipo.api.inputs import Data, Model, model_file, place, preprocessing_of
from dipo.api.settings import folder_of
from dipo.config import resolve_path, to_plain
from dipo.data.samples import Dataset
from dipo.errors import UserError
from dipo.export.runtime import run_model
from dipo.export.targets import TARGETS
from dipo.graph.class_axes import class_axes
from dipo.graph.one_by_one import rows_of
from dipo.graph.op_library import library_of
from dipo.graph.passes.batch_first import input_axes
from dipo.report.measures import OutputError, output_error
from dipo.report.report import Report, worst_output
from dipo.run import CONFIG, RunFolder
from dipo.stages.pipeline import Finished
from dipo.stages.publish import publish
from dipo.stages.sample_forms import open_samples

INPUTS = "inputs"
"""The folder within a run's that holds a model and samples which were in memory."""
QUANTIZED = "quantized.onnx"


@dataclass(frozen=True)
class _Written:
    """A model as a file, and how ONNX Runtime is to take it."""

    path: Path
    float_biases: bool = False
    """Keep float biases beside integer weights as the file has them."""


class Result:
    """A quantized network, its files and the report on it.

    The files lie in `folder`, which goes away with the result where the call named none.
    """

    def __init__(self, finished: Finished, folder: Path, *, temporary: bool) -> None:
        """Take a finished run.

        Args:
            finished: What it found.
            folder: Its folder.
            temporary: The folder goes away with the result.
        """
        self.report: Report = finished.report
        """Accuracy, errors, layers, units, seconds; `report.to_plain()` is what `report.json` holds."""
        self.folder = folder
        self._source, self._config, self._data = finished.source, finished.source.config, finished.data
        if temporary:
            weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)

    @functools.cached_property
    def model(self) -> onnx.ModelProto:
        """The quantized network: what `quantized.onnx` holds."""
        return onnx.load(self.folder / QUANTIZED)

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Copy all files of the run into a folder; the run can be resumed there, and exported from.

        Args:
            folder: It is made where it is missing, and holds no other run.

        Raises:
            UserError: It holds a run, or cannot be written.
        """
        target = folder_of(folder)
        if (target / CONFIG).exists():
            raise UserError(f"save: {target} holds a run already, choose another folder")
        try:
            shutil.copytree(self.folder, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.part"))
        except OSError as error:
            reason = next(iter(str(error).splitlines()), "no more is known")
            raise UserError(f"save: {target} cannot be written ({reason}), choose another folder") from error
        # What was in memory lies in the new folder, too.
        plain = to_plain(self._config)
        before, after = str((self.folder / INPUTS).absolute()), str((target / INPUTS).absolute())
        for section, key in (("model", "path"), ("data", "path"), ("data", "eval_path")):
            value = plain[section][key]
            if value is not None and value.startswith(f"{before}{os.sep}"):
                plain[section][key] = f"{after}{value.removeprefix(before)}"
        plain["run"] |= {"dir": None, "resume": None}
        (target / CONFIG).write_text(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True), encoding="utf-8")
        return target

    def export(
        self,
        target: str,
        folder: str | os.PathLike[str] | None = None,
        *,
        options: Mapping[str, Any] | None = None,
    ) -> list[Path]:
        """Write the files of a target from the same weights and ranges; no sample is read again.

        Args:
            target: Its name; what its grids do not hold is rounded once more.
            folder: Where they go; None: a folder of the target's name beside the run's files.
            options: Of `platform` and `export`, such as `{"platform.version": "8.6.1"}`.

        Returns:
            The files, `quantized.onnx` first.

        Raises:
            UserError: The target is unknown or refuses the network, or the folder cannot be written.
        """
        if folder is not None:
            return write_files(self._source, folder_of(folder), target=target, options=options)
        asked = wanted(self._source, target, options)
        run = RunFolder(self.folder, resume=True, option="run")
        try:
            (files,) = publish(run, self._source, {target: target}, cfg=asked.cfg, form=asked.form).values()
        finally:
            run.close()
        return files

    def compare(self, other: Model | Result | None = None, data: Data | None = None) -> dict[str, OutputError]:
        """Compare the outputs of the quantized network with those of another, both in ONNX Runtime.

        Args:
            other: The one that counts as right, with the same inputs and outputs: a model or another result; None:
                the float network.
            data: Samples, as for `quantize`; None: those that the report was made on.

        Returns:
            By name of the output: `agreement`, the per cent of the same top-1 where it has classes, of the same
            numbers where it holds integers or booleans, else None; `cosine` and `sqnr_db`.

        Raises:
            UserError: The samples or the other model are wrong.
        """
        with tempfile.TemporaryDirectory() as folder:
            dataset = self._dataset(data, Path(folder))
            reference = self._outputs(self._reference(other, Path(folder)), dataset)
            own = self._outputs(_written(self), dataset)
        if reference.keys() != own.keys():
            raise UserError(
                f"compare: the other model has the outputs {', '.join(reference)}, not {', '.join(own)}, give one with "
                "the same"
            )
        for name, array in own.items():
            if reference[name].shape != array.shape:
                raise UserError(
                    f"compare: output '{name}' of the other model has the shape {list(reference[name].shape)}, not "
                    f"{list(array.shape)}, give one with the same outputs"
                )
        axes = class_axes(self._source.model, self._config.data.class_axis)
        return {name: output_error({name: reference[name]}, {name: own[name]}, class_axes=axes) for name in own}

    def __repr__(self) -> str:
        """Say in a line what came out."""
        error, worst = self.report.error["deployed_vs_fp32"], worst_output(self.report.outputs)
        beside = "" if worst is None else f" (worst output {worst[0]} {worst[1]:.2f} dB)"
        return (
            f"<dipo.Result {self.report.model}: {self.report.algo}, {self.report.precision} for "
            f"{self.report.platform}, {error.sqnr_db:.2f} dB{beside}, {self.folder}>"
        )

    def _dataset(self, data: Data | None, folder: Path) -> Dataset:
        if data is None:
            return self._data.eval or self._data.calib
        cfg = self._config.data
        model, how = self._source.model, preprocessing_of(self._config)
        given = place(data, folder, prefix="", model=model, fixed=cfg.fixed, how=how, num=None)
        own = dataclasses.replace(
            cfg,
            path=given.get("path"),
            source=given.get("source"),
            eval_path=None,
            eval_source=None,
            num=None,
            eval_num=None,
        )
        opened = open_samples(model, "compare", own.opened)
        return opened.eval or opened.calib

    def _reference(self, other: Model | Result | None, folder: Path) -> _Written:
        if isinstance(other, Result):
            return _written(other)
        path = self._config.model.path if other is None else model_file(other, folder)
        assert path is not None
        return _Written(resolve_path(path))

    def _outputs(self, written: _Written, dataset: Dataset) -> dict[str, NDArray[Any]]:
        def batches() -> Iterator[dict[str, NDArray[Any]]]:
            for batch in cut(len(dataset), self._config.data.batch_size):
                yield dataset.read(batch.start, batch.stop).inputs

        threads = self._config.cluster.threads
        try:
            model = self._source.model
            return run_model(
                written.path,
                batches(),
                threads=threads,
                float_biases=written.float_biases,
                axes=input_axes(model),
                takes_one=rows_of(model) is not None,
                library=library_of(model),
            )
        except UserError:
            raise
        except Exception as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise UserError(
                f"compare: ONNX Runtime cannot run {written.path} on the samples ({reason}), give a model that takes "
                "the same ones"
            ) from error


def _written(result: Result) -> _Written:
    spec = TARGETS[result.report.platform].spec
    return _Written(result.folder / QUANTIZED, float_biases=not spec.int32_bias)
