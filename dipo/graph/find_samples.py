"""Where the samples lie in a network's values, found by running it on two of them, apart and together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import onnx_ir as ir
import torch
from numpy.typing import NDArray

from dipo.graph.accessors import name_of
from dipo.graph.one_by_one import RAGGED, rows_between, rows_of
from dipo.graph.sample_axis import FIRST, CountedValue, SampleAxes, SampleAxis, split
from dipo.graph.sizes import computed_from_sizes, sized_by_numbers
from dipo.graph.torch_module import GraphModule, Step, channels_last

SAME = 1e-3
"""Largest difference from another order of rounding, over a value's largest number."""
OTHER_SAMPLE = 0.75
"""Factor on the second sample's numbers where there is but one sample."""


def find_sample_axes(model: ir.Model, samples: Mapping[str, NDArray[Any]]) -> SampleAxes:
    """Return where the samples lie in every value of a network.

    The network runs node by node on two samples apart and together, so that no more than the live values are held.

    Args:
        model: A model that `graph.load` has normalised.
        samples: One sample or more of every input, [n, ...].

    Raises:
        RuntimeError, IndexError: torch cannot run the network on these samples.
    """
    rows = rows_of(model)
    if rows is not None:
        return _axes_of_rows(model, rows)
    first, second = _two_samples(samples)
    both = {name: torch.cat([first[name], second[name]]) for name in first}
    odd: dict[str, SampleAxis] = {}
    same: set[str] = set()
    mixed: set[str] = set()
    counted: dict[str, CountedValue] = {}
    sizes, varying = computed_from_sizes(model), sized_by_numbers(model)
    outputs = {value.name for value in model.graph.outputs}
    made = [name_of(value) for node in model.graph for value in node.outputs if value.name]
    module = GraphModule(model, outputs=made).eval()
    with torch.inference_mode():
        for step, name, seen in _in_lockstep(module, (first, second, both)):
            # Two samples with as many boxes each say nothing of others.
            if name in varying or not all(isinstance(value, torch.Tensor) for value in seen):
                mixed.add(name)
                continue
            near = [odd[source] for source in step.inputs if source in odd]
            known = CountedValue.between(seen[0], seen[2]) if name in sizes and torch.equal(*seen[:2]) else None
            axis = _axis_of(*seen, near=near) if known is None else None
            if axis is None:
                # What follows from the number of samples is no output that each of them has.
                has_rows = name in outputs and seen[0].shape != seen[2].shape
                (same if _is_same(*seen) and not has_rows else mixed).add(name)
                counted |= {} if known is None else {name: known}
            elif axis != FIRST:
                odd[name] = axis
        if any(value.step.any() for value in counted.values()):
            three = {name: torch.cat([both[name], first[name]]) for name in first}
            counted = _confirmed(counted, module, three)
    return SampleAxes(odd, frozenset(same), frozenset(mixed), counted)


def complete_types(model: ir.Model, samples: Mapping[str, NDArray[Any]]) -> None:
    """Record shapes and types of values, in place, where none could be inferred: behind operators of other domains.

    Args:
        model: A model that `graph.load` has normalised.
        samples: One sample or more of every input, [n, ...].

    Raises:
        RuntimeError, IndexError: torch cannot run the network on these samples.
    """
    unknown = {
        name_of(value): value
        for node in model.graph
        for value in node.outputs
        if value.name and (value.shape is None or value.dtype is None)
    }
    if not unknown:
        return
    first, second = _two_samples(samples)
    both = {name: torch.cat([first[name], second[name]]) for name in first}
    runs = (first,) if rows_of(model) is not None else (first, both)
    with torch.inference_mode():
        for _, name, seen in _in_lockstep(GraphModule(model, outputs=list(unknown)).eval(), runs):
            if name in unknown and all(isinstance(value, torch.Tensor) for value in seen):
                _complete(unknown[name], seen)


def _complete(value: ir.Value, seen: Sequence[torch.Tensor]) -> None:
    """Record the shape and the type of a value that was computed for one sample and, in some networks, for two."""
    if value.dtype is None:
        value.dtype = ir.DataType.from_numpy(seen[0].numpy().dtype)
    if value.shape is None and len({one.ndim for one in seen}) == 1:
        sizes = zip(*(one.shape for one in seen), strict=True)
        value.shape = ir.Shape([all_of[0] if len(set(all_of)) == 1 else None for all_of in sizes])


