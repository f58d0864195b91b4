"""The values by which two networks are compared: the outputs, or what those are made from that have no sample axis.

A detector ends with boxes of which each image has another number: they follow from scores and boxes that have a row for
each sample, and these stand for them.
"""

from __future__ import annotations

from collections.abc import Iterator, Set

import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult

from dipo.graph.accessors import name_of
from dipo.graph.sample_axis import SampleAxes

_KEY = "dipo.outputs_in_file"


def stand_in_outputs(model: ir.Model, varying: Set[str], samples: SampleAxes) -> list[str]:
    """Let values with a sample axis be the outputs of a model in place of those that have none; in place.

    Args:
        model: A model that `graph.load` has normalised.
        varying: Values without a sample axis for which others may stand.
        samples: Where the samples lie in each value.

    Returns:
        Names of the outputs that others stand for, or that nothing can be compared by.
    """
    outputs = list(model.graph.outputs)
    without = [name_of(value) for value in outputs if value.name in varying]
    if not without:
        return []
    compared = dict.fromkeys(found for value in outputs for found in _nearest(value, varying, samples))
    model.graph.meta[_KEY] = [name_of(value) for value in outputs]
    model.graph.outputs[:] = list(compared)
    return without


def outputs_in_file(model: ir.Model) -> frozenset[str]:
    """Return the names of a network's outputs, those included for which others stand."""
    names: list[str] = model.graph.meta.get(_KEY, [])
    return frozenset((*names, *(name_of(value) for value in model.graph.outputs)))


def _nearest(value: ir.Value, varying: Set[str], samples: SampleAxes) -> Iterator[ir.Value]:
    """Yield the nearest values that have a sample axis, from this one upwards."""
    if value.name not in varying:
        yield value
        return
    node = value.producer()
    for source in () if node is None else node.inputs:
        if source is None or source.const_value is not None or source.name in samples.same:
            continue
        if source.is_graph_input():
            continue
        yield from _nearest(source, varying, samples)


class RestoreOutputs(InPlacePass):
    """Give a model the outputs back that it had before `stand_in_outputs`."""

    def call(self, model: ir.Model) -> PassResult:
        """Restore the outputs; a model without a record is left as it is."""
        names: list[str] | None = model.graph.meta.pop(_KEY, None)
        if names is None:
            return PassResult(model, modified=False)
        values = {value.name: value for value in (*model.graph.inputs, *(v for n in model.graph for v in n.outputs))}
        model.graph.outputs[:] = [values[name] for name in names]
        return PassResult(model, modified=True)
