"""The form in which a network runs on the samples: several at a time, or one by one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from dipo.algo.activation_cache import cut
from dipo.data.samples import Datasets
from dipo.errors import UserError
from dipo.graph.decisions import decided_by_samples
from dipo.graph.find_samples import complete_types, find_rows, find_sample_axes
from dipo.graph.layers import layers_of
from dipo.graph.load import load
from dipo.graph.one_by_one import rows_of, set_rows
from dipo.graph.op_library import library_of, set_library
from dipo.graph.passes.batch_first import input_axes, runs_whole
from dipo.graph.passes.interface import fixed_batch
from dipo.graph.placement import is_float
from dipo.graph.sample_axis import SampleAxes
from dipo.graph.sizes import sized_by_numbers
from dipo.stages.sample_forms import in_groups, size_of_run

AT_A_TIME = 64
"""Samples that are read at a time."""


def form_that_runs(model: ir.Model, data: Datasets, path: Path) -> tuple[ir.Model, SampleAxes, Datasets]:
    """Return a network with the axes of its samples, and these, one at a time where it cannot take several.

    A network that was exported for a fixed number of samples and mixes them takes as many as one.

    Raises:
        UserError: Samples are left over, or the network is not valid.
    """
    two = data.calib.read(0, min(2, len(data.calib))).inputs
    together = _together(model, data, two)
    if together is not None and not _mixes_in_runs(model, together):
        return model, together, data
    try:
        several = _is_freed_from_several(model) and _hold_for_all(data, model)
        if several:
            data = in_groups(data, size_of_run(model), _axes_of(model))
            two = data.calib.read(0, min(2, len(data.calib))).inputs
        alone = load(path, takes_one=True, whole=several or runs_whole(model))
        set_library(alone, library_of(model))
        complete_types(alone, two)
        _refuse_vectors(alone, path)
        set_rows(alone, find_rows(alone, two))
        return alone, find_sample_axes(alone, two), data
    except UserError:
        raise
    except Exception:  # noqa: BLE001 - it is met again, and told, where the network is compared with its file
        return model, SampleAxes(), data


def _together(model: ir.Model, data: Datasets, two: Mapping[str, NDArray[Any]]) -> SampleAxes | None:
    """Return the axes of the samples in a network that runs on several; None for one that takes one at a time."""
    if rows_of(model) is not None or not _hold_for_all(data, model):
        return None
    try:
        complete_types(model, two)
        samples = find_sample_axes(model, two)
    except UserError:
        raise
    except Exception:  # noqa: BLE001 - one at a time may do
        return None
    # One that was exported for any number of samples, or several, and mixes them is none that takes one.
    return samples if _tells_apart(model, samples) or fixed_batch(model) != 1 else None


def _mixes_in_runs(model: ir.Model, samples: SampleAxes) -> bool:
    """Return whether an output of a network that takes several samples, and no other number, mixes them."""
    mixed = samples.mixed - sized_by_numbers(model)
    return _is_freed_from_several(model) and any(value.name in mixed for value in model.graph.outputs)


def _is_freed_from_several(model: ir.Model) -> bool:
    return size_of_run(model) > 1 and not runs_whole(model)


def _refuse_vectors(model: ir.Model, path: Path) -> None:
    """Refuse a layer that makes a vector: its channels lie on the axis on which those of several samples are joined.

    Raises:
        UserError: The network, which runs one sample at a time, has one.
    """
    for layer in layers_of(model):
        shape = layer.node.outputs[0].shape
        if shape is not None and len(shape) == 1:
            raise UserError(
                f"model.path={path}: layer {layer.name!r} makes a vector of one sample, without an axis for the batch, "
                "export the model with a batch in its inputs"
            )


def _axes_of(model: ir.Model) -> dict[str, int | None]:
    """Return the axis of the samples in each input, the first where nothing else is known."""
    return {**dict.fromkeys((value.name or "" for value in model.graph.inputs), 0), **input_axes(model)}


def _hold_for_all(data: Datasets, model: ir.Model) -> bool:
    """Return whether inputs without a batch have the same value in all samples, so that these can run together."""
    names = [name for name, axis in input_axes(model).items() if axis is None]
    first = data.calib.read(0, 1).inputs
    for dataset in filter(None, (data.calib, data.eval)) if names else ():
        for batch in cut(len(dataset), AT_A_TIME):
            inputs = dataset.read(batch.start, batch.stop).inputs
            if any((inputs[name] != first[name]).any() for name in names):
                return False
    return True


def _tells_apart(model: ir.Model, samples: SampleAxes) -> bool:
    """Return whether samples can be told apart where they have to be.

    That is in all outputs but those whose size numbers decide on; and, in a network whose batch was fixed, in every
    float within it: what is mixed there, such as rows that are picked by constant places, was right for one batch, and
    so was the way that an If or a Loop took by its numbers.
    """
    values = list(model.graph.outputs)
    if fixed_batch(model) is not None:
        if decided_by_samples(model, {name for name, axis in _axes_of(model).items() if axis is not None}):
            return False
        values += [value for node in model.graph for value in node.outputs if is_float(value)]
    varying = sized_by_numbers(model)
    return not any(value.name in samples.mixed and value.name not in varying for value in values)
