"""Files for other targets from a finished run: without samples, workers or a GPU."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dipo
from dipo.config import Config, PlatformConfig, resolve_path, to_plain
from dipo.errors import UserError
from dipo.export.formats import QDQ
from dipo.export.targets import OWN_OPTIONS, TARGETS, check_options
from dipo.run import CONFIG, FINGERPRINT, DamagedFileError, RunFolder
from dipo.section import from_plain, show

if TYPE_CHECKING:
    import onnx_ir as ir

    from dipo.stages.retarget import QuantizedRun


@dataclass(frozen=True)
class Request:
    """A request of the export command."""

    run: Path
    targets: list[str]
    platform: dict[str, Any]
    """Options of `platform` that were given."""
    export: dict[str, Any]
    """Options of `export` that were given; others are those of the run."""
    model_path: str | None


def platform_config(targets: Sequence[str], run: PlatformConfig, given: Mapping[str, Any]) -> PlatformConfig:
    """Return the options for the writers of some targets; those not given are the run's.

    Raises:
        UserError: An option is unknown or has a wrong value.
    """
    taken = {option for name in targets for option in TARGETS[name].option_names}
    kept = {option: value for option, value in run.given.items() if option in taken}
    own = {option: value for option, value in kept.items() if option in OWN_OPTIONS}
    others = {option: value for option, value in kept.items() if option not in OWN_OPTIONS}
    return from_plain(PlatformConfig, {**own, "options": others, **given})


def export_run(request: Request) -> int:
    """Write the files that are asked for.

    Returns:
        The exit status, 0.

    Raises:
        UserError: The run is unfinished or damaged, its model is missing, or a target refuses the network.
    """
    from dipo.report.terminal import Terminal
    from dipo.stages.load import form_of
    from dipo.stages.publish import EXPORT, publish

    stored = from_plain(Config, RunFolder.stored_config(request.run, whole=to_plain(Config()), option="run"))
    asked = dataclasses.replace(stored, export=dataclasses.replace(stored.export, **request.export))
    cfg, form = platform_config(request.targets, stored.platform, request.platform), form_of(asked)
    check_options(request.targets, cfg.given, form=form if "format" in request.export else QDQ, all_take_form=True)
    folder = RunFolder(request.run, resume=True, option="run")
    try:
        source = _source(folder, request, stored)
        made = publish(folder, source, {name: name for name in request.targets}, cfg=cfg, form=form)
        terminal = Terminal()
        for target, files in made.items():
            row = target.row(source, files, cfg=cfg, error=None)
            row = row.with_notes(TARGETS[target.name].form_remarks(form))
            folder.write_json(f"{target.name}/{EXPORT}", dataclasses.asdict(row))
            terminal.show_target(row, str(folder.path / target.name))
    finally:
        folder.close()
    return 0


def _source(folder: RunFolder, request: Request, config: Config) -> QuantizedRun:
    """Read the network of the run."""
    from dipo.algo.step import FloatNetwork
    from dipo.stages.checkpoint import load_calibration
    from dipo.stages.known_inputs import KnownInputs
    from dipo.stages.load import change_float, plan_for
    from dipo.stages.network import load_network
    from dipo.stages.retarget import QuantizedRun

    if not folder.finished:
        raise UserError(
            f"run={folder.path}: the run is not finished, go on with it first: python -m dipo.launch run.resume=..."
        )
    try:
        _check_config(folder, config)
        kept = load_network(folder)
        statistics = load_calibration(folder).statistics if _has_statistics(folder, config) else {}
        model = _model(folder, request, config)
    except DamagedFileError as error:
        raise UserError(
            f"run={folder.path}: its {error} is missing or damaged, do the run again with dipo {dipo.__version__}"
        ) from error
    plan = plan_for(config.platform.name, config, model)
    inputs = KnownInputs(config.data, saved=kept.inputs)
    moments = functools.partial(inputs.moments, model)
    network = FloatNetwork(model, plan, samples=None, has_samples=False, moments=moments)
    model = change_float(network, config.algo.make_steps(), config, inputs=inputs, record=kept.record).model
    plan = plan_for(config.platform.name, config, model)
    return QuantizedRun(config, model, plan, kept.quantized, statistics, inputs)


def _check_config(folder: RunFolder, config: Config) -> None:
    """Check that the options are those of the run.

    Raises:
        UserError: One is not.
        DamagedFileError: The run's own record of them is missing or damaged.
    """
    from dipo.stages.fingerprint import decisive_options

    kept = folder.read_json(FINGERPRINT)
    for name, value in decisive_options(config).items():
        if kept.get(name) != value:
            raise UserError(
                f"run={folder.path}: its {CONFIG} says {name}={show(value)} and its {FINGERPRINT} "
                f"{show(kept.get(name))}, so one is damaged or changed: put it back, or do the run again"
            )


def _has_statistics(folder: RunFolder, config: Config) -> bool:
    """Return whether the run has statistics of calibration; all have but those without samples."""
    from dipo.stages.checkpoint import STATISTICS

    return config.calib.reads_statistics or folder.has(STATISTICS)


def _model(folder: RunFolder, request: Request, config: Config) -> ir.Model:
    """Check that the float network's file is the run's, and read it.

    Raises:
        UserError: It is missing, or another.
        DamagedFileError: The run's own record of it is missing or damaged.
    """
    from dipo.data.samples import digest_files
    from dipo.graph.load import load, model_files

    path = resolve_path(request.model_path or config.model.path or "")
    if not path.is_file():
        raise UserError(f"model.path={path}: no such file, say where the run's model is now with model.path=")
    model = load(path)
    if digest_files(model_files(path)) != folder.read_json(FINGERPRINT).get("model"):
        raise UserError(f"model.path={path}: not the model of the run (its content differs), give that one")
    return model
