"""The tables of a history. A change of them is a new `VERSION`."""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, ForeignKey, LargeBinary, String, Text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

VERSION = 1


class Base(DeclarativeBase):
    """All tables."""


class VersionRow(Base):
    """The one row that says by which version of this file the tables were made."""

    __tablename__ = "schema_version"

    id: Mapped[int] = mapped_column(primary_key=True)
    version: Mapped[int]


class NightRow(Base):
    """One call of the nightly runner."""

    __tablename__ = "nights"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(64))
    """Name of the night's folder."""
    started: Mapped[str] = mapped_column(String(32))
    """ISO 8601, UTC."""
    seconds: Mapped[float | None]
    state: Mapped[str] = mapped_column(String(16))
    """running, finished or stopped; a night that was killed stays running."""
    dipo: Mapped[str] = mapped_column(String(32))
    """Version."""
    jobs: Mapped[str] = mapped_column(Text)
    """The jobs file."""


class ResultRow(Base):
    """One job of a night that has ended."""

    __tablename__ = "results"

    id: Mapped[int] = mapped_column(primary_key=True)
    night_id: Mapped[int] = mapped_column(ForeignKey("nights.id"), index=True)
    name: Mapped[str] = mapped_column(String(100), index=True)
    model: Mapped[str] = mapped_column(String(255), index=True)
    algo: Mapped[str] = mapped_column(String(100))
    platform: Mapped[str] = mapped_column(String(100))
    precision: Mapped[str] = mapped_column(String(32))
    options: Mapped[list[str]] = mapped_column(JSON)
    status: Mapped[str] = mapped_column(String(16))
    reason: Mapped[str | None] = mapped_column(Text)
    seconds: Mapped[float]
    folder: Mapped[str] = mapped_column(Text)
    accuracy_fp32: Mapped[float | None]
    """Top-1 in per cent."""
    accuracy_deployed: Mapped[float | None]
    agreement: Mapped[float | None]
    """Top-1 agreement of the deployed network with the float one; cosine and SQNR compare the same two."""
    cosine: Mapped[float | None]
    sqnr_db: Mapped[float | None]
    gates: Mapped[list[dict[str, Any]]] = mapped_column(JSON)

    night: Mapped[NightRow] = relationship()
    layers: Mapped[list[LayerRow]] = relationship(order_by="LayerRow.position", cascade="all, delete-orphan")


class LayerRow(Base):
    """One row of `layers.LayerState`, in the order of the graph."""

    __tablename__ = "layers"

    id: Mapped[int] = mapped_column(primary_key=True)
    result_id: Mapped[int] = mapped_column(ForeignKey("results.id"), index=True)
    position: Mapped[int]
    name: Mapped[str] = mapped_column(Text)
    cosine: Mapped[float | None]
    sqnr_db: Mapped[float | None]
    weights: Mapped[str | None] = mapped_column(String(32))
    weight_scale: Mapped[bytes | None] = mapped_column(LargeBinary)
    """float32, little-endian."""
    bias: Mapped[str | None] = mapped_column(String(32))
    range: Mapped[str | None] = mapped_column(Text)
    act_scale: Mapped[float | None]
    act_zero_point: Mapped[int | None]
