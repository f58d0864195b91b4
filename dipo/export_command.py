"""Files for other targets from a finished run: without samples, workers or a GPU."""

from __future__ import annotations

import dataclasses
import functools
import shutil
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from dipo.config import Config, ExportConfig, PlatformConfig, resolve_path, to_plain
from dipo.errors import UserError
from dipo.export.forms import QDQ
from dipo.export.platforms import OPTIONS, check_options, form_remarks
from dipo.launch import guarded
from dipo.run import CONFIG, FINGERPRINT, DamagedFileError, RunFolder
from dipo.section import OneOf, Option, choose, from_plain, options, show

if TYPE_CHECKING:
    import onnx_ir as ir

    from dipo.stages.targets import Source

USAGE = """
python -m dipo.export run=FOLDER platform=TARGET [OPTION=VALUE ...]

Writes the files of a target, or of several ([snpe,rk]), from what a finished run left in its folder, each into a \
folder of its name there. Weights and ranges are those of the run; where the target's grids differ they are rounded \
once more, and FOLDER/TARGET/export.json says how much that lost. It needs the model file of the run, and no samples.

Options: {options}; model.path, where the model file has moved.
"""


@dataclass(frozen=True)
class Request:
    """What the user asks for."""

    run: Path
    targets: list[str]
    platform: dict[str, Any]
    """Options of `platform`."""
    export: dict[str, Any]
    """Options of `export`; others are those of the run."""
    model_path: str | None

    def platform_config(self, run: PlatformConfig) -> PlatformConfig:
        """The options for the targets' writers: what is not given is as in the run."""
        taken = {option for name in self.targets for option in OPTIONS.get(name, ())}
        return from_plain(PlatformConfig, {option: getattr(run, option) for option in taken} | self.platform)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv`, by default the process's own, and return the exit status, as `dipo.launch` does."""
    return guarded(lambda: _main(sys.argv[1:] if argv is None else argv))


def _main(argv: Sequence[str]) -> int:
    if {"-h", "--help"} & set(argv):
        sys.stdout.write(f"{_usage(shutil.get_terminal_size().columns)}\n")
        return 0
    return export(parse(argv))


def parse(words: Sequence[str]) -> Request:
    """What the words of a command line ask for.

    Raises:
        UserError: One of them is wrong, or one is missing.
    """
    known, given = _options(), dict[str, object]()
    for word in words:
        key, equals, text = word.partition("=")
        key = key.lstrip("+")
        if key not in {*known, "run", "model.path"}:
            raise UserError(f"unknown option {key!r}: {choose(key, ['run', *known, 'model.path'])}")
        if not equals or not text:
            raise UserError(f"{key} has no value: give {known[key].wanted() if key in known else 'a path'}")
        given[key] = known[key].read(_value(known[key], text)) if key in known else text
    for key, wanted in (("run", "the folder of a finished run"), ("platform", known["platform"].wanted())):
        if not given.get(key):
            raise UserError(f"{key} is missing: give {key}={wanted}, see --help")
    targets = given["platform"]
    assert isinstance(targets, list)
    platform, export_ = (
        {key.partition(".")[2]: value for key, value in given.items() if key.startswith(f"{section}.")}
        for section in ("platform", "export")
    )
    path = given.get("model.path")
    return Request(
        run=Path(str(given["run"])).expanduser(),
        targets=list(dict.fromkeys(targets)),
        platform=platform,
        export=export_,
        model_path=None if path is None else str(path),
    )


def export(request: Request) -> int:
    """Writes what is asked for.

    Returns:
        The exit status, 0.

    Raises:
        UserError: The run is not finished or damaged, its model is not there, or a target refuses the network.
    """
    from dipo.report.terminal import Terminal
    from dipo.stages.deliver import EXPORT, deliver
    from dipo.stages.load import form_of

    stored = from_plain(Config, RunFolder.stored_config(request.run, whole=to_plain(Config()), option="run"))
    asked = dataclasses.replace(stored, export=dataclasses.replace(stored.export, **request.export))
    cfg, form = request.platform_config(stored.platform), form_of(asked)
    check_options(request.targets, cfg=cfg, form=form if "format" in request.export else QDQ, all_take_form=True)
    folder = RunFolder(request.run, resume=True, option="run")
    try:
        source = _source(folder, request, stored)
        made = deliver(folder, source, {name: name for name in request.targets}, cfg=cfg, form=form)
        terminal = Terminal()
        for target, files in made.items():
            row = target.row(source, files, cfg=cfg, error=None).with_notes(form_remarks(target.name, form=form))
            folder.write_json(f"{target.name}/{EXPORT}", dataclasses.asdict(row))
            terminal.show_target(row, str(folder.path / target.name))
    finally:
        folder.close()
    return 0


def _source(folder: RunFolder, request: Request, config: Config) -> Source:
    """The network of the run."""
    from dipo.algo.step import FloatNetwork
    from dipo.stages.checkpoint import load_calibration
    from dipo.stages.load import change_float, moments_of_model, plan_for
    from dipo.stages.network import load_network
    from dipo.stages.targets import Source

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
            f"run={folder.path}: its {error} is missing or damaged, do the run again with dipo {_version()}"
        ) from error
    plan = plan_for(config.platform.name, config, model)
    moments = functools.partial(moments_of_model, model, config.data)
    network = FloatNetwork(model, plan, samples=None, has_samples=False, moments=moments)
    model = change_float(network, config.algo.make_steps(), config, record=kept.record).model
    plan = plan_for(config.platform.name, config, model)
    return Source(config, model, plan, kept.quantized, statistics)


def _check_config(folder: RunFolder, config: Config) -> None:
    """Looks for options that are not those of the run.

    Raises:
        UserError: There is one.
        DamagedFileError: The run does not say which ones it had.
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
    """Whether calibration kept what it saw; every run has it but those without samples."""
    from dipo.stages.checkpoint import STATISTICS

    return config.calib.method != "batchnorm" or folder.has(STATISTICS)


def _model(folder: RunFolder, request: Request, config: Config) -> ir.Model:
    """The float network, once its file is known to be the run's.

    Raises:
        UserError: It is not there, or another.
        DamagedFileError: The run does not say which one it was.
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


def _options() -> dict[str, Option]:
    """By what the user types."""
    names = next(option for option in options(PlatformConfig) if option.name == "name")
    targets = dataclasses.replace(names, key="platform", is_list=True)
    own = [option for option in options(PlatformConfig) if option.name != "name"]
    own += [option for option in options(ExportConfig) if option.name != "also"]
    return {"platform": targets, **{option.key: option for option in own}}


def _value(option: Option, text: str) -> object:
    """The value that a text stands for; 10.10 is a version, not a number."""
    if option.type is str and not option.is_list:
        return None if text == "null" else text.strip("'\"")
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{option.key}={text}: cannot be read, check its brackets and quotes") from error


def _usage(width: int) -> str:
    texts = [
        f"{option.key}={option.limit if isinstance(option.limit, OneOf) else show(option.default)}"
        for option in _options().values()
        if option.key != "platform"
    ]
    paragraphs = USAGE.strip().format(options=", ".join(texts)).split("\n\n")
    return "\n\n".join(textwrap.fill(text, min(max(width, 40), 120)) for text in paragraphs)


def _version() -> str:
    import dipo

    return dipo.__version__
