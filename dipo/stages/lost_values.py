"""Values that a grid made for larger ones leaves with next to no codes: scores that are joined with boxes in pixels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from dipo.algo.joined_inputs import joins
from dipo.export.ranges import spread
from dipo.export.targets import TARGETS
from dipo.graph import operators
from dipo.graph.accessors import name_of, node_name
from dipo.graph.operators import Moves
from dipo.graph.placement import is_float
from dipo.graph.plan import QuantizedModel
from dipo.graph.target_spec import TargetSpec
from dipo.quant.observers import Statistics
from dipo.quant.spec import QParams
from dipo.report.analysis import pattern_of
from dipo.report.report import Note

MORE_BITS = 16
"""Width, in bits, that is advised where a target takes it."""


@dataclass(frozen=True)
class Resolution:
    """How finely a value is told apart."""

    low: float
    """Least number of the calibration samples."""
    high: float
    step: float
    """Step of the coarsest grid that it is put on."""

    @property
    def steps(self) -> float:
        """Its range in steps; from zero if it has a single number."""
        low, high = self.low, self.high
        if low == high:
            low, high = min(low, 0.0), max(high, 0.0)
        return (high - low) / self.step

    @property
    def is_lost(self) -> bool:
        """Whether all its numbers lie within a step, so that one code or two have to do for them all."""
        return 0 < self.steps < 1


def join_resolutions(
    model: ir.Model, quantized: QuantizedModel, statistics: Mapping[str, Statistics]
) -> dict[tuple[str, str], Resolution]:
    """Return the resolution of the inputs of Concats, by names of the Concat and of the input.

    Args:
        model: The float network.
        quantized: Its grids.
        statistics: What calibration saw, by name of the value; inputs that it did not see are left out.
    """
    known, found = spread(model, quantized.activations), {}
    for join in joins(model):
        for value in join.made:
            steps = [float(known[name].scale) for name in (name_of(value), join.output) if name in known]
            seen = _seen(value, statistics)
            if steps and seen is not None:
                found[node_name(join.node), name_of(value)] = Resolution(seen.min, seen.max, max(steps))
    return found


def lost_values(
    model: ir.Model, quantized: QuantizedModel, statistics: Mapping[str, Statistics], spec: TargetSpec
) -> list[Note]:
    """Return a note on each input of a Concat, and each output, whose numbers all lie within one step of its grid.

    Args:
        model: The float network.
        quantized: Its grids, those of Concats as the target has them.
        statistics: What calibration saw, by name of the value.
        spec: The target's specification, for what can be done.
    """
    notes: dict[str, Note] = {}
    found_joins = {node_name(join.node): join for join in joins(model)}
    for (concat, name), found in join_resolutions(model, quantized, statistics).items():
        if found.is_lost:
            where = f"the grid of Concat '{concat}', which joins it with larger numbers"
            readers = list(_readers(found_joins[concat].node.outputs[0]))
            notes.setdefault(name, Note(name, _sentence(found, where, _ways(spec, concat, readers))))
    known = spread(model, quantized.activations)
    for value in model.graph.outputs:
        seen, name, steps = _seen(value, statistics), name_of(value), _steps(value, known)
        if seen is None or not steps or name in notes:
            continue
        found = Resolution(seen.min, seen.max, max(steps))
        if found.is_lost:
            notes[name] = Note(name, _sentence(found, "the grid of this output", _ways(spec, None, [])))
    return list(notes.values())


def _sentence(found: Resolution, where: str, ways: list[str]) -> str:
    low, high, step = (f"{number:.3g}" for number in (found.low, found.high, found.step))
    return (
        f"its numbers are lost: all of them, {low} to {high}, are less than one step ({step}) of {where}; "
        f"{', or '.join(ways)}"
    )


def _ways(spec: TargetSpec, concat: str | None, readers: list[str]) -> list[str]:
    """Return what can be done on the target about a value that a grid loses.

    Args:
        spec: The target's specification.
        concat: Name of the Concat whose grid it is; None: it is that of an output.
        readers: Names of the nodes that compute with what is on the grid; empty where it only leaves the network.
    """
    ways = []
    if not readers:
        ways.append("end the network where it is computed, so that it is an output of its own")
    if MORE_BITS in spec.act_widths:
        ways.append(f"give activations {MORE_BITS} bits (precision.act_bits={MORE_BITS})")
    if not readers and spec.quantize_outputs:
        ways.append(f"take a target whose outputs stay float ({_targets(lambda other: not other.quantize_outputs)})")
    if concat is not None and not spec.quantize_outputs:
        patterns = ",".join(map(pattern_of, dict.fromkeys([concat, *readers])))
        ways.append(f"keep the Concat and what reads it float (precision.skip=[{patterns}])")
    return ways or [
        f"take a target with {MORE_BITS} bits for activations ({_targets(lambda other: MORE_BITS in other.act_widths)})"
    ]


def _targets(fits: Callable[[TargetSpec], bool]) -> str:
    return f"platform={' or '.join(name for name, target in TARGETS.items() if fits(target.spec))}"


def _readers(value: ir.Value) -> Iterator[str]:
    """Yield the names of the nodes that compute with a value, also behind nodes that only move its numbers."""
    for use in value.uses():
        if not operators.of(use.node).keeps_range:
            yield node_name(use.node)
            continue
        for output in use.node.outputs:
            yield from _readers(output)


def _steps(value: ir.Value, known: Mapping[str, QParams]) -> list[float]:
    """Return the steps of the grids that a value's numbers are on: its own, and those of values it is moved from."""
    steps: list[float] = []
    at: ir.Value | None = value
    while at is not None:
        if name_of(at) in known:
            steps.append(float(known[name_of(at)].scale))
        node = at.producer()
        at = node.inputs[0] if node is not None and node.inputs and operators.of(node).keeps_range else None
    return steps


def _seen(value: ir.Value, statistics: Mapping[str, Statistics]) -> Statistics | None:
    """Return what calibration saw of a value, or of the one that it only rearranges; None where it saw neither."""
    at: ir.Value | None = value
    while at is not None and is_float(at):
        seen = statistics.get(name_of(at))
        if seen is not None and seen.count:
            return seen
        node = at.producer()
        at = node.inputs[0] if node is not None and operators.of(node).moves is Moves.ALL else None
    return None
