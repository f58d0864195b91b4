"""The context of a job: its inputs, workers and outputs, which all stages use."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from dipo.algo.activation_cache import Batch, cut
from dipo.algo.bench import Shared, Task
from dipo.algo.unit_solver import UnitResult
from dipo.cluster.pool import Pool
from dipo.cluster.sharding import even_shares
from dipo.config import Config
from dipo.graph.units import Unit
from dipo.report.events import Events
from dipo.report.terminal import Terminal
from dipo.run import RunFolder
from dipo.stages.clock import Clock
from dipo.stages.load import JobInputs

T = TypeVar("T")
ResultT = TypeVar("ResultT")

SHARES_PER_WORKER = 2
"""Shares of the samples for each worker: with more than one a slow worker takes fewer of them."""


@dataclass(frozen=True)
class Context:
    """A job with its workers started, as its stages see it."""

    config: Config
    loaded: JobInputs
    folder: RunFolder
    pool: Pool
    device: str
    clock: Clock
    events: Events
    terminal: Terminal

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage and emit events at its beginning and end."""
        self.events.emit("stage_begins", stage=name)
        with self.clock.stage(name):
            yield
        self.events.emit("stage_ends", stage=name, seconds=round(self.clock.last, 3))

    def unit_ends(self, step: str, unit: Unit, result: UnitResult, *, steps: int) -> None:
        """Emit the event of a finished unit."""
        self.events.emit(
            "unit_ends",
            step=step,
            index=unit.index,
            name=unit.name,
            steps=steps,
            loss_first=result.loss_first,
            loss_last=result.loss_last,
            kept=None if result.judged is None else result.judged.kept,
            gain_db=None if result.judged is None else round(result.judged.gain_db, 3),
            seconds=round(result.seconds, 3),
            steps_per_second=round(steps / result.seconds, 2) if steps and result.seconds else None,
        )

    @property
    def needs_calibration(self) -> bool:
        """Whether any step or option needs the float network's values for the samples."""
        steps, has_samples = self.loaded.steps, self.loaded.has_samples
        corrects = any(step.reads_channel_means(has_samples=has_samples) for step in steps)
        alone = self.config.cluster.schedule == "parallel" and any(step.learns_rounding for step in steps)
        return self.config.calib.reads_statistics or corrects or alone

    def share(self, value: T) -> Shared[T]:
        """Make a value available to every worker."""
        return self.pool.share(value)

    def over_samples(
        self, make: Callable[[Sequence[Batch]], Task[ResultT]], *, title: str | None, num_samples: int
    ) -> list[ResultT]:
        """Run a task on shares of the samples and return the results in the shares' order.

        Args:
            make: Makes the task for a share.
            title: Its name on the terminal; None: it is a part of what is shown there.
            num_samples: Number of samples.
        """
        shares = self.shares(num_samples)
        terminal = Terminal.silent() if title is None else self.terminal
        with terminal.task(title or "", num_samples, "samples") as progress:
            tasks, sizes = [make(share) for share in shares], [sum(map(len, share)) for share in shares]
            results = dict(self.pool.map(tasks, sizes=sizes, progress=progress))
        return [results[index] for index in range(len(shares))]

    def shares(self, num_samples: int) -> list[list[Batch]]:
        """Return the batches of the first samples, in shares that the workers take as they get free."""
        batches = cut(num_samples, self.config.data.batch_size)
        number = 1 if self.pool.size == 1 else self.pool.size * SHARES_PER_WORKER
        return [share for share in even_shares(batches, number) if share]
