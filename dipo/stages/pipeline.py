"""The recipe of a job, readable top to bottom: load, plan, calibrate, transform, export, verify, report.

It prints nothing itself: messages go to the terminal that it is given, and to the logger.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch

import dipo
from dipo.algo.calibrate import Calibration
from dipo.cluster.address import is_private
from dipo.cluster.logs import append_worker_log
from dipo.cluster.messages import Job
from dipo.cluster.pool import Pool, start_pool
from dipo.config import Config, RunConfig, resolve_path, to_plain
from dipo.data.samples import Datasets
from dipo.errors import JobError, UserError
from dipo.export.targets import TARGETS
from dipo.graph.validity import blamed
from dipo.report.events import FILE as EVENTS
from dipo.report.events import Events, config_hash
from dipo.report.report import Report
from dipo.report.sinks import open_sinks
from dipo.report.terminal import Terminal
from dipo.run import CONFIG, REPORT, RunFolder, explain_full_disk
from dipo.stages.calibrate import calibrate
from dipo.stages.clock import Clock
from dipo.stages.context import Context
from dipo.stages.evaluate import evaluate, source_of
from dipo.stages.fingerprint import ResumeState, compare, fingerprint, write_fingerprint
from dipo.stages.float_types import type_notes
from dipo.stages.load import JobInputs, form_of, load_job
from dipo.stages.network import SavedNetwork, save_network
from dipo.stages.parity import check_parity
from dipo.stages.publish import RUN_TARGET, check_places, publish
from dipo.stages.rehearse import rehearse
from dipo.stages.report import FAR_DB, early_notes, make_report, versions
from dipo.stages.retarget import QuantizedRun, Retargeted, others, preflight_exports
from dipo.stages.transform import Transformed, transform

log = logging.getLogger("dipo")


@dataclass(frozen=True, eq=False)
class PreparedJob:
    """A job before its workers and its folder exist."""

    config: Config
    loaded: JobInputs
    device: str
    parity: float
    """Largest difference of torch and ONNX Runtime on the float network, over the largest output."""
    rehearsed_db: float
    """SQNR of the written file against its simulation on one sample, in dB, before anything is calibrated."""
    clock: Clock


@dataclass(frozen=True, eq=False)
class Identity:
    """All that a job's results depend on, and the run that it resumes."""

    own: dict[str, Any]
    """The job's fingerprint."""
    stored: ResumeState | None
    """State of the run that is resumed; None for a new one."""


@dataclass(frozen=True, eq=False)
class Finished:
    """Results of a job, and the network that it can write for other targets, too."""

    report: Report
    source: QuantizedRun
    data: Datasets


def prepare(config: Config, *, clock: Clock, model: ir.Model | None = None) -> PreparedJob:
    """Read the model, find the samples, make the plan.

    Args:
        config: The job.
        clock: Clock of the stages.
        model: The configuration's model if it is loaded already; None: read it.

    Raises:
        UserError: The configuration, the model or the data is wrong.
    """
    device = _device(config)
    torch.set_num_threads(config.cluster.threads)
    with _blamed(config):
        with clock.stage("load"):
            loaded = load_job(config, model=model)
            parity = check_parity(loaded.comparable, threads=config.cluster.threads)
            loaded = dataclasses.replace(loaded, notes=type_notes(loaded, threads=config.cluster.threads))
        with clock.stage("rehearse"):
            rehearsed_db = rehearse(loaded, config)
    return PreparedJob(config, loaded, device, parity, rehearsed_db, clock)


def _blamed(config: Config) -> contextlib.AbstractContextManager[None]:
    """Return what tells of a file that is not valid, where something breaks on it."""
    if config.model.path is None:
        return contextlib.nullcontext()
    path = resolve_path(config.model.path)
    return blamed(path, source=f"model.path={path}")


def identify(prepared: PreparedJob, resumed: RunFolder | None) -> Identity:
    """Return all that the job's results depend on, compared with the run that it resumes.

    Args:
        prepared: The job.
        resumed: Folder of the run that is resumed; None: the job is new.

    Raises:
        UserError: The samples cannot be read, or the run is that of another job.
    """
    own = fingerprint(prepared.config, prepared.loaded, device=prepared.device)
    return Identity(own, None if resumed is None else compare(resumed, own))


def run(prepared: PreparedJob, folder: RunFolder, identity: Identity, *, terminal: Terminal) -> Finished:
    """Run a job, or resume one from its last finished unit.

    Args:
        prepared: The job.
        folder: Its folder, new or that of the run that is resumed.
        identity: Result of `identify`.
        terminal: Terminal for its messages.

    Raises:
        UserError: The samples or labels have a fault that only shows as they are read.
        JobError: The job cannot go on.
    """
    with _explained(folder):
        return _run(prepared, folder, identity, terminal)


def run_silently(config: Config, path: Path, *, model: ir.Model | None = None) -> Finished:
    """Run a job in a folder, or resume the one that was begun there, without any output.

    Args:
        config: The job; its own `run` section is not used.
        path: The folder.
        model: See `prepare`.

    Raises:
        UserError: The configuration, the model or the data is wrong, or the folder's run is that of another job.
        JobError: The job cannot go on.
    """
    resumes = (path / CONFIG).exists()
    place = {"dir": None, "resume": str(path)} if resumes else {"dir": str(path), "resume": None}
    config = dataclasses.replace(config, run=RunConfig(**place, track=config.run.track))
    folder = RunFolder(path, resume=resumes)
    try:
        prepared = prepare(config, clock=Clock(), model=model)
        identity = identify(prepared, folder if resumes else None)
        return run(prepared, folder, identity, terminal=Terminal.silent())
    finally:
        folder.close()


