"""Several workers in threads of this process: a pool for tests of what must not depend on their number."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

from dipo.algo.bench import InPlace
from dipo.algo.collectives import add_in_order
from dipo.cluster.worker import Worker


class ThreadCollectives:
    """Sums over workers that are threads."""

    def __init__(self, size):
        self.barrier, self.parts = threading.Barrier(size, timeout=120), {}

    def all_reduce_ordered(self, parts, *, owners):
        self.parts.update({number: part.clone() for number, part in parts.items()})
        self.barrier.wait()
        total = add_in_order([self.parts[number] for number in range(len(owners))]).clone()
        self.barrier.wait()
        self.parts.clear()
        self.barrier.wait()
        return total


class ThreadPool:
    """`Pool` with so many workers."""

    def __init__(self, job, model, size):
        self.size, self.workers = size, [Worker(job, model) for _ in range(size)]
        self.threads = ThreadPoolExecutor(size)

    def share(self, value):
        return InPlace(value)

    def map(self, tasks, *, stored=None, sizes=None, progress=None):
        # Worker i does every size-th task, the last tasks first: no order of arrival may matter.
        futures = [
            self.threads.submit(self.workers[i % self.size].run, task, *(() if stored is None else stored[i]))
            for i, task in enumerate(tasks)
        ]
        for index in reversed(range(len(tasks))):
            yield index, futures[index].result()

    def map_kept(self, tasks, *, num_kept):
        for index, result in self.map(tasks):
            yield index, list(result[1:])

    def call(self, verb, messages, *, progress=None):
        if verb is Worker.listen:
            return [("", 0)] * len(messages)
        if verb is Worker.join:
            collectives = ThreadCollectives(len(messages))
            for worker in self.workers[: len(messages)]:
                worker.collectives = collectives
            return [None] * len(messages)
        pairs = zip(self.workers, messages, strict=False)
        return [future.result() for future in [self.threads.submit(verb, *pair) for pair in pairs]]

    def ask(self, question):
        return [question(worker) for worker in self.workers]

    def captures_bytes(self):
        return 10**9

    def close(self):
        self.threads.shutdown()
