"""The findings of an analysis, layer by layer, and the options that follow from them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import onnx_ir as ir

from dipo.graph.accessors import node_name
from dipo.graph.layers import layers_of
from dipo.graph.plan import LayerPlan, Plan
from dipo.graph.target_spec import TargetSpec
from dipo.quant.error_sums import ErrorSums
from dipo.report.measures import NO_NOISE_DB, Distance, sqnr_db

ADVICE_BELOW_DB = 40.0
"""A layer that leaves the network's outputs more than this is well as it is."""
SKIP_BELOW_DB = 20.0
"""SQNR below which an 8-bit layer should stay float: no other width or scale is left to advise."""
SHIFT_SHARE = 0.5
"""Part of a layer's noise that a corrected bias has to take away before it is advised."""
GRAIN_DB = 3.0
"""Least gain at which a scale for each channel is advised."""


@dataclass(frozen=True)
class Advice:
    """An option that would help a layer."""

    text: str
    settings: dict[str, Any] = field(default_factory=dict)
    """For precision.overrides."""


PER_CHANNEL = Advice("per-channel weights", {"weight_per_channel": True})
CORRECT_BIAS = Advice("correct its bias")
WIDE_WEIGHT = Advice("8-bit weights", {"weight_bits": 8})
WIDE_INPUT = Advice("8-bit input", {"act_bits": 8})
KEEP_FLOAT = Advice("keep it float")


class WeightSums(Protocol):
    """Squared errors of a weight rounded with one scale, and with one for each channel."""

    @property
    def signal(self) -> float:
        """Sum of the weight's squares."""
        ...

    @property
    def per_tensor(self) -> float:
        """Sum of the squared differences with one scale."""
        ...

    @property
    def per_channel(self) -> float:
        """Sum of the squared differences with one scale for each channel."""
        ...


@dataclass(frozen=True)
class Alone:
    """A layer quantized alone, behind the float network: its own output."""

    weight: Distance
    """Only its weight and bias."""
    activation: Distance | None
    """Only what it reads; null where that stays float."""
    both: Distance


@dataclass(frozen=True)
class Sensitivity:
    """The network's outputs when only this layer is quantized."""

    sqnr_db: float
    relative_mse: float
    """Sum of the squared differences over the sum of the float squares, averaged over the network's outputs."""
    share: float
    """Share in the sum of all layers' relative errors, 0 to 1."""


@dataclass(frozen=True)
class AnalysisRow:
    """One layer."""

    name: str
    weight_bits: int
    act_bits: int | None
    """Width of the layer's input; null where that stays float."""
    per_channel: bool
    """Whether its weight has a scale for each channel."""
    alone: Alone
    accumulated: Distance
    """Error of its output in the quantized network, with the errors of all layers before it."""
    sensitivity: Sensitivity
    per_channel_gain_db: float
    """Gain in dB of a scale for each channel over one for the weight, whether it is used or not."""
    shift_share: float | None
    """The part of the noise of its own output that a corrected bias takes away, 0 to 1; null where it has none."""
    hurts: Literal["weight", "activation"]
    """The part that costs its own output more."""
    rank: int
    """1: the layer that the network's outputs suffer most from."""
    advice: str | None
    """The advised options, in words."""


@dataclass(frozen=True)
class AnalysisReport:
    """`analysis` in report.json."""

    samples: int
    sensitivity_samples: int
    """Number of these on which sensitivity was measured."""
    layers: list[AnalysisRow]
    """In topological order."""
    overrides: dict[str, dict[str, Any]]
    """The rows' advice as precision.overrides: settings by pattern of layers' names."""
    skip: list[str]
    """The rows' advice as precision.skip."""
    correct_bias: bool
    """Whether the rows advise the step bias_correction."""

    def most_sensitive(self, count: int) -> list[AnalysisRow]:
        """Return the first by rank."""
        return sorted(self.layers, key=lambda row: row.rank)[:count]

    def options(self) -> list[str]:
        """Return the advice as one types it."""
        settings = ",".join(
            f"{pattern}:{{{','.join(f'{name}:{str(value).lower()}' for name, value in values.items())}}}"
            for pattern, values in self.overrides.items()
        )
        found = [f"precision.overrides={{{settings}}}"] if self.overrides else []
        found += [f"precision.skip=[{','.join(self.skip)}]"] if self.skip else []
        return [*found, *(["+algo=bias_correction"] if self.correct_bias else [])]


class NetworkFindings(Protocol):
    """The findings of an analysis."""

    @property
    def totals(self) -> Mapping[str, Mapping[str, Sequence[ErrorSums]]]:
        """Error sums by question (`weight`, `activation`, `both`, `accumulated`, `sensitivity`) and layer."""
        ...

    @property
    def weights(self) -> Mapping[str, WeightSums]:
        """Squared errors of the weights, by layer."""
        ...

    @property
    def shift_shares(self) -> Mapping[str, float]:
        """Share of the noise behind `both` that a corrected bias removes, by layer with a bias."""
        ...

    @property
    def samples(self) -> int:
        """Number of samples analysed."""
        ...

    @property
    def sensitivity_samples(self) -> int:
        """Number of these used for `sensitivity`."""
        ...


