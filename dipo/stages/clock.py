"""Times of the stages of a job."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

log = logging.getLogger("dipo")


@dataclass
class Clock:
    """A clock that collects the seconds of each stage, in their order."""

    seconds: dict[str, float] = field(default_factory=dict)
    last: float = 0.0
    """Seconds of the stage that ended last."""

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time of the context to the stage."""
        start = time.perf_counter()
        yield
        self.last = time.perf_counter() - start
        self.seconds[name] = self.seconds.get(name, 0.0) + self.last
        log.info("%s: %.2f s", name, self.last)
