"""A job as the command line runs it: its output on the terminal, its log file, and how to resume it."""

from __future__ import annotations

import contextlib
import datetime
import logging
from pathlib import Path

from dipo.config import Config
from dipo.report.report import Report
from dipo.report.terminal import Terminal
from dipo.run import REPORT, RunFolder
from dipo.stages.clock import Clock
from dipo.stages.dry_run import show_plan
from dipo.stages.fingerprint import same_options
from dipo.stages.pipeline import identify, prepare, run
from dipo.stages.preflight import preflight

log = logging.getLogger("dipo")


def run_job(config: Config, *, verbose: bool = False) -> int:
    """Run a job from its configuration to its report, or resume one from its last finished unit.

    Args:
        config: The job.
        verbose: Whether to list every layer and activation in front of the work.

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
        prepared = prepare(config, clock=clock)
        terminal.show_preflight(preflight(prepared), every=verbose)
        if verbose:
            show_plan(config, prepared.loaded, terminal)
        if config.dry_run:
            return 0
        identity = identify(prepared, resumed)
        folder = resumed or RunFolder(_folder_path(config))
        stack.callback(folder.close)
        _log_to(folder.path / "dipo.log")
        try:
            finished = run(prepared, folder, identity, terminal=terminal)
        except KeyboardInterrupt:
            terminal.say(f"stopped, go on with: python -m dipo.launch run.resume={folder.path}")
            raise
        _show(terminal, finished.report, folder)
    return 0


def _show(terminal: Terminal, report: Report, folder: RunFolder) -> None:
    terminal.show(report)
    if report.analysis is not None:
        terminal.show_analysis(report.analysis)
    for row in report.targets:
        terminal.show_target(row, str(folder.path / row.name))
    terminal.show_notes(report.notes)
    terminal.say(f"run folder: {folder.path}")


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