def report_analysis(
    model: ir.Model,
    *,
    plan: Plan,
    rules: TargetSpec,
    found: NetworkFindings,
) -> AnalysisReport:
    """Rate and rank the layers.

    Args:
        model: The float network.
        plan: The plan of the quantized network.
        rules: The target's limits: nothing beyond them is advised.
        found: The findings of the analysis.
    """
    totals, weights, shift_shares = found.totals, found.weights, found.shift_shares
    nodes = [layer.node for layer in layers_of(model) if layer.name in plan.layers]
    errors = {name: _relative_error(sums) for name, sums in totals["sensitivity"].items()}
    total = sum(errors.values())
    ranks = {name: rank for rank, name in enumerate(sorted(errors, key=lambda name: -errors[name]), start=1)}
    rows, advices = [], dict[str, Advice]()
    for node in nodes:
        name = node_name(node)
        source = plan.input_of(node)
        row = _row(
            plan.layers[name],
            act_bits=None if source is None else plan.activations[source].bits,
            totals=totals,
            weight=weights[name],
            shift_share=shift_shares.get(name),
            sensitivity=Sensitivity(
                sqnr_db=_clipped_db(errors[name]),
                relative_mse=errors[name],
                share=errors[name] / total if total else 0.0,
            ),
            rank=ranks[name],
        )
        advice = _advice(row, rules, num_layers=len(nodes))
        rows.append(row if advice is None else replace(row, advice=advice.text))
        if advice is not None:
            advices[pattern_of(name)] = advice
    return AnalysisReport(
        found.samples,
        found.sensitivity_samples,
        rows,
        overrides={pattern: advice.settings for pattern, advice in advices.items() if advice.settings},
        skip=[pattern for pattern, advice in advices.items() if advice is KEEP_FLOAT],
        correct_bias=any(advice is CORRECT_BIAS for advice in advices.values()),
    )


def _row(
    layer: LayerPlan,
    *,
    act_bits: int | None,
    totals: Mapping[str, Mapping[str, Sequence[ErrorSums]]],
    weight: WeightSums,
    shift_share: float | None,
    sensitivity: Sensitivity,
    rank: int,
) -> AnalysisRow:
    found = {
        question: Distance.of(layers[layer.node][0])
        for question, layers in totals.items()
        if question != "sensitivity" and layer.node in layers
    }
    alone = Alone(found["weight"], found.get("activation"), found["both"])
    activation_hurts = alone.activation is not None and alone.activation.sqnr_db < alone.weight.sqnr_db
    return AnalysisRow(
        name=layer.node,
        weight_bits=layer.spec.bits,
        act_bits=act_bits,
        per_channel=layer.spec.per_channel,
        alone=alone,
        accumulated=found["accumulated"],
        sensitivity=sensitivity,
        per_channel_gain_db=sqnr_db(weight.signal, weight.per_channel) - sqnr_db(weight.signal, weight.per_tensor),
        shift_share=shift_share,
        hurts="activation" if activation_hurts else "weight",
        rank=rank,
        advice=None,
    )


def _relative_error(outputs: Sequence[ErrorSums]) -> float:
    """Return noise over signal, averaged over the outputs, whose magnitudes are unrelated."""
    ratios = [0.0 if sums.noise == 0 else float(10.0 ** (-sqnr_db(sums.fp_fp, sums.noise) / 10)) for sums in outputs]
    return sum(ratios) / len(ratios)


def _clipped_db(relative_error: float) -> float:
    return NO_NOISE_DB if relative_error <= 0 else min(NO_NOISE_DB, -10 * math.log10(relative_error))


def _advice(row: AnalysisRow, rules: TargetSpec, *, num_layers: int) -> Advice | None:
    """Return the advice for a layer that costs more than the others: first what costs the device nothing."""
    if row.sensitivity.share * num_layers < 1 or row.sensitivity.sqnr_db >= ADVICE_BELOW_DB:
        return None
    gains = row.hurts == "weight" and not row.per_channel and row.per_channel_gain_db >= GRAIN_DB
    if gains and rules.weight_per_channel:
        return PER_CHANNEL
    if row.shift_share is not None and row.shift_share >= SHIFT_SHARE:
        return CORRECT_BIAS
    if row.hurts == "weight" and row.weight_bits < 8:
        return WIDE_WEIGHT
    if row.hurts == "activation" and row.act_bits is not None and row.act_bits < 8:
        return WIDE_INPUT
    return KEEP_FLOAT if row.sensitivity.sqnr_db < SKIP_BELOW_DB else None


def pattern_of(name: str) -> str:
    """Return a pattern of that name that the command line takes without quotes inside of it."""
    return re.sub(r"[^\w/.\-]|^[^A-Za-z_/]", "?", name, flags=re.ASCII)
