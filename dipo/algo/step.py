"""Steps of `algo.steps`: each is one class with its options, which is pickled to the workers as it is.

Three kinds, by the network that they change and the place where they run:

  FloatStep    changes the float network, before it is calibrated (equalize); on the driver;
  UnitStep     solves one unit after the other, each on the outputs of the quantized ones before (sparsify, update_bn,
               bias_correction, gptq, adaround, brecq, qdrop, tune); on the workers, in lockstep. The loop alone moves
               on from unit to unit, and a finished unit is taken up again without the step;
  NetworkStep  looks at the network as a whole, or changes it (analyze); on the driver, which may hand out tasks.

A step is one file in `algo/steps/`, or one of another package that announces it by an entry point of the group
`dipo.steps`. The file is imported wherever options are listed, so it leaves torch and onnx to its methods.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self, TypeVar

from dipo.errors import UserError
from dipo.section import Section, options

if TYPE_CHECKING:
    import onnx_ir as ir
    from numpy.typing import NDArray

    from dipo.algo.activation_cache import Batch
    from dipo.algo.analysis_sums import NetworkAnalysis
    from dipo.algo.bench import Shared, Task
    from dipo.algo.calibrate import Calibration
    from dipo.algo.equalize import Chain
    from dipo.algo.layer_pairs import Skipped
    from dipo.algo.unit_solver import UnitResult, UnitWork
    from dipo.data.samples import Dataset
    from dipo.graph.plan import Plan, QuantizedModel
    from dipo.graph.target_spec import TargetSpec
    from dipo.quant.gaussian import Moments
    from dipo.recipe import CalibConfig

ResultT = TypeVar("ResultT")
T = TypeVar("T")


@dataclass(frozen=True)
class StepOptions(Section):
    """Options that a step reads; those of dipo's own steps are options of `algo`."""

    @classmethod
    def prefix(cls) -> str:
        """Return the prefix that the user types before the options' names."""
        return "algo."


@dataclass(frozen=True)
class GuardOptions(StepOptions):
    """Options of a step whose result is kept only where it is better on samples that it was not fitted to."""

    guard: bool = True
    """Keep, for each unit and for the whole network, what is better on held-out samples: a sixteenth of the
    calibration samples, or a quarter of few, that bias_correction and reconstructions are then not fitted to."""


@dataclass(frozen=True)
class Step(abc.ABC):
    """One step with its options; frozen, and pickled to the workers as it is."""

    Options: ClassVar[type[StepOptions]] = StepOptions
    name: ClassVar[str]
    """Its name in `algo.steps`."""
    never_after: ClassVar[Mapping[str, str]] = {}
    """Names of steps that cannot come before this one, each with the reason."""
    learns_rounding: ClassVar[bool] = False
    """Whether it decides the codes of weights from the float ones: at most one such step makes sense."""

    options: StepOptions

    @classmethod
    def configured(cls, cfg: Section, own: Mapping[str, Any]) -> Self:
        """Make the step with the options of a configuration.

        Args:
            cfg: Section with the options that `own` leaves out; those that it lacks too take their default.
            own: Options given with the step's entry in the list.

        Raises:
            UserError: An option is unknown, or has a value that it cannot have.
        """
        from dipo.section import from_plain

        names = [option.name for option in options(cls.Options)]
        shared = {name: getattr(cfg, name) for name in names if hasattr(cfg, name)}
        try:
            return cls(from_plain(cls.Options, {**shared, **own}))
        except UserError as error:
            # Of the options of `algo` their own section has complained before.
            raise UserError(f"algo.steps, {cls.name}: {error}") from error

    @property
    def needs_samples(self) -> bool:
        """Whether it needs calibration samples, whatever else the configuration says."""
        return True

    def solves_units(self, *, has_samples: bool) -> bool:
        """Return whether it solves one unit after the other, given whether the user has samples."""
        del has_samples
        return isinstance(self, UnitStep)

    @property
    def guarded(self) -> bool:
        """Whether its result is kept only where it is better on held-out samples, to which it must not be fitted.

        Steps whose options are `GuardOptions` are unless the user says otherwise. Others do what was asked of them,
        whatever it costs: nobody prunes for the sake of the error.
        """
        return isinstance(self.options, GuardOptions) and self.options.guard

    @property
    def judged(self) -> bool:
        """Whether the report says what it lost: of every step over units, unless the user turns the guard off."""
        return self.guarded or (isinstance(self, UnitStep) and not isinstance(self.options, GuardOptions))

    def check(self, plan: Plan) -> None:
        """Check that the options fit the network.

        Raises:
            UserError: One of them does not.
        """
        del plan

    def reads_channel_means(self, *, has_samples: bool) -> bool:
        """Return whether it reads calibration's channel means of outputs, given whether the user has samples."""
        del has_samples
        return False


