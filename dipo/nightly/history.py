"""The nights so far, in a database: SQLite by default, anything that SQLAlchemy knows by URL."""

from __future__ import annotations

import contextlib
import dataclasses
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Engine, create_engine, event, inspect, make_url, select
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.orm import Session, selectinload

from dipo.errors import UserError
from dipo.nightly.gates import GateOutcome
from dipo.nightly.layers import LayerState
from dipo.nightly.result import JobResult, Status
from dipo.nightly.tables import VERSION, Base, LayerRow, NightRow, ResultRow, VersionRow

BUSY_SECONDS = 60
"""Seconds to wait for another night that writes."""
PLAIN_LAYER = ("name", "weights", "bias", "range", "act_scale", "act_zero_point", "cosine", "sqnr_db")
PLAIN_RESULT = (
    "name", "model", "algo", "platform", "precision", "reason", "seconds", "folder",
    "accuracy_fp32", "accuracy_deployed", "agreement", "cosine", "sqnr_db",
)  # fmt: skip
"""Fields that are stored as they are."""


@dataclass(frozen=True)
class Past:
    """A job's result of an earlier night."""

    night: str
    started: str
    """ISO 8601, UTC."""
    result: JobResult


class HistoryError(Exception):
    """The database failed in the middle of a night; the message holds no password."""


class History:
    """A database of nights."""

    def __init__(self, target: str, *, create: bool = True) -> None:
        """Open the database.

        Args:
            target: Path of a SQLite file, or a URL.
            create: Create a missing file and its tables; otherwise the history is only read.

        Raises:
            UserError: It cannot be opened, or its schema is another one.
        """
        self.url = _url(target)
        self.shown = self.url.set(query={}).render_as_string(hide_password=True)
        """The target without its password, for messages."""
        self._engine = self._open(create=create)

    def close(self) -> None:
        """Close its connections."""
        self._engine.dispose()

    def start_night(self, name: str, *, started: str, version: str, jobs: str) -> int:
        """Add a night that begins, and return its number."""
        with self._session() as session:
            night = NightRow(name=name, started=started, dipo=version, jobs=jobs, state="running", seconds=None)
            session.add(night)
            session.flush()
            return night.id

    def add(self, night: int, result: JobResult) -> None:
        """Add the result of a job that has ended."""
        row = ResultRow(
            night_id=night,
            **{name: getattr(result, name) for name in PLAIN_RESULT},
            options=list(result.options),
            status=result.status.value,
            gates=[dataclasses.asdict(gate) for gate in result.gates],
        )
        row.layers = [_layer_row(position, layer) for position, layer in enumerate(result.layers)]
        with self._session() as session:
            session.add(row)

    def end_night(self, night: int, *, state: str, seconds: float) -> None:
        """Record how a night ended: `finished` or `stopped`."""
        with self._session() as session:
            row = session.get_one(NightRow, night)
            row.state, row.seconds = state, seconds

    def previous(self, name: str, before: int) -> Past | None:
        """Return the last complete result of a job in an earlier night; None where there is none."""
        complete = (Status.PASSED.value, Status.FAILED.value)
        query = (
            select(ResultRow)
            .where(ResultRow.name == name, ResultRow.night_id < before, ResultRow.status.in_(complete))
            .order_by(ResultRow.night_id.desc())
            .limit(1)
            .options(selectinload(ResultRow.layers), selectinload(ResultRow.night))
        )
        with self._session() as session:
            row = session.scalars(query).first()
            return None if row is None else _past(row, layers=True)

    def of(self, name: str, *, last: int) -> dict[str, list[Past]]:
        """Return the last results of a job, or of a model's jobs, by job, oldest first, without their layers."""
        with self._session() as session:
            either = (ResultRow.name == name) | (ResultRow.model == name)
            jobs = session.scalars(select(ResultRow.name).where(either).distinct().order_by(ResultRow.name)).all()
            return {job: self._last(session, job, last) for job in jobs}

    def names(self) -> list[str]:
        """Return the names of all jobs and models."""
        with self._session() as session:
            rows = session.execute(select(ResultRow.name, ResultRow.model).distinct()).all()
            return sorted({name for row in rows for name in row})

    def _last(self, session: Session, job: str, last: int) -> list[Past]:
        query = (
            select(ResultRow)
            .where(ResultRow.name == job)
            .order_by(ResultRow.night_id.desc(), ResultRow.id.desc())
            .limit(last)
            .options(selectinload(ResultRow.night))
        )
        return [_past(row, layers=False) for row in reversed(session.scalars(query).all())]

    @contextlib.contextmanager
    def _session(self) -> Iterator[Session]:
        """Open a session whose block is one transaction.

        Raises:
            HistoryError: The database failed.
        """
        try:
            with Session(self._engine) as session, session.begin():
                yield session
        except SQLAlchemyError as error:
            raise HistoryError(f"history {self.shown}: {self._reason(error)}") from None

    def _open(self, *, create: bool) -> Engine:
        path = self.url.database if self.url.get_backend_name() == "sqlite" else None
        try:
            if path and path != ":memory:":
                if not create and not Path(path).exists():
                    raise UserError(f"history={path}: no such file, name the one that a night has written")
                Path(path).parent.mkdir(parents=True, exist_ok=True)
            engine = create_engine(self.url, connect_args={"timeout": BUSY_SECONDS} if path else {})
            if path and create:
                _lock_at_begin(engine)
            with engine.begin() as connection:
                tables = set(inspect(connection).get_table_names())
                if not tables & Base.metadata.tables.keys() and create:
                    Base.metadata.create_all(connection)
                    connection.execute(VersionRow.__table__.insert().values(id=1, version=VERSION))  # type: ignore[attr-defined]
                    return engine
                known = VersionRow.__tablename__ in tables
                found = connection.scalar(select(VersionRow.version)) if known else None
        except (NoSuchModuleError, ModuleNotFoundError) as error:
            raise UserError(f"history={self.shown}: its driver is missing ({error}), install it") from None
        except OSError as error:
            raise UserError(f"history={self.shown}: cannot be written ({error.strerror}), choose another one") from None
        except SQLAlchemyError as error:
            raise UserError(
                f"history={self.shown}: cannot be opened ({self._reason(error)}), give a SQLite file or a database URL"
            ) from None
        if found != VERSION:
            what = "is no history of dipo's nights" if found is None else f"has schema version {found}"
            raise UserError(
                f"history={self.shown}: {what}, this dipo reads version {VERSION}: choose another one with history="
            )
        return engine

    def _reason(self, error: SQLAlchemyError) -> str:
        """Return the first line of the driver's error, without the password."""
        cause = getattr(error, "orig", None) or error
        line = next(iter(str(cause).splitlines()), type(cause).__name__)
        secrets = [self.url.password, *(value for key, value in self.url.query.items() if "pass" in key.lower())]
        for secret in secrets:
            line = line.replace(str(secret), "***") if secret else line
        return line


