"""Loading of the model and the samples, the plan, and the check of torch's outputs against ONNX Runtime's."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from dipo.algo.joined_inputs import joins
from dipo.algo.step import FloatChange, FloatNetwork, FloatStep, Step
from dipo.config import Config, resolve_path
from dipo.data.noise import make_noise
from dipo.data.samples import Datasets
from dipo.errors import UserError
from dipo.export.formats import OnnxFormat
from dipo.export.targets import TARGETS, check_options
from dipo.graph.accessors import name_of
from dipo.graph.class_axes import class_axes
from dipo.graph.compared_outputs import stand_in_outputs
from dipo.graph.constraints import fitting
from dipo.graph.load import load
from dipo.graph.one_by_one import rows_of
from dipo.graph.op_library import library_of, set_library
from dipo.graph.passes.batch_first import input_axes
from dipo.graph.placement import is_float
from dipo.graph.plan import Plan, make_plan
from dipo.graph.sample_axis import SampleAxes
from dipo.graph.sizes import sized_by_numbers
from dipo.report.report import Note
from dipo.stages.known_inputs import KnownInputs
from dipo.stages.runnable import form_that_runs
from dipo.stages.sample_forms import input_specs, open_samples

NOISE_SAMPLES = 64
"""Number of noise samples on which a job without others is checked."""


@dataclass(frozen=True)
class JobInputs:
    """Inputs of a job: its network, samples, plan and steps."""

    path: Path
    model: ir.Model
    """The float network after the steps on it."""
    data: Datasets
    plan: Plan
    steps: list[Step]
    """Steps of the algorithm, in their order."""
    change: FloatChange
    """Changes by the steps on the float network."""
    inputs: KnownInputs
    """What is known of the network's inputs by themselves."""
    samples: SampleAxes = field(default_factory=SampleAxes)
    """Where the samples lie in each of the network's values."""
    uncompared: Sequence[str] = ()
    """Outputs in which samples cannot be told apart, for which others stand (`graph.compared_outputs`)."""
    has_samples: bool = True
    """Whether `data` holds the user's samples, not noise."""
    original: ir.Model | None = None
    """The float network before the steps on it; None: there were none."""
    notes: Sequence[Note] = ()
    """What the user should know of the network before the work."""

    @property
    def comparable(self) -> JobInputs:
        """The job with the network that has to compute on its samples what the file does.

        Without samples, steps on the float network go by what BatchNormalization says of real inputs, which noise does
        not keep to: then that is the network before them.
        """
        if self.has_samples or self.original is None or self.original is self.model:
            return self
        return dataclasses.replace(self, model=self.original)

    @property
    def as_run(self) -> dict[str, Any]:
        """How ONNX Runtime runs its files on samples: arguments of `export.runtime.run_model`."""
        return {
            "by_sample": self.samples.by_sample,
            "axes": input_axes(self.model),
            "takes_one": rows_of(self.model) is not None,
            "outputs": [name_of(value) for value in self.model.graph.outputs],
            "library": library_of(self.model),
        }


def load_job(config: Config, *, model: ir.Model | None = None) -> JobInputs:
    """Read the model, find the samples, make the plan.

    Args:
        config: The job.
        model: The configuration's model if it is loaded already; None: read it.

    Raises:
        UserError: One of them is missing or wrong.
    """
    if config.model.path is None:
        raise UserError("no model: give +model=mobilenet or model.path=<file.onnx>")
    path = resolve_path(config.model.path)
    model = load(path) if model is None else model
    library = None if config.model.op_library is None else resolve_path(config.model.op_library)
    if library is not None and not library.exists():
        raise UserError(f"model.op_library={library}: there is no such file, give the path of a shared library")
    set_library(model, library)
    data = _samples(config, model, path)
    has_samples = config.data.is_given
    model, samples, data = form_that_runs(model, data, path)
    uncompared = stand_in_outputs(model, samples.mixed & sized_by_numbers(model), samples)
    check_options([config.platform.name, *config.export.also], config.platform.given, form=form_of(config))
    class_axes(model, config.data.class_axis)  # what is wrong with the option shows before the work
    steps = config.algo.make_steps()
    plan = plan_for(config.platform.name, config, model)
    inputs = KnownInputs(config.data, data.calib if has_samples else None)
    loaded = JobInputs(
        path, model, data, plan, [], FloatChange(model), inputs, samples, uncompared, has_samples=has_samples
    )
    return with_float_steps(loaded, steps, config)