@dataclass(frozen=True, eq=False)
class FloatNetwork:
    """The float network in front of a step that changes it."""

    model: ir.Model
    """The normalised network."""
    plan: Plan
    samples: Dataset | None
    """Calibration samples, noise where the user gave none; None where a change is made again from its record."""
    has_samples: bool
    """Whether the samples are the user's."""
    moments: Callable[[], dict[str, Moments]]
    """Computes the moments of the network's values without samples; raises UserError where they cannot be told."""


@dataclass(frozen=True, eq=False)
class FloatChange:
    """The float network after a step, and a record of the changes."""

    model: ir.Model
    record: dict[str, NDArray[Any]] | None = None
    """Arrays that the step needs to make the same change again without samples; None where it needs none."""
    chains: Sequence[Chain] = ()
    """Groups of layers whose channels were balanced."""
    refusals: Sequence[Skipped] = ()
    """Layers that were left as they are, with the reasons."""


class FloatStep(Step):
    """A step on the float network, before calibration."""

    @abc.abstractmethod
    def change(self, network: FloatNetwork, *, record: Mapping[str, NDArray[Any]] | None = None) -> FloatChange:
        """Return the changed network.

        Args:
            network: The network after the step before; it is not changed itself.
            record: Record of an earlier run of this step, which is repeated; None: this is the first run.
        """


@dataclass(frozen=True, eq=False)
class NetworkState:
    """The quantized network between two steps."""

    model: ir.Model
    """The float network."""
    plan: Plan
    rules: TargetSpec
    """Constraints of the target."""
    quantized: QuantizedModel
    calibration: Calibration
    calib: CalibConfig
    num_samples: int
    """Number of calibration samples."""
    batch_size: int
    """Number of samples in a forward batch."""
    seed: int
    has_samples: bool
    """Whether the calibration samples are the user's."""
    moments: Callable[[], dict[str, Moments]]
    """Computes moments, as in `FloatNetwork`."""


class Workers(Protocol):
    """The workers as a step on the driver sees them."""

    def share(self, value: T) -> Shared[T]:
        """Make a value available to every worker, sent once."""
        ...

    def over_samples(
        self, make: Callable[[Sequence[Batch]], Task[ResultT]], *, title: str, num_samples: int
    ) -> list[ResultT]:
        """Run a task on shares of the first calibration samples; return the results in the order of the shares."""
        ...


@dataclass(frozen=True, eq=False)
class NetworkChange:
    """The quantized network after a step on the whole of it."""

    quantized: QuantizedModel
    analysis: NetworkAnalysis | None = None
    """Errors of the layers, for the report."""


class NetworkStep(Step):
    """A step on the whole quantized network."""

    @abc.abstractmethod
    def run(self, state: NetworkState, workers: Workers) -> NetworkChange:
        """Return the changed network, or an analysis of it."""


@dataclass(frozen=True)
class UnitStep(Step):
    """A step that solves one unit after the other."""

    Options: ClassVar[type[StepOptions]] = StepOptions
    carries_float: ClassVar[bool] = False
    """Whether the float network's values are carried along for it; otherwise only the quantized network's are."""
    reads_outputs: ClassVar[bool] = False
    """Whether it reads the unit's layer's outputs and then changes the bias alone. The outputs are then computed once,
    and the loop moves on from them."""

    seed: int = field(default=0, kw_only=True)
    """Seed of the run."""

    @property
    @abc.abstractmethod
    def granularity(self) -> str:
        """Size of a unit: `layer`, `block`, `stage` or `network`."""

    @property
    def num_steps(self) -> int:
        """Number of optimizer steps for each unit; 0 where nothing is trained."""
        return 0

    @property
    def batch_size(self) -> int | None:
        """Number of samples in an optimizer step over all workers; None where nothing is trained."""
        return None

    @property
    def unit_title(self) -> str:
        """The terminal's word for a unit."""
        return "unit"

    def bound(self, state: NetworkState) -> Self:
        """Return the step with all that it reads of the network besides the units; it is pickled to the workers."""
        return self.seeded(state.seed)

    def seeded(self, seed: int) -> Self:
        """Return the step with the run's seed."""
        return dataclasses.replace(self, seed=seed)

    @abc.abstractmethod
    def solve(self, work: UnitWork) -> UnitResult:
        """Solve a unit on a worker, together with the other workers: all make the same calls at the same time.

        Args:
            work: The unit, both networks in front of it, and the worker's share of the samples.

        Returns:
            The unit's new layers and activations, the same on every worker; the loop moves on with them.
        """
