"""Experiment trackers that a run's events go to, besides the file: TensorBoard and MLflow."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from dipo.errors import UserError
from dipo.report.events import Sink, reason_of, without_credentials
from dipo.run import DamagedFileError, RunFolder

log = logging.getLogger("dipo")

UNIT_FIGURES = ("loss_first", "loss_last", "seconds", "steps_per_second")

TENSORBOARD_FOLDER = "tensorboard"

MLFLOW_FILE = "mlflow.json"
"""Remembers the MLflow run, so that a resumed run goes on in it."""

MLFLOW_STATUS = {"done": "FINISHED", "failed": "FAILED", "stopped": "KILLED"}

MLFLOW_SETTINGS = {
    # A run waits for its tracker when a unit ends: MLflow's own limits, minutes long, would stall the workers.
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    # A run reports to nobody but whom the user named, and its standard output is its own.
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
"""Set unless the user's environment has them."""

MAX_TEXT = 500
"""Characters of a parameter or tag that every MLflow server takes."""

MAX_BATCH = 100
"""Parameters or tags in one request."""


@dataclass(frozen=True)
class Scalars:
    """The numbers of an event, by their names in a tracker, such as `reconstruct/loss_last`."""

    values: dict[str, float]
    step: int
    """The unit's index; 0 for what a run has once."""


def scalars(event: Mapping[str, Any]) -> Scalars:
    """Return the numbers of an event that a tracker plots."""
    found: dict[str, Any] = {}
    step = 0
    match event["event"]:
        case "unit_ends":
            step = event["index"]
            found = {f"{event['step']}/{name}": event[name] for name in UNIT_FIGURES}
        case "stage_ends":
            found = {f"seconds/{event['stage']}": event["seconds"]}
        case "run_ends":
            found = {key.replace(".", "/"): value for key, value in event.items() if key != "seconds"}
            found["seconds/run"] = event["seconds"]
    numbers = {
        key: float(value)
        for key, value in found.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
    return Scalars(numbers, step)


class TensorBoard:
    """Event files in the run folder, by torch's own writer.

    tensorboardX would write the same files, but whoever looks at them needs the `tensorboard` package anyway, and with
    it torch's writer works: one package instead of two.
    """

    name = "tensorboard"

    def __init__(self, folder: RunFolder, *, run_name: str, params: Mapping[str, str]) -> None:
        """Open a new event file; those of a run that was resumed are shown as one."""
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder.path / TENSORBOARD_FOLDER))
        rows = [f"| {key} | {value.replace('|', chr(92) + '|')} |" for key, value in params.items()]
        self._writer.add_text("config", "\n".join([f"| {run_name} | |", "|---|---|", *rows]))

    def take(self, event: Mapping[str, Any]) -> None:
        """Plot the event's numbers; show its message as a text."""
        found = scalars(event)
        for name, value in found.values.items():
            self._writer.add_scalar(name, value, found.step)
        if event.get("message"):
            self._writer.add_text(f"events/{event['event']}", event["message"], found.step)
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        self._writer.close()


