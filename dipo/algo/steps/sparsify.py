"""Sparsity: part of a layer's weights become zero, and the others compensate for them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Annotated, ClassVar, Self

from dipo.algo.step import NetworkState, StepOptions, UnitStep
from dipo.errors import UserError
from dipo.recipe import CalibConfig
from dipo.section import Between, OneOf, show

if TYPE_CHECKING:
    from dipo.algo.unit_solver import UnitResult, UnitWork
    from dipo.graph.plan import Plan

_PRUNED = "it takes weights away that {} has made up for"
UNSTRUCTURED = "unstructured"


@dataclass(frozen=True)
class SparsifyOptions(StepOptions):
    """Which weights go, and how many."""

    sparsity: Annotated[float, Between(0, 0.99)] = 0.5
    """Part of a layer's weights that sparsify sets to zero (algo.sparsity_pattern=unstructured)."""
    sparsity_pattern: str = UNSTRUCTURED
    """`unstructured`, or N:M: of M weights in a row along the input channels N are kept at most."""
    sparsity_mask: Annotated[str, OneOf(("magnitude", "error"))] = "error"
    """Which weights go: the smallest, or those whose loss the others make up for best (optimal brain surgeon)."""
    sparsity_skip: list[str] = field(default_factory=list)
    """Name patterns of layers that sparsify leaves alone; the first and the last are left alone anyway."""

    def __post_init__(self) -> None:
        """Check each option, then the pattern."""
        super().__post_init__()
        match = re.fullmatch(r"(\d+):(\d+)", self.sparsity_pattern)
        if match is None and self.sparsity_pattern != UNSTRUCTURED:
            raise UserError(
                f"algo.sparsity_pattern {show(self.sparsity_pattern)}: give unstructured, or N:M such as 2:4"
            )
        if match is not None and not 0 < int(match[1]) < int(match[2]):
            raise UserError(
                f"algo.sparsity_pattern {show(self.sparsity_pattern)}: of M weights 1 to M - 1 are kept, give one such "
                "as 2:4"
            )


@dataclass(frozen=True)
class Sparsify(UnitStep):
    """Pruning of each layer, on the outputs of the quantized layers before it; the remaining weights are rounded.

    Reads the quantized network's values; leaves codes, and the pruned float weight that later steps start from.
    """

    name = "sparsify"
    Options: ClassVar[type[StepOptions]] = SparsifyOptions
    never_after: ClassVar[Mapping[str, str]] = {
        other: _PRUNED.format(other)
        for other in ("update_bn", "bias_correction", "gptq", "adaround", "brecq", "qdrop", "tune")
    }

    options: SparsifyOptions
    spared: frozenset[str] = field(default=frozenset(), kw_only=True)
    """Names of the layers that are left alone."""
    calib: CalibConfig = field(default_factory=CalibConfig, kw_only=True)

    @property
    def granularity(self) -> str:
        """Size of a unit: a layer."""
        return "layer"

    def check(self, plan: Plan) -> None:
        """Check that each pattern of `algo.sparsity_skip` fits a layer."""
        from dipo.graph.constraints import check_patterns

        check_patterns("algo.sparsity_skip", self.options.sparsity_skip, list(plan.layers), list(plan.layers))

    def bound(self, state: NetworkState) -> Self:
        """Return the step with the layers that it leaves alone."""
        from dipo.graph.plan import edge_layers

        skip = self.options.sparsity_skip
        named = {name for name in state.plan.layers if any(fnmatchcase(name, pattern) for pattern in skip)}
        return dataclasses.replace(self, spared=frozenset(named | edge_layers(state.model)), calib=state.calib)

    def solve(self, work: UnitWork) -> UnitResult:
        """Prune the unit's layer."""
        from dipo.algo.sparsity import pruned_layers
        from dipo.algo.unit_solver import UnitResult

        if self.spared.intersection(work.unit.layers):
            return UnitResult({}, {})
        return UnitResult(pruned_layers(work.pair, work.unit, cfg=self.options, calib=self.calib), {})
