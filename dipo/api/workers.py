"""A network's workers, which start when they are needed.

A process has one Ray. Where several networks ask for it, the workers of the one end before those of the next start; no
result depends on that.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from dipo.cluster.pool import Pool
from dipo.report.events import FILE, Events
from dipo.run import RunFolder
from dipo.stages.pipeline import PreparedJob, start_workers

_ON_RAY: list[Workers] = []
"""Those that have this process's Ray: one at most."""


class Workers:
    """The workers of one network."""

    def __init__(self, prepared: PreparedJob, new_folder: Callable[[str], RunFolder]) -> None:
        """Start none yet.

        Args:
            prepared: The job whose network and samples they get.
            new_folder: Makes a folder for their events and logs.
        """
        self._prepared, self._new_folder = prepared, new_folder
        self._pool: Pool | None = None
        self._stack = contextlib.ExitStack()

    def pool(self) -> Pool:
        """Return them; they start, where they are not there yet or had to make room.

        Raises:
            UserError: Ray cannot be reached, or has no room for them.
        """
        if self._pool is None:
            if self._prepared.config.cluster.kind == "ray":
                free_ray()
                _ON_RAY.append(self)
            folder = self._new_folder("workers")
            self._stack.callback(folder.close)
            events = self._stack.enter_context(Events(folder.path / FILE))
            self._pool = start_workers(self._prepared, folder, events)
            self._stack.callback(self._pool.close)
        return self._pool

    def close(self) -> None:
        """End them; no process is left behind."""
        if self in _ON_RAY:
            _ON_RAY.remove(self)
        self._pool = None
        self._stack.close()


def free_ray() -> None:
    """End the workers of the network that has this process's Ray."""
    for workers in list(_ON_RAY):
        workers.close()