@contextlib.contextmanager
def _explained(folder: RunFolder) -> Iterator[None]:
    """Add to the error of a run that stops early how to resume it."""
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


def _run(prepared: PreparedJob, folder: RunFolder, identity: Identity, terminal: Terminal) -> Finished:
    config, stored = prepared.config, identity.stored
    check_places(folder, others(config))
    resumes = folder.has(CONFIG)
    if stored is not None and stored.other_ranges:
        folder.forget_results()
        write_fingerprint(folder, identity.own)
    if not resumes or (stored is not None and stored.other_ranges):
        folder.write_yaml(CONFIG, to_plain(config))
    sinks = open_sinks(config.run.track, folder, run_name=folder.path.name, config=to_plain(config))
    with Events(folder.path / EVENTS, sinks) as events:
        _tell_of_begin(prepared, folder, events, terminal, resumes=resumes)
        pool = start_workers(prepared, folder, events)
        try:
            if stored is None:
                write_fingerprint(folder, identity.own)
            finished = _process(context_of(prepared, folder, pool, events, terminal), parity=prepared.parity)
        finally:
            pool.close()
        folder.write_json(REPORT, finished.report.to_plain())
        if resumes:
            folder.write_yaml(CONFIG, to_plain(config))  # what the files are now made with
        _tell_of_end(finished.report, events)
    return finished


def _process(context: Context, *, parity: float) -> Finished:
    """Run the stages from calibration on."""
    state = calibrate(context, observe=context.needs_calibration)
    early = early_notes(context.config, context.loaded, state.quantized, state.calibration)
    context.terminal.show_notes(early)
    for note in early:
        log.warning("%s: %s", note.name, note.what)
    steps = context.loaded.steps
    if steps:
        preflight_exports(source_of(context, state.quantized, state.calibration))
    return finish(context, transform(context, state, steps), state.calibration, parity=parity)


def finish(context: Context, done: Transformed, calibration: Calibration, *, parity: float) -> Finished:
    """Write the files, and compare their outputs with those of the simulation and the float network.

    Args:
        context: The job.
        done: The network after the steps.
        calibration: Statistics of calibration.
        parity: Largest relative difference of torch and ONNX Runtime on the float network.

    Raises:
        UserError: A target refuses the network, or the labels do not fit its outputs.
    """
    # Learned scales may differ again where the target has one for several values.
    target = TARGETS[context.config.platform.name]
    done = dataclasses.replace(done, quantized=target.on_grids(context.loaded.model, done.quantized))
    source = source_of(context, done.quantized, calibration)
    with context.stage("export"):
        loaded = context.loaded
        save_network(context.folder, SavedNetwork(done.quantized, loaded.change.record, loaded.inputs.to_save))
        files, *its = _export(context, source).items()
    evaluation = evaluate(context, source=source, files=files[1], others=dict(its))
    report = make_report(context, evaluation, done=done, calibration=calibration, files=files[1], parity=parity)
    return Finished(report, source, context.loaded.data)


def context_of(prepared: PreparedJob, folder: RunFolder, pool: Pool, events: Events, terminal: Terminal) -> Context:
    """Return the context of a job's stages."""
    return Context(
        prepared.config, prepared.loaded, folder, pool, prepared.device, prepared.clock, events, terminal
    )  # fmt: skip


def start_workers(prepared: PreparedJob, folder: RunFolder, events: Events) -> Pool:
    """Start the job's workers; the caller closes them.

    Raises:
        UserError: Ray cannot be reached, or has no room for them.
    """
    config, loaded = prepared.config, prepared.loaded
    job = Job(
        plan=loaded.plan,
        samples=loaded.samples,
        rules=TARGETS[config.platform.name].spec,
        calib=loaded.data.calib,
        device=prepared.device,
        threads=config.cluster.threads,
        compile=config.cluster.compile,
        run=folder.path.name,
    )
    with prepared.clock.stage("start workers"):
        keep_log = functools.partial(append_worker_log, folder.path)
        return start_pool(job, loaded.model, cfg=config.cluster, notify=events.emit, keep_log=keep_log)


def _export(context: Context, source: QuantizedRun) -> dict[Retargeted, list[Path]]:
    """Write the files of the job's own target, the first, and of the others, each in a folder of its name."""
    config = context.config
    places = {config.platform.name: RUN_TARGET, **{name: name for name in others(config)}}
    return publish(context.folder, source, places, cfg=config.platform, form=form_of(config))


def _tell_of_begin(
    prepared: PreparedJob, folder: RunFolder, events: Events, terminal: Terminal, *, resumes: bool
) -> None:
    config, calib = prepared.config, prepared.loaded.data.calib.describe()
    log.info("dipo %s, %s", dipo.__version__, calib)
    log.info("parity of torch and ONNX Runtime on the float network: %.2e of the largest output", prepared.parity)
    if resumes:
        events.emit("run_resumes")
        terminal.say(f"going on with {folder.path}")
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
    terminal.say(f"{config.model.title}: {len(prepared.loaded.plan.layers)} layers, {calib}")
    terminal.say(f"torch and ONNX Runtime agree on the float network to {prepared.parity:.1e} of the largest output")
    log.info("written and simulated network on one sample: %.1f dB", prepared.rehearsed_db)
    if prepared.rehearsed_db < FAR_DB:
        terminal.say(
            f"on one sample, what is written for {config.platform.name} is {prepared.rehearsed_db:.1f} dB from its "
            "simulation in ONNX Runtime: what is learned here may not hold there"
        )


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
