"""The recipe of a job, readable top to bottom: load, plan, calibrate, transform, export, verify, report."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import functools
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import dipo
from dipo.algo.analytic import data_free_ranges
from dipo.algo.calibrate import Calibration, ObserveBatches, Observed, activation_ranges, quantize_model
from dipo.algo.step import NetworkState
from dipo.cluster.address import is_private
from dipo.cluster.logs import append_worker_log
from dipo.cluster.messages import Job
from dipo.cluster.pool import Pool, start_pool
from dipo.config import Config, to_plain
from dipo.errors import JobError, UserError
from dipo.export.targets import TARGETS
from dipo.graph.plan import QuantizedModel
from dipo.report.events import FILE as EVENTS
from dipo.report.events import Events, config_hash
from dipo.report.report import Report
from dipo.report.sinks import open_sinks
from dipo.report.terminal import Terminal
from dipo.run import CONFIG, REPORT, DamagedFileError, RunFolder, explain_full_disk
from dipo.stages.checkpoint import STATISTICS, load_calibration, save_calibration, tell_of_damage
from dipo.stages.clock import Clock
from dipo.stages.context import Context
from dipo.stages.deliver import OWN, check_places, deliver
from dipo.stages.dry_run import show_plan
from dipo.stages.fingerprint import Stored, compare, fingerprint, same_options, write_fingerprint
from dipo.stages.load import Loaded, check_parity, form_of, load_job, moments_of_model
from dipo.stages.network import Kept, save_network
from dipo.stages.targets import Retargeted, Source, others, rehearse
from dipo.stages.transform import transform
from dipo.stages.verify import source_of, verify, versions

log = logging.getLogger("dipo")


@dataclass(frozen=True)
class Prepared:
    """A job before it has workers."""

    config: Config
    loaded: Loaded
    folder: RunFolder
    device: str
    parity: float
    identity: dict[str, Any]
    stored: Stored | None
    """What the run that goes on was begun with; None where it is new."""
    clock: Clock
    terminal: Terminal


def run_job(config: Config) -> int:
    """Runs a job from its configuration to its report, or goes on with one from its last finished unit.

    Returns:
        The exit status, 0.

    Raises:
        UserError: The configuration, the model or the data is wrong.
        JobError: The run cannot go on.
    """
    clock, terminal = Clock(), Terminal()
    with contextlib.ExitStack() as stack:
        resumed = None if config.run.resume is None else RunFolder(Path(config.run.resume).expanduser(), resume=True)
        if resumed is not None:
            stack.callback(resumed.close)
            if resumed.finished and same_options(config, resumed):
                terminal.say(f"{resumed.path}: the run is finished, its report is {resumed.path / REPORT}")
                return 0
        device = _device(config)
        torch.set_num_threads(config.cluster.threads)
        with clock.stage("load"):
            loaded = load_job(config)
            parity = check_parity(loaded, threads=config.cluster.threads)
        if config.dry_run:
            show_plan(config, loaded, terminal)
            return 0
        identity = fingerprint(config, loaded, device=device)
        stored = None if resumed is None else compare(resumed, identity)
        folder = resumed or RunFolder(_folder_path(config))
        stack.callback(folder.close)
        with _explained(folder, terminal):
            _run(Prepared(config, loaded, folder, device, parity, identity, stored, clock, terminal))
    return 0


@contextlib.contextmanager
def _explained(folder: RunFolder, terminal: Terminal) -> Iterator[None]:
    """Says how to go on with a run that ends before its end."""
    try:
        with explain_full_disk(folder.path):
            yield
    except UserError:
        # What is wrong with samples or labels may show late; nothing of such a run is of use.
        folder.discard()
        raise
    except JobError as error:
        hint = f"run.resume={folder.path}"
        raise error if hint in str(error) else JobError(f"{error}; then go on with {hint}") from error
    except KeyboardInterrupt:
        terminal.say(f"stopped, go on with: python -m dipo.launch run.resume={folder.path}")
        raise


def _run(begun: Prepared) -> None:
    config, folder, terminal = begun.config, begun.folder, begun.terminal
    check_places(folder, others(config))
    _log_to(folder.path / "dipo.log")
    resumes = folder.has(CONFIG)
    if begun.stored is not None and begun.stored.other_ranges:
        folder.forget_results()
        write_fingerprint(folder, begun.identity)
    if not resumes or (begun.stored is not None and begun.stored.other_ranges):
        folder.write_yaml(CONFIG, to_plain(config))
    sinks = open_sinks(config.run.track, folder, run_name=folder.path.name, config=to_plain(config))
    with Events(folder.path / EVENTS, sinks) as events:
        _tell_of_begin(begun, events, resumes=resumes)
        with _workers(begun, events) as pool:
            context = _context(begun, pool, events)
            report = _process(context, parity=begun.parity)
        folder.write_json(REPORT, report.to_plain())
        if resumes:
            folder.write_yaml(CONFIG, to_plain(config))  # what the files are now made with
        _tell_of_end(report, events)
    terminal.show(report)
    if report.analysis is not None:
        terminal.show_analysis(report.analysis)
    for row in report.targets:
        terminal.show_target(row, str(folder.path / row.name))
    terminal.show_notes(report.notes)
    terminal.say(f"run folder: {folder.path}")


def _process(context: Context, *, parity: float) -> Report:
    """The work itself."""
    calibration = _calibrate(context)
    with context.stage("ranges"):
        quantized = _quantize(context, calibration)
    steps = context.loaded.steps
    if steps:
        rehearse(source_of(context, quantized, calibration))
    done = transform(context, _state(context, quantized, calibration), steps)
    # Learned scales may differ again where the target has one for several values.
    target = TARGETS[context.config.platform.name]
    done = dataclasses.replace(done, quantized=target.on_grids(context.loaded.model, done.quantized))
    with context.stage("export"):
        save_network(context.folder, Kept(done.quantized, context.loaded.change.record))
        files, *its = _export(context, source_of(context, done.quantized, calibration)).items()
    return verify(context, done=done, calibration=calibration, files=files[1], parity=parity, others=dict(its))


def _state(context: Context, quantized: QuantizedModel, calibration: Calibration) -> NetworkState:
    config, loaded = context.config, context.loaded
    return NetworkState(
        model=loaded.model,
        plan=loaded.plan,
        rules=TARGETS[config.platform.name].spec,
        quantized=quantized,
        calibration=calibration,
        calib=config.calib,
        num_samples=len(loaded.data.calib),
        batch_size=config.data.batch_size,
        seed=config.seed,
        has_samples=loaded.has_samples,
        moments=functools.partial(moments_of_model, loaded.model, config.data),
    )


def _quantize(context: Context, calibration: Calibration) -> QuantizedModel:
    """Ranges of activations, and weights rounded to nearest."""
    config, loaded = context.config, context.loaded
    if not config.calib.reads_statistics:
        ranges = data_free_ranges(loaded.plan, moments_of_model(loaded.model, config.data), sigmas=config.calib.sigmas)
    else:
        ranges = activation_ranges(loaded.plan, calibration.statistics, cfg=config.calib)
    quantized = quantize_model(loaded.model, plan=loaded.plan, ranges=ranges, cfg=config.calib)
    return TARGETS[config.platform.name].on_grids(loaded.model, quantized)


def _context(begun: Prepared, pool: Pool, events: Events) -> Context:
    config, folder = begun.config, begun.folder
    if begun.stored is None:
        write_fingerprint(folder, begun.identity)
    return Context(config, begun.loaded, folder, pool, begun.device, begun.clock, events, begun.terminal)


@contextlib.contextmanager
def _workers(begun: Prepared, events: Events) -> Iterator[Pool]:
    config, loaded = begun.config, begun.loaded
    job = Job(
        plan=loaded.plan,
        rules=TARGETS[config.platform.name].spec,
        calib=loaded.data.calib,
        device=begun.device,
        threads=config.cluster.threads,
        compile=config.cluster.compile,
        run=begun.folder.path.name,
    )
    with begun.clock.stage("start workers"):
        pool = start_pool(
            job,
            loaded.model,
            cfg=config.cluster,
            notify=events.emit,
            keep_log=functools.partial(append_worker_log, begun.folder.path),
        )
    try:
        yield pool
    finally:
        pool.close()


def _calibrate(context: Context) -> Calibration:
    """One pass over the samples, sharded; the workers' statistics merge exactly."""
    if not context.needs_calibration:
        return Calibration({}, {})
    if context.folder.has(STATISTICS):
        try:
            return load_calibration(context.folder)
        except DamagedFileError:
            tell_of_damage(context, STATISTICS)
    num_samples = len(context.loaded.data.calib)
    with context.stage("calibrate"):
        parts = context.over_samples(ObserveBatches, title="calibrate", num_samples=num_samples)
    calibration = functools.reduce(Observed.merge, parts).calibration()
    save_calibration(context.folder, calibration)
    return calibration