def find_rows(model: ir.Model, samples: Mapping[str, NDArray[Any]]) -> dict[str, int]:
    """Return the rows of one sample of each value that depends on the sample, for a network that runs one at a time.

    Args:
        model: A model that `graph.load` has normalised.
        samples: One sample or more of every input, [n, ...].

    Raises:
        RuntimeError, IndexError: torch cannot run the network on a sample.
    """
    first, second = _two_samples(samples)
    made = [name_of(value) for node in model.graph for value in node.outputs if value.name]
    rows = {name: first[name].shape[0] for name in first}
    varying = sized_by_numbers(model)
    with torch.inference_mode():
        for step, name, seen in _in_lockstep(GraphModule(model, outputs=made).eval(), (first, second)):
            if any(source in rows for source in step.inputs):
                rows[name] = RAGGED if name in varying else rows_between(*seen)
    return rows


def _axes_of_rows(model: ir.Model, rows: Mapping[str, int]) -> SampleAxes:
    """Return where the samples lie in the values of a network that runs one at a time."""
    made = {name_of(value) for node in model.graph for value in node.outputs if value.name}
    return SampleAxes(
        {name: SampleAxis(inner=num) for name, num in rows.items() if num > 1},
        frozenset(made - rows.keys()),
        frozenset(name for name, num in rows.items() if num == RAGGED),
    )


def _confirmed(
    counted: Mapping[str, CountedValue], module: GraphModule, three: Mapping[str, torch.Tensor]
) -> dict[str, CountedValue]:
    """Return what was found for one and two samples, without what does not hold for three."""
    found = dict(counted)
    for _, name, (seen,) in _in_lockstep(module, (three,)):
        if name in found and not torch.equal(found[name].of(3, seen.device), seen):
            del found[name]
    return found


def _two_samples(samples: Mapping[str, NDArray[Any]]) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Return the first two samples, or the only one and a changed copy of it."""
    first = {name: torch.from_numpy(array[:1]) for name, array in samples.items()}
    if all(len(array) > 1 for array in samples.values()):
        return first, {name: torch.from_numpy(array[1:2]) for name, array in samples.items()}
    changed = {name: one * OTHER_SAMPLE if one.is_floating_point() else one for name, one in first.items()}
    return first, changed


def _in_lockstep(
    module: GraphModule, runs: Sequence[Mapping[str, torch.Tensor]]
) -> Iterator[tuple[Step, str, list[torch.Tensor]]]:
    """Run a module on several inputs at a time; yield each node's values in all runs, with their name."""
    constants = {name: module.constant(name) for name in module.constant_names}
    live = [{**constants, **{name: channels_last(run[name]) for name in module.inputs}} for run in runs]
    for step in module.steps:
        made = []
        for values in live:
            results = step.function(*(None if name is None else values[name] for name in step.inputs))
            named = dict(zip(step.outputs, results if isinstance(results, tuple) else (results,), strict=False))
            values.update(named)
            made.append(named)
            for name in step.last_reads:
                del values[name]
        for name in filter(None, made[0]):
            yield step, name, [named[name] for named in made]


def _is_same(first: torch.Tensor, second: torch.Tensor, both: torch.Tensor) -> bool:
    """Return whether a value follows from no sample, or, if it holds no floats, from the number of samples alone.

    Floats that two samples have in common apart, and not together, come from a mean over the batch or the like.
    """
    if first.shape != second.shape or not _equal(first, second):
        return False
    return not first.is_floating_point() or (both.shape == first.shape and _equal(first, both))


def _axis_of(
    first: torch.Tensor, second: torch.Tensor, both: torch.Tensor, *, near: Sequence[SampleAxis]
) -> SampleAxis | None:
    """Return the axis along which two samples' values give the joint one; None if there is none."""
    if first.shape != second.shape or both.ndim != first.ndim:
        return None
    grown = [axis for axis in range(both.ndim) if both.shape[axis] != first.shape[axis]]
    if len(grown) != 1 or both.shape[grown[0]] != 2 * first.shape[grown[0]]:
        return None
    axis, rows = grown[0], first.shape[grown[0]]
    # Where more than one would do, as for rows that are all alike, the axis of what the node reads is the likely one.
    wished = [each.outer for each in near if rows % each.outer == 0]
    divisors = [outer for outer in range(1, rows + 1) if rows % outer == 0]
    for outer in dict.fromkeys((*wished, 1, rows, *divisors)):
        parts = [split(value, axis, outer, 1) for value in (first, second)]
        if _equal(torch.cat(parts, axis + 1).flatten(axis, axis + 2), both):
            return SampleAxis(axis, outer, rows // outer)
    return None


def _equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Return whether two values are equal, floats up to the order of rounding."""
    if not a.is_floating_point():
        return torch.equal(a, b)
    finite = b[b.isfinite()]
    largest = float(finite.abs().max()) if finite.numel() else 0.0
    return bool(torch.isclose(a, b, rtol=0.0, atol=SAME * largest, equal_nan=True).all())