class MLflow:
    """A run of the MLflow that `MLFLOW_TRACKING_URI` names, else of MLflow's own default, a database in this folder.

    Its experiment is `MLFLOW_EXPERIMENT_NAME`, else `dipo`. Only the client's interface is used, not MLflow's fluent
    one, which keeps an active run for the whole process.
    """

    name = "mlflow"

    def __init__(self, folder: RunFolder, *, run_name: str, params: Mapping[str, str]) -> None:
        """Start a run, or go on with the one that this run folder has.

        Raises:
            UserError: Nobody answers there, or refuses.
        """
        for key, value in MLFLOW_SETTINGS.items():
            os.environ.setdefault(key, value)
        import mlflow

        for chatty in ("mlflow", "alembic"):
            logging.getLogger(chatty).setLevel(logging.WARNING)
        uri = mlflow.get_tracking_uri()
        try:
            self._client: Any = mlflow.MlflowClient(tracking_uri=uri)
            known = self._resumed(folder)
            self._run = known or self._started(folder, run_name, params)
        except ImportError:
            raise
        except Exception as error:
            raise UserError(
                f"run.track=mlflow: no MLflow can be used at {without_credentials(uri)} ({reason_of(error)}), "
                "start one, name another with MLFLOW_TRACKING_URI, or leave mlflow out"
            ) from error
        if known is None:
            folder.write_json(MLFLOW_FILE, {"run_id": self._run})
        self._ended = False

    def take(self, event: Mapping[str, Any]) -> None:
        """Log the event's numbers as metrics, the run's beginning as tags, its end as the run's status."""
        from mlflow.entities import Metric, RunTag

        found = scalars(event)
        now = time.time_ns() // 1_000_000
        metrics = [Metric(name, value, now, found.step) for name, value in found.values.items()]
        tags = [RunTag(key, value[:MAX_TEXT]) for key, value in _labels(event).items()]
        if metrics or tags:
            self._client.log_batch(self._run, metrics=metrics, tags=tags[:MAX_BATCH])
        if event["event"] == "run_ends":
            self._client.set_terminated(self._run, status=MLFLOW_STATUS[event["status"]])
            self._ended = True

    def close(self) -> None:
        """Close the run; one whose end was not reported counts as failed."""
        if not self._ended:
            self._client.set_terminated(self._run, status=MLFLOW_STATUS["failed"])

    def _resumed(self, folder: RunFolder) -> str | None:
        """Return the MLflow run of a run folder that is resumed, if it is still there."""
        if not folder.has(MLFLOW_FILE):
            return None
        from mlflow.exceptions import MlflowException

        try:
            run = str(folder.read_json(MLFLOW_FILE).get("run_id"))
            self._client.update_run(run, status="RUNNING")
        except DamagedFileError:
            log.warning("%s is damaged, MLflow gets a new run", folder.path / MLFLOW_FILE)
            return None
        except MlflowException as error:
            if error.error_code not in {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}:
                raise
            log.warning("MLflow no longer has the run of %s and gets a new one", folder.path)
            return None
        return run

    def _started(self, folder: RunFolder, run_name: str, params: Mapping[str, str]) -> str:
        from mlflow.entities import Param

        tags = {"dipo.run_folder": str(folder.path.resolve())}
        run = self._client.create_run(self._experiment(), run_name=run_name, tags=tags)
        found = [Param(key, value[:MAX_TEXT]) for key, value in params.items()]
        for start in range(0, len(found), MAX_BATCH):
            self._client.log_batch(run.info.run_id, params=found[start : start + MAX_BATCH])
        started: str = run.info.run_id
        return started

    def _experiment(self) -> str:
        from mlflow.exceptions import MlflowException

        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "dipo")
        found = self._client.get_experiment_by_name(name)
        if found is None:
            try:
                self._client.create_experiment(name)
            except MlflowException as error:
                # Another run may have made it in this moment.
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            found = self._client.get_experiment_by_name(name)
        identity: str = found.experiment_id
        return identity


class _Factory(Protocol):
    def __call__(self, folder: RunFolder, *, run_name: str, params: Mapping[str, str]) -> Sink: ...


SINKS: Mapping[str, _Factory] = {"tensorboard": TensorBoard, "mlflow": MLflow}
"""What `run.track` can name."""


def open_sinks(names: Iterable[str], folder: RunFolder, *, run_name: str, config: Mapping[str, Any]) -> list[Sink]:
    """Open the trackers that the user named.

    Args:
        names: Names in `SINKS`.
        folder: The run's folder.
        run_name: The run's name in the trackers.
        config: The run's configuration as nested mappings of plain values.

    Raises:
        UserError: A name is unknown, its package is not installed, or its server does not answer.
    """
    sinks: list[Sink] = []
    params = _params(config)
    with contextlib.ExitStack() as opened:
        for name in dict.fromkeys(names):
            sinks.append(_open(name, folder, run_name=run_name, params=params))
            opened.callback(sinks[-1].close)
        opened.pop_all()
    return sinks


def _open(name: str, folder: RunFolder, *, run_name: str, params: Mapping[str, str]) -> Sink:
    if name not in SINKS:
        raise UserError(f"run.track '{name}': choose from {', '.join(SINKS)}")
    try:
        return SINKS[name](folder, run_name=run_name, params=params)
    except ImportError as error:
        missing = (error.name or name).partition(".")[0]
        raise UserError(
            f"run.track={name}: the package {missing} is not installed or does not load, "
            "get it with: pip install 'dipo[tracking]'"
        ) from error


def _params(config: Mapping[str, Any]) -> dict[str, str]:
    """Return options by their full names; what is no text is written as JSON."""
    params: dict[str, Any] = {}
    for section, options in config.items():
        # Below the options, keys are the user's own: patterns of node names, which no tracker takes as names.
        grouped = isinstance(options, Mapping)
        params |= {f"{section}.{key}": value for key, value in options.items()} if grouped else {section: options}
    return {key: value if isinstance(value, str) else json.dumps(value, default=str) for key, value in params.items()}


def _labels(event: Mapping[str, Any]) -> dict[str, str]:
    if event["event"] != "run_begins":
        return {}
    return {key: str(value) for key, value in event.items() if key not in {"time", "event"} and value is not None}