def _export(context: Context, source: Source) -> dict[Retargeted, list[Path]]:
    """The files of the job's own target, which is the first, and of the others, each in a folder of its name."""
    config = context.config
    places = {config.platform.name: OWN, **{name: name for name in others(config)}}
    return deliver(context.folder, source, places, cfg=config.platform, form=form_of(config))


def _tell_of_begin(begun: Prepared, events: Events, *, resumes: bool) -> None:
    config, calib = begun.config, begun.loaded.data.calib.describe()
    log.info("dipo %s, %s", dipo.__version__, calib)
    log.info("parity of torch and ONNX Runtime on the float network: %.2e of the largest output", begun.parity)
    if resumes:
        events.emit("run_resumes")
        begun.terminal.say(f"going on with {begun.folder.path}")
    else:
        events.emit(
            "run_begins",
            model=config.model.title,
            algo=config.algo.name,
            precision=config.precision.title,
            platform=config.platform.name,
            versions=versions(),
            config_hash=config_hash(to_plain(config)),
        )
    begun.terminal.say(f"{config.model.title}: {len(begun.loaded.plan.layers)} layers, {calib}")
    begun.terminal.say(f"torch and ONNX Runtime agree on the float network to {begun.parity:.1e} of the largest output")


def _tell_of_end(report: Report, events: Events) -> None:
    plain = report.to_plain()
    events.emit(
        "run_ends",
        status="done",
        seconds=round(sum(report.seconds.values()), 3),
        accuracy=plain["accuracy"],
        error=plain["error"],
    )


def _device(config: Config) -> str:
    wanted = config.cluster.device
    if wanted == "cuda" and is_private(config.cluster.address) and not torch.cuda.is_available():
        raise UserError("cluster.device=cuda: torch finds no GPU here, take cluster.device=cpu or leave the option out")
    return ("cuda" if torch.cuda.is_available() else "cpu") if wanted == "auto" else wanted


def _folder_path(config: Config) -> Path:
    if config.run.dir is not None:
        return Path(config.run.dir).expanduser()
    now = datetime.datetime.now(tz=datetime.UTC).astimezone()
    return Path("outputs") / f"{now:%Y-%m-%d}" / f"{now:%H-%M-%S}-{config.model.title}-{config.algo.name}"


def _log_to(path: Path) -> None:
    for handler in [handler for handler in log.handlers if isinstance(handler, logging.FileHandler)]:
        log.removeHandler(handler)
        handler.close()
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
