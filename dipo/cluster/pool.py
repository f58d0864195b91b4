"""The workers as one: a call goes to all of them, errors come back as they were raised."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, Protocol, cast

import onnx_ir as ir

from dipo.cluster.worker import Job, Worker
from dipo.config import ClusterConfig
from dipo.errors import UserError

Progress = Callable[[int], None]
"""Called with what all workers together, or the first of workers in lockstep, have done."""

POLL_SECONDS = 0.2


class Pool(Protocol):
    """A number of workers."""

    size: int

    def call(
        self,
        method: str,
        arguments: Sequence[tuple[Any, ...]],
        *,
        progress: Progress | None = None,
        lockstep: bool = False,
        **named: Any,
    ) -> list[Any]:
        """Calls a method of the first `len(arguments)` workers, each with its own arguments.

        Args:
            method: Name of a method of `Worker`.
            arguments: One tuple for each worker.
            progress: Called now and then with the work done: the workers' sum or, in `lockstep`, the first one's.
            lockstep: All workers count the same steps.
            named: Keyword arguments, the same for all.

        Raises:
            UserError: A worker found the user's input wrong.
        """
        ...

    def close(self) -> None:
        """Ends the workers; no process is left behind."""
        ...


class InlinePool:
    """One worker in this process."""

    size = 1

    def __init__(self, job: Job, model: ir.Model) -> None:
        """Starts the worker."""
        self.worker = Worker(job, model)

    def call(
        self,
        method: str,
        arguments: Sequence[tuple[Any, ...]],
        *,
        progress: Progress | None = None,
        lockstep: bool = False,
        **named: Any,
    ) -> list[Any]:
        """As `Pool.call`; one worker is in lockstep with itself."""
        del lockstep
        self.worker.on_progress = progress
        return [getattr(self.worker, method)(*own, **named) for own in arguments]

    def close(self) -> None:
        """Nothing to end."""


class RayPool:
    """Ray actors, one for each worker."""

    def __init__(self, job: Job, model: ir.Model, *, cfg: ClusterConfig) -> None:
        """Starts or joins Ray, and the workers on it.

        Raises:
            UserError: Ray cannot be reached, or has no room for the workers.
        """
        import ray

        self.ray = ray
        private = cfg.address in (None, "local")
        _start_ray(cfg)
        gpus = int(ray.cluster_resources().get("GPU", 0)) if job.device == "cuda" else 0
        self.size = cfg.workers or (gpus or 2)
        if not private:
            _check_room(ray.cluster_resources(), workers=self.size, threads=cfg.threads, cuda=job.device == "cuda")
        options = {
            "num_cpus": cfg.threads,
            "num_gpus": min(1.0, gpus / self.size) if job.device == "cuda" else 0,
            "runtime_env": {"env_vars": {"OMP_NUM_THREADS": str(cfg.threads)}},
        }
        shared = ray.put(job), ray.put(ir.to_proto(model).SerializeToString())
        actor = _actor_class(ray).options(**options)
        self.actors = [actor.remote(*shared) for _ in range(self.size)]

    def call(
        self,
        method: str,
        arguments: Sequence[tuple[Any, ...]],
        *,
        progress: Progress | None = None,
        lockstep: bool = False,
        **named: Any,
    ) -> list[Any]:
        """As `Pool.call`."""
        actors = self.actors[: len(arguments)]
        named = {name: self.ray.put(value) for name, value in named.items()}
        pending = [getattr(actor, method).remote(*own, **named) for actor, own in zip(actors, arguments, strict=True)]
        waiting = list(pending)
        while waiting:
            ready, waiting = self.ray.wait(waiting, num_returns=len(waiting), timeout=POLL_SECONDS)
            for reference in ready:
                self._get(reference)
            if progress is not None and waiting:
                asked = actors[:1] if lockstep else actors
                progress(sum(self._get(reference) for reference in [actor.progress.remote() for actor in asked]))
        return [self._get(reference) for reference in pending]

    def close(self) -> None:
        """Kills the workers, and Ray where it is this run's own."""
        for actor in self.actors:
            self.ray.kill(actor)
        self.ray.shutdown()

    def _get(self, reference: Any) -> Any:
        try:
            return self.ray.get(reference)
        except self.ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise UserError(str(error.cause)) from error
            raise
        except self.ray.exceptions.RayError as error:
            reason = str(error).strip().splitlines()[0]
            raise RuntimeError(f"a worker could not start or died ({reason}), start the run again") from error


def start_pool(job: Job, model: ir.Model, *, cfg: ClusterConfig) -> Pool:
    """The workers that the configuration asks for, each with the normalised float network."""
    return InlinePool(job, model) if cfg.kind == "inline" else RayPool(job, model, cfg=cfg)


def _start_ray(cfg: ClusterConfig) -> None:
    import ray

    # A run reports to nobody, and its workers' output is read through dipo's own log.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    common: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
    if cfg.address in (None, "local"):
        cpus = max(os.cpu_count() or 1, (cfg.workers or 2) * cfg.threads)
        ray.init(address="local", num_cpus=cpus, include_dashboard=False, **common)
        return
    try:
        ray.init(address=cfg.address, **common)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UserError(
            f"cluster.address={cfg.address}: no Ray answers there, start one (ray start --head) or leave the option out"
        ) from error


def _check_room(resources: dict[str, float], *, workers: int, threads: int, cuda: bool) -> None:
    cpus, gpus = int(resources.get("CPU", 0)), resources.get("GPU", 0)
    if workers * threads > cpus:
        raise UserError(
            f"cluster.workers={workers} with cluster.threads={threads}: the Ray cluster has {cpus} CPUs, ask for fewer"
        )
    if cuda and not gpus:
        raise UserError("cluster.device=cuda: the Ray cluster has no GPU, take cluster.device=cpu")


def _actor_class(ray: Any) -> Any:
    class RayWorker(Worker):
        """A worker that can be asked for its progress while it works."""

        @cast("Any", ray.method(concurrency_group="progress"))
        def progress(self) -> int:
            return self.done

    return ray.remote(concurrency_groups={"progress": 1})(RayWorker)
