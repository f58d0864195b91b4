"""The float network with its plan: what calibration and the steps begin with."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from dipo.api.inputs import Data, Model, with_inputs
from dipo.api.settings import Preset, compose, threads_kept, with_options
from dipo.cluster.pool import Pool
from dipo.config import Config
from dipo.data.samples import Dataset
from dipo.errors import UserError
from dipo.export.targets import check_options
from dipo.graph.accessors import node_name
from dipo.graph.plan import Plan
from dipo.report.events import FILE, Events
from dipo.report.terminal import Terminal
from dipo.run import RunFolder
from dipo.stages.clock import Clock
from dipo.stages.context import Context
from dipo.stages.load import JobInputs, form_of, planned
from dipo.stages.pipeline import PreparedJob, context_of, prepare, start_workers


@dataclass(frozen=True)
class PlannedLayer:
    """A layer, and what is planned for its weight."""

    name: str
    operator: str
    """Of ONNX: Conv, Gemm, ..."""
    weight_bits: int
    per_channel: bool
    """Its weight has a scale for each output channel."""
    num_weights: int


class Session:
    """What the networks of one `load` share: a folder that goes away, and the workers that they started."""

    def __init__(self) -> None:
        """Make the folder."""
        self.folder = Path(tempfile.mkdtemp(prefix="dipo-"))
        self.stack = contextlib.ExitStack()
        self.clock = Clock()
        self.numbers = itertools.count()
        self.closed = False
        # Whoever forgets to close leaves no files behind.
        self.remove = weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)

    def new_folder(self, name: str) -> RunFolder:
        """Return a folder for one piece of work."""
        return RunFolder(self.folder / f"{next(self.numbers):03d}-{name}")

    def close(self) -> None:
        """End the workers and remove the folder."""
        self.closed = True
        self.stack.close()
        self.remove()


class Network:
    """A float network, its samples and its plan; a context manager, which ends the workers that it has started."""

    def __init__(self, session: Session, prepared: PreparedJob) -> None:
        """Take a job that is prepared; its workers start when they are needed."""
        self._session, self.prepared = session, prepared

    @property
    def config(self) -> Config:
        """The whole configuration."""
        return self.prepared.config

    @property
    def loaded(self) -> JobInputs:
        """The network, its samples and its plan as the job's stages have them."""
        return self.prepared.loaded

    @property
    def plan(self) -> Plan:
        """What is quantized, and how: `plan.layers` by name of the node, `plan.activations` by name of the value."""
        return self.loaded.plan

    @property
    def samples(self) -> Dataset:
        """Calibration samples, preprocessed: `samples.read(0, 8).inputs` is arrays by name of the input."""
        return self.loaded.data.calib

    @property
    def layers(self) -> list[PlannedLayer]:
        """The layers that are quantized, in their order."""
        nodes = {node_name(node): node for node in self.loaded.model.graph}
        found = []
        for name, layer in self.plan.layers.items():
            weight = self.loaded.model.graph.initializers[layer.weight].const_value
            assert weight is not None
            size = weight.size
            found.append(PlannedLayer(name, nodes[name].op_type, layer.spec.bits, layer.spec.per_channel, size))
        return found

    def replaced(self, config: Config, loaded: JobInputs) -> Network:
        """Return a network with another configuration, which has workers of its own."""
        return Network(self._session, dataclasses.replace(self.prepared, config=config, loaded=loaded))

    @contextlib.contextmanager
    def work(self, name: str, config: Config) -> Iterator[Context]:
        """Yield what the stages of a job work with: a folder of its own, and the network's workers."""
        if self._session.closed:
            raise UserError("the network is closed: load it again, or do the work within its with block")
        with threads_kept(), contextlib.ExitStack() as stack:
            pool = self._pool
            folder = self._session.new_folder(name)
            stack.callback(folder.close)
            events = stack.enter_context(Events(folder.path / FILE))
            prepared = dataclasses.replace(self.prepared, config=config)
            yield context_of(prepared, folder, pool, events, Terminal.silent())

    def close(self) -> None:
        """End the workers, and remove the files of what was in memory."""
        self._session.close()

    def __enter__(self) -> Self:
        """Return the network itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    @functools.cached_property
    def _pool(self) -> Pool:
        """The workers."""
        folder = self._session.new_folder("workers")
        self._session.stack.callback(folder.close)
        events = self._session.stack.enter_context(Events(folder.path / FILE))
        pool = start_workers(self.prepared, folder, events)
        self._session.stack.callback(pool.close)
        return pool


def load(
    model: Model,
    data: Data | None = None,
    *,
    calib: Preset = None,
    precision: Preset = None,
    target: str = "ort",
    eval_data: Data | None = None,
    options: Mapping[str, Any] | None = None,
    cluster: Preset = "inline",
    seed: int = 0,
) -> Network:
    """Read a model and samples, and plan what is quantized.

    Args:
        model: A path, `onnx.ModelProto` or `ir.Model`.
        data: Calibration samples, see `quantize`; None: without samples, with `calib="batchnorm"`.
        calib: How ranges are chosen: a preset's name or its options.
        precision: Bits and kinds of scales: a preset's name or its options.
        target: The deploy target.
        eval_data: Evaluation samples; None: those that `data` holds beside the others, else the calibration samples.
        options: By the names of the command line, such as `{"data.batch_size": 8}`; `data` names how uint8 images are
            preprocessed: `{"data": "imagenet"}`.
        cluster: `inline`, this process; `ray`; or options of `cluster`.
        seed: Of everything random.

    Raises:
        UserError: An argument is wrong.
    """
    config = compose(
        calib=calib, precision=precision, target=target, cluster=cluster, seed=seed, options=options, algo="none"
    )
    session = Session()
    try:
        with threads_kept():
            config, graph = with_inputs(config, model, data, eval_data, session.folder / "inputs")
            return Network(session, prepare(config, clock=session.clock, model=graph))
    except BaseException:
        session.close()
        raise


def plan(
    network: Network,
    *,
    calib: Preset = None,
    precision: Preset = None,
    target: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Network:
    """Return a network with another plan; the model and the samples are not read again.

    Args:
        network: The network, which stays as it is.
        calib: How ranges are chosen; None: as before.
        precision: A preset's name, which replaces all options of `precision`, or some of its options; None: as before.
        target: The deploy target; None: as before.
        options: By the names of the command line, such as `{"precision.overrides": {"/conv1": {"weight_bits": 8}}}`.

    Raises:
        UserError: An argument is wrong, or the target cannot do what is asked.
    """
    config = network.config
    given = dict(options or {})
    if isinstance(calib, str):
        config = dataclasses.replace(config, calib=compose(calib=calib).calib)
    elif calib is not None:
        given = {f"calib.{key}": value for key, value in calib.items()} | given
    if isinstance(precision, str):
        config = dataclasses.replace(config, precision=compose(precision=precision).precision)
    elif precision is not None:
        given = {f"precision.{key}": value for key, value in precision.items()} | given
    if target is not None:
        config = dataclasses.replace(config, platform=compose(target=target).platform)
    config = with_options(config, given)
    check_options([config.platform.name], config.platform.given, form=form_of(config))
    return network.replaced(config, planned(network.loaded, config))
