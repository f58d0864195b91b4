"""What the stages of a job work with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from dipo.algo.captures import Batch, cut
from dipo.cluster.layout import even_shares
from dipo.cluster.pool import Pool
from dipo.cluster.work import TimedResult
from dipo.composition import reconstruction_of
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

    @property
    def biases_from_norms(self) -> bool:
        """Whether biases are corrected by BatchNorm's statistics."""
        source = self.config.algo.bias_source
        return source == "batchnorm" or (source == "auto" and not self.loaded.has_samples)

    @property
    def needs_calibration(self) -> bool:
        """Whether anything asks for what the samples give in the float network."""
        corrects = "bias_correction" in self.config.algo.steps and not self.biases_from_norms
        alone = self.config.cluster.schedule == "parallel" and reconstruction_of(self.config.algo.steps) is not None
        return self.config.calib.method != "batchnorm" or corrects or alone

    def over_samples(self, method: str, title: str, num_samples: int, **named: Any) -> list[Any]:
        """What a method of the workers gives for shares of the samples, in the shares' order."""
        shares = self.shares(num_samples)
        with self.terminal.task(title, num_samples, "samples") as progress:
            items, sizes = [(share,) for share in shares], [sum(map(len, share)) for share in shares]
            found = dict(self.pool.map(method, items, sizes=sizes, progress=progress, **named))
        return [found[index] for index in range(len(shares))]

    def shares(self, num_samples: int) -> list[list[Batch]]:
        """The batches of so many samples, in shares that the workers take as they get free."""
        batches = cut(num_samples, self.config.data.batch_size)
        number = 1 if self.pool.size == 1 else self.pool.size * SHARES_PER_WORKER
        return [share for share in even_shares(batches, number) if share]
