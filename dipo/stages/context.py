"""What the stages of a job work with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from dipo.algo.captures import Batch, cut
from dipo.cluster.layout import even_shares
from dipo.cluster.pool import Pool
from dipo.cluster.work import TimedResult
from dipo.config import Config
from dipo.graph.units import Unit
from dipo.report.events import Events
from dipo.report.terminal import Terminal
from dipo.run import RunFolder
from dipo.stages.clock import Clock
from dipo.stages.load import Loaded

SHARES_PER_WORKER = 2
"""A slow worker then takes fewer of them."""


@dataclass(frozen=True)
class Context:
    """A job that is under way, once its workers are there."""

    config: Config
    loaded: Loaded
    folder: RunFolder
    pool: Pool
    pieces: int
    """Into which a step's batch is cut, whatever the number of workers."""
    device: str
    clock: Clock
    events: Events
    terminal: Terminal

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Times a stage and tells of it."""
        self.events.emit("stage_begins", stage=name)
        with self.clock.stage(name):
            yield
        self.events.emit("stage_ends", stage=name, seconds=round(self.clock.last, 3))

    def unit_ends(self, step: str, unit: Unit, timed: TimedResult, *, steps: int) -> None:
        """Tells of a finished unit."""
        self.events.emit(
            "unit_ends",
            step=step,
            index=unit.index,
            name=unit.name,
            steps=steps,
            loss_first=timed.result.loss_first,
            loss_last=timed.result.loss_last,
            seconds=round(timed.seconds, 3),
            steps_per_second=round(steps / timed.seconds, 2) if steps and timed.seconds else None,
        )

    def shares(self, num_samples: int) -> list[list[Batch]]:
        """The batches of so many samples, in shares that the workers take as they get free."""
        batches = cut(num_samples, self.config.data.batch_size)
        number = 1 if self.pool.size == 1 else self.pool.size * SHARES_PER_WORKER
        return [share for share in even_shares(batches, number) if share]
