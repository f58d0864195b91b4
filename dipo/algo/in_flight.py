"""Work on values beside the network that makes them, with a bound on the memory of those that wait for it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

import torch

BYTES_IN_FLIGHT = 1 << 26
"""Bytes of values that wait for their work or are worked on; a larger one waits alone."""


class InFlight:
    """Threads that work on values in the order in which these come, never for two of one key at a time."""

    def __init__(self, threads: int) -> None:
        """Start some threads; as a context manager, wait at the end until all work is done."""
        self._threads = ThreadPoolExecutor(threads)
        self._running: deque[tuple[Future[None], int]] = deque()
        self._last: dict[Hashable, Future[None]] = {}
        self._bytes = 0

    def run(self, key: Hashable, value: torch.Tensor, work: Callable[[], None]) -> None:
        """Hand over work, and wait while that on earlier values holds too many bytes.

        Args:
            key: What the work is for: that on an earlier value with the same key is done before.
            value: The value, for its size.
            work: The work on it.

        Raises:
            Exception: What earlier work raised.
        """
        if (earlier := self._last.pop(key, None)) is not None:
            earlier.result()
        size = value.numel() * value.element_size()
        while self._running and (self._running[0][0].done() or self._bytes + size > BYTES_IN_FLIGHT):
            self._wait()
        future = self._threads.submit(work)
        self._last[key] = future
        self._running.append((future, size))
        self._bytes += size

    def _wait(self) -> None:
        future, size = self._running.popleft()
        future.result()
        self._bytes -= size

    def __enter__(self) -> InFlight:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            while self._running and kind is None:
                self._wait()
        finally:
            self._threads.shutdown(cancel_futures=True)