def _url(target: str) -> URL:
    if "://" not in target:
        return URL.create("sqlite", database=str(Path(target).expanduser()))
    try:
        return make_url(target)
    except (ArgumentError, ValueError):
        # The text may hold a password, so it is not repeated; neither is the exception, which may quote it.
        raise UserError("history: the URL cannot be read, give one such as sqlite:///nights.sqlite") from None


def _lock_at_begin(engine: Engine) -> None:
    """Take SQLite's lock as a transaction begins: two nights wait for each other, and neither fails half-way."""

    @event.listens_for(engine, "connect")
    def leave_begin_to_us(connection: Any, record: Any) -> None:
        del record
        connection.isolation_level = None

    @event.listens_for(engine, "begin")
    def begin(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")


def _layer_row(position: int, layer: LayerState) -> LayerRow:
    scale = layer.weight_scale
    packed = None if scale is None else struct.pack(f"<{len(scale)}f", *scale)
    return LayerRow(position=position, weight_scale=packed, **{name: getattr(layer, name) for name in PLAIN_LAYER})


def _layer_state(row: LayerRow) -> LayerState:
    packed = row.weight_scale
    scale = None if packed is None else struct.unpack(f"<{len(packed) // 4}f", packed)
    return LayerState(weight_scale=scale, **{name: getattr(row, name) for name in PLAIN_LAYER})


def _past(row: ResultRow, *, layers: bool) -> Past:
    result = JobResult(
        **{name: getattr(row, name) for name in PLAIN_RESULT},
        options=tuple(row.options),
        status=Status(row.status),
        gates=tuple(GateOutcome(**gate) for gate in row.gates),
        layers=tuple(_layer_state(layer) for layer in row.layers) if layers else (),
    )
    return Past(row.night.name, row.night.started, result)
