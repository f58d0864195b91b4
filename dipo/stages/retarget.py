"""Files of the job's own target, and of others, from one network."""

from __future__ import annotations

import dataclasses
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

import dipo
from dipo.algo.calibrate import activation_ranges
from dipo.algo.data_free import data_free_ranges
from dipo.config import Config, PlatformConfig, to_plain
from dipo.export.formats import OnnxFormat
from dipo.export.ranges import float_values
from dipo.export.requantize import activation_on, differences, requantize
from dipo.export.target import Export, write_target
from dipo.export.targets import TARGETS
from dipo.graph.plan import Plan, QuantizedModel
from dipo.graph.sharing import stored_apart
from dipo.graph.value_signs import positive_values
from dipo.quant.observers import Statistics
from dipo.quant.ranges import Range
from dipo.quant.spec import QParams, QuantSpec, qparams_of
from dipo.report.events import config_hash
from dipo.report.measures import OutputError
from dipo.report.report import Note, TargetRow
from dipo.stages.known_inputs import KnownInputs
from dipo.stages.load import form_of, plan_for
from dipo.stages.lost_values import lost_values


@dataclass(frozen=True)
class QuantizedRun:
    """The network of a run, whose files may be written for any target."""

    config: Config
    """Configuration of the run."""
    model: ir.Model
    """The float network, after the steps on it."""
    plan: Plan
    """Plan of the run's own target."""
    quantized: QuantizedModel
    statistics: Mapping[str, Statistics]
    inputs: KnownInputs
    """What is known of the network's inputs by themselves."""


@dataclass(frozen=True, eq=False)
class Retargeted:
    """The network on a target's grids."""

    name: str
    plan: Plan
    quantized: QuantizedModel
    weights: dict[str, float]
    """SQNR in dB of each weight that was rounded once more, by name of the layer."""
    activations: dict[str, str]
    """Outcome of each range, such as `kept`, by name of the value."""

    def row(
        self, source: QuantizedRun, files: list[Path], *, cfg: PlatformConfig, error: OutputError | None
    ) -> TargetRow:
        """Return the report's row on the target."""
        target = TARGETS[self.name]
        return TargetRow(
            name=self.name,
            differences=differences(source.plan, self.plan),
            weights=self.weights,
            activations=dict(Counter(self.activations.values())),
            error=error,
            notes=[
                *(f"{note.name}: {note.what}" for note in self._losses(source)),
                *target.remarks(target.options_of(cfg.given)),
                *(f"{name}: {what}" for name, what in stored_apart(source.model, self.quantized).items()),
            ],
            files={file.name: file.stat().st_size for file in files},
        )

    def _losses(self, source: QuantizedRun) -> list[Note]:
        """Return notes on values that the target's grids lose."""
        return lost_values(source.model, self.quantized, source.statistics, TARGETS[self.name].spec)


def target_of(name: str, source: QuantizedRun) -> Retargeted:
    """Return the network on the grids of a target.

    Raises:
        UserError: Values that the target quantizes have no range.
    """
    if name == source.config.platform.name:
        return Retargeted(name, source.plan, source.quantized, {}, dict.fromkeys(source.plan.activations, "kept"))
    plan = plan_for(name, source.config, source.model, fit=True)
    requantized = requantize(
        source.model,
        source.quantized,
        plan=plan,
        ranges=_ranges(source, plan),
        cfg=source.config.calib,
        target=name,
    )
    quantized = TARGETS[name].on_grids(source.model, requantized.quantized)
    return Retargeted(name, plan, quantized, requantized.weights, requantized.activations)


def write(
    target: Retargeted, source: QuantizedRun, folder: Path, *, cfg: PlatformConfig, form: OnnxFormat
) -> list[Path]:
    """Write the target's files.

    Raises:
        UserError: A tensor that the target looks for has no range, or one that it does not take; nothing is written.
    """
    its = TARGETS[target.name]
    export = Export(
        source.model,
        target.quantized,
        folder,
        metadata=metadata(source.config, target),
        form=form.for_spec(its.spec),
        beside=_beside(target, source),
    )
    return write_target(its, export, cfg.given)


def metadata(config: Config, target: Retargeted) -> dict[str, str]:
    """Return the metadata of an ONNX file on its origin; the same for the same network, whoever quantizes it."""
    # Another target may not take the widths that were asked for.
    scheme = config.precision.title if target.name == config.platform.name else _scheme(target.plan)
    plain = to_plain(config)
    decisive = {name: plain[name] for name in ("algo", "calib", "precision", "platform", "seed")}
    return {
        "dipo_version": dipo.__version__,
        "dipo_algo": config.algo.name,
        "dipo_platform": target.name,
        "dipo_scheme": scheme,
        "dipo_config": config_hash(decisive),
    }


def _scheme(plan: Plan) -> str:
    """Return the least bit widths, such as w4a8: the first and the last layer may have wider ones."""
    weights = min((layer.spec.bits for layer in plan.layers.values()), default=32)
    return f"w{weights}a{min((spec.bits for spec in plan.activations.values()), default=32)}"


def preflight_exports(source: QuantizedRun, check: Callable[[str, Path], None] = lambda *_: None) -> None:
    """Write all targets' files into a temporary folder, so that a target that refuses does so before the long work.

    Args:
        source: The network.
        check: Called with the target and the path of each file.

    Raises:
        UserError: A target refuses the network.
    """
    config = source.config
    for name in dict.fromkeys([config.platform.name, *config.export.also]):
        with tempfile.TemporaryDirectory() as folder:
            files = write(target_of(name, source), source, Path(folder), cfg=config.platform, form=form_of(config))
            for file in files:
                check(name, file)


def others(config: Config) -> list[str]:
    """Return the targets of `export.also`, each once, without the run's own."""
    return [name for name in dict.fromkeys(config.export.also) if name != config.platform.name]


def _beside(target: Retargeted, source: QuantizedRun) -> dict[str, QParams]:
    """Return grids of the values that the target leaves float, as far as their ranges are known."""
    its = TARGETS[target.name].spec
    if not its.ranges_beside:
        return {}
    spec = QuantSpec(8, signed=its.act_signed, symmetric=its.act_symmetric)
    values = float_values(source.model)
    plan = dataclasses.replace(target.plan, activations=dict.fromkeys(values, spec))
    grids = {name: qparams_of(range_, spec) for name, range_ in _ranges(source, plan).items()}
    positive = positive_values(source.model)
    own = source.quantized.activations.items()
    return grids | {name: activation_on(name, grid, spec, positive)[0] for name, grid in own}


def _ranges(source: QuantizedRun, plan: Plan) -> dict[str, Range]:
    """Return the ranges of a plan's values that the run's own target leaves float, as far as they are known."""
    config = source.config
    new = {name: spec for name, spec in plan.activations.items() if name not in source.quantized.activations}
    if not config.calib.reads_statistics:
        part = dataclasses.replace(plan, activations=new)
        moments = source.inputs.moments(source.model) if new else {}
        return data_free_ranges(part, moments, sigmas=config.calib.sigmas)
    seen = {name: spec for name, spec in new.items() if name in source.statistics and source.statistics[name].count}
    return activation_ranges(dataclasses.replace(plan, activations=seen), source.statistics, cfg=config.calib)