def with_float_steps(loaded: JobInputs, steps: Sequence[Step], config: Config) -> JobInputs:
    """Append steps to a job: check them, and run those that change the float network.

    Args:
        loaded: The job, with the steps that it had before.
        steps: Further steps.
        config: The job's configuration, all steps included.

    Raises:
        UserError: A step's options do not fit the network, or no layer is left to quantize.
    """
    for step in steps:
        step.check(loaded.plan)
    change = loaded.change
    if loaded.plan.layers:
        moments = functools.partial(loaded.inputs.moments, loaded.model)
        network = FloatNetwork(loaded.model, loaded.plan, loaded.data.calib, loaded.has_samples, moments)
        change = _joined(change, change_float(network, steps, config, inputs=loaded.inputs))
    loaded = dataclasses.replace(
        loaded,
        model=change.model,
        steps=[*loaded.steps, *steps],
        change=change,
        original=loaded.original or loaded.model,
    )
    return planned(loaded, config)


def planned(loaded: JobInputs, config: Config) -> JobInputs:
    """Return the job with the plan for its present network.

    Raises:
        UserError: The target cannot do what the options say, or no layer is left to quantize.
    """
    model = loaded.model
    plan = plan_for(config.platform.name, config, model)
    if not plan.layers and not plan.recurrent:
        readers = " or ".join(name for name in TARGETS if TARGETS[name].spec.recurrent_weights)
        raise UserError(
            f"model.path={loaded.path}: no layer is left to quantize, give a network with a Conv, ConvTranspose, Gemm "
            f"or MatMul of constant weights, with platform={readers} an LSTM, GRU or RNN or such a layer in a branch "
            "or loop, that precision.skip does not name"
        )
    plan = dataclasses.replace(plan, observed=_observed(config, model, plan))
    return dataclasses.replace(loaded, plan=plan)


def change_float(
    network: FloatNetwork,
    steps: Sequence[Step],
    config: Config,
    *,
    inputs: KnownInputs,
    record: Mapping[str, NDArray[Any]] | None = None,
) -> FloatChange:
    """Run the steps on the float network, in their order.

    Args:
        network: The network before the steps.
        steps: All steps of the job.
        config: The job.
        inputs: What is known of the network's inputs.
        record: Arrays of an earlier run of these steps, which is repeated; None: this is the first run.
    """
    done = FloatChange(network.model)
    for step in steps:
        if not isinstance(step, FloatStep):
            continue
        change = step.change(network, record=record)
        done = _joined(done, change)
        network = dataclasses.replace(
            network,
            model=change.model,
            plan=plan_for(config.platform.name, config, change.model),
            moments=functools.partial(inputs.moments, change.model),
        )
    return done


def _joined(first: FloatChange, second: FloatChange) -> FloatChange:
    """Return two changes, one after the other, as one."""
    kept = None if first.record is None and second.record is None else {**(first.record or {}), **(second.record or {})}
    chains, refusals = [*first.chains, *second.chains], [*first.refusals, *second.refusals]
    return FloatChange(second.model, kept, chains, refusals)


def plan_for(target: str, config: Config, model: ir.Model, *, fit: bool = False) -> Plan:
    """Return a target's plan by the options of `precision`.

    Args:
        target: Name of the target.
        config: The job.
        model: The float network.
        fit: The options are for another target: replace those that this one cannot do by its own.

    Raises:
        UserError: The target cannot do what the options say, or they match nothing.
    """
    rules = TARGETS[target].spec
    return make_plan(model, rules, fitting(rules, config.precision) if fit else config.precision)


def form_of(config: Config) -> OnnxFormat:
    """Return the format of `quantized.onnx`."""
    return OnnxFormat(config.export.format, packed=config.export.weights == "packed")


def _observed(config: Config, model: ir.Model, plan: Plan) -> tuple[str, ...]:
    """Return values that are no activations of the plan: those of other targets, and what is joined or leaves the net.

    By the former other targets' files can be written from this run.
    """
    specs = {name: target.spec for name, target in TARGETS.items()}
    likes = {(s.operators, s.fuse_residual_add, s.quantize_outputs): name for name, s in specs.items()}
    values = {value: None for name in likes.values() for value in plan_for(name, config, model, fit=True).activations}
    # What one grid is made for several of has to be known of each: `stages.lost_values`.
    joined = [value for join in joins(model) for value in join.made]
    values |= dict.fromkeys(name_of(value) for value in [*joined, *model.graph.outputs] if is_float(value))
    return tuple(value for value in values if value not in plan.activations)


def _samples(config: Config, model: ir.Model, path: Path) -> Datasets:
    """Return the user's samples, or noise where no step or option needs any."""
    source = f"model.path={path}"
    data = config.data
    if not data.is_given:
        if config.needs_samples:
            raise UserError(
                "no samples: give them as data (data.path=FILE or FOLDER), or take algo=dfq, which needs none"
            )
        inputs = input_specs(model, source=source)
        noise = make_noise(inputs, num=NOISE_SAMPLES, seed=config.seed, mean=data.mean, std=data.std)
        return Datasets(calib=noise, eval=None)
    return open_samples(model, source, data.opened)
