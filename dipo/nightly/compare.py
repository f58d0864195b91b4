"""A job beside the same job of the night before: dipo is deterministic, so every difference has a cause."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dipo.nightly.history import Past
from dipo.nightly.layers import LayerState, read_arrays, same_bias, same_weights
from dipo.nightly.result import MODEL, JobResult


@dataclass(frozen=True)
class Divergence:
    """The first layer, in the order of the graph, that differs from the night before."""

    layer: str
    changes: tuple[str, ...]
    """Sentences on what changed, and by how much."""

    def __str__(self) -> str:
        return f"{self.layer}: {', '.join(self.changes)}"


@dataclass(frozen=True)
class Comparison:
    """Differences of a job's figures: this night's less those of the night before."""

    night: str
    """The one before."""
    accuracy: float | None
    """Points of the deployed model's top-1 gained."""
    cosine: float | None
    sqnr_db: float | None
    seconds_ratio: float | None
    """This night's seconds over the night before's."""
    changed_ranges: int
    num_ranges: int
    first: Divergence | None
    """None where every layer is bit by bit what it was."""
    options_changed: bool
    """The job's options are others than that night's."""

    @property
    def sentence(self) -> str:
        """The comparison in a line."""
        if self.first is None:
            return f"as in night {self.night}, bit by bit"
        other = ", with other options" if self.options_changed else ""
        ranges = f"{self.changed_ranges} of {self.num_ranges} ranges changed"
        return f"differs from night {self.night}{other}: {ranges}, first at {self.first}"


def compare(now: JobResult, past: Past) -> Comparison:
    """Compare a complete job with a complete one of an earlier night."""
    before = past.result
    ranges, old_ranges = _ranges(now.layers), _ranges(before.layers)
    return Comparison(
        night=past.night,
        accuracy=_less(now.accuracy_deployed, before.accuracy_deployed),
        cosine=_less(now.cosine, before.cosine),
        sqnr_db=_less(now.sqnr_db, before.sqnr_db),
        seconds_ratio=now.seconds / before.seconds if before.seconds else None,
        changed_ranges=sum(ranges.get(name) != old_ranges.get(name) for name in {*ranges, *old_ranges}),
        num_ranges=len(ranges),
        first=first_divergence(now, before),
        options_changed=now.options != before.options,
    )


def first_divergence(now: JobResult, before: JobResult) -> Divergence | None:
    """Return the first layer whose weights, scales or range differ; None where all are equal."""
    old = {layer.name: layer for layer in before.layers}
    for layer in now.layers:
        if layer.name not in old:
            return Divergence(layer.name, ("new",))
        changes = _changes(layer, old[layer.name], Path(now.folder) / MODEL, Path(before.folder) / MODEL)
        if changes:
            return Divergence(layer.name, tuple(changes))
    gone = [name for name in old if name not in {layer.name for layer in now.layers}]
    return Divergence(gone[0], ("gone",)) if gone else None


def _changes(now: LayerState, before: LayerState, model: Path, old_model: Path) -> list[str]:
    changes = []
    if now.weights != before.weights:
        changes.append(_weights(now, before, model, old_model))
    if now.weight_scale != before.weight_scale:
        changes.append(f"weight scale {_scales(now.weight_scale, before.weight_scale)}")
    if now.bias != before.bias:
        changes.append(_bias(now, before, model, old_model))
    if now.act_scale != before.act_scale:
        changes.append(f"activation scale {_from_to(before.act_scale, now.act_scale)}")
    if now.act_zero_point != before.act_zero_point:
        changes.append(f"activation zero point {_from_to(before.act_zero_point, now.act_zero_point)}")
    return changes


def _weights(now: LayerState, before: LayerState, model: Path, old_model: Path) -> str:
    """Return how many codes differ, where the night before's model still exists."""
    new_arrays, old_arrays = _stored(model, now.name), _stored(old_model, before.name)
    if not same_weights(new_arrays, now.weights) or not same_weights(old_arrays, before.weights):
        return "weights"
    codes = _difference(old_arrays.get("weights", []), new_arrays.get("weights", []))
    return f"weights ({codes} codes)" if codes else "zero points of the weights"


def _bias(now: LayerState, before: LayerState, model: Path, old_model: Path) -> str:
    new_arrays, old_arrays = _stored(model, now.name), _stored(old_model, before.name)
    if not same_bias(new_arrays, now.bias) or not same_bias(old_arrays, before.bias):
        return "bias"
    values = _difference(old_arrays.get("bias", []), new_arrays.get("bias", []))
    return f"bias ({values} values)" if values else "bias"


def _stored(model: Path, name: str) -> dict[str, list[NDArray[Any]]]:
    """Read a layer's arrays; empty where the folder of that night has been removed."""
    return read_arrays(model, name) if model.exists() else {}


def _difference(old: Sequence[NDArray[Any]], new: Sequence[NDArray[Any]]) -> str:
    """Return how many elements differ, of how many; empty where none does."""
    shapes, old_shapes = [array.shape for array in new], [array.shape for array in old]
    if shapes != old_shapes:
        return f"{_shown(old_shapes)} -> {_shown(shapes)}"
    differ = sum(int(np.count_nonzero(a != b)) for a, b in zip(old, new, strict=True))
    return f"{differ} of {sum(array.size for array in new)}" if differ else ""


def _shown(shapes: Sequence[tuple[int, ...]]) -> str:
    return ", ".join("x".join(map(str, shape)) for shape in shapes) or "none"


def _scales(now: tuple[float, ...] | None, before: tuple[float, ...] | None) -> str:
    if now is None or before is None or len(now) != len(before):
        return f"({len(before or ())} -> {len(now or ())} of them)"
    if len(now) == 1:
        return _from_to(before[0], now[0])
    steps = [(abs(a / b - 1) if b else np.inf, a, b) for a, b in zip(now, before, strict=True) if a != b]
    _, new, old = max(steps)
    return f"({len(steps)} of {len(now)} channels, most of all {_from_to(old, new)})"


def _from_to(before: float | None, now: float | None) -> str:
    """Format both numbers with as many digits as it takes to tell them apart."""
    if before is None or now is None:
        return f"{'none' if before is None else f'{before:.3g}'} -> {'none' if now is None else f'{now:.3g}'}"
    digits = next((digits for digits in range(3, 17) if f"{before:.{digits}g}" != f"{now:.{digits}g}"), 17)
    return f"{before:.{digits}g} -> {now:.{digits}g}"


def _less(now: float | None, before: float | None) -> float | None:
    return None if now is None or before is None else now - before


def _ranges(layers: Sequence[LayerState]) -> dict[str, tuple[float | None, int | None]]:
    return {layer.range: (layer.act_scale, layer.act_zero_point) for layer in layers if layer.range is not None}
