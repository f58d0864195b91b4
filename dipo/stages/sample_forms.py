"""The forms in which samples may be stored for a network's inputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TypeVar

import onnx_ir as ir

from dipo.data.grouped import grouped
from dipo.data.samples import Datasets, InputSpec
from dipo.errors import UserError
from dipo.graph.accessors import name_of
from dipo.graph.input_axes import InputAxes, samples_first
from dipo.graph.passes.batch_first import axes_in_file, input_axes, runs_whole
from dipo.graph.passes.interface import declared_types, fixed_batch

T = TypeVar("T")


def input_specs(model: ir.Model, *, source: str) -> list[InputSpec]:
    """Return the specifications of the model's inputs that samples have to fit.

    Args:
        model: The normalised model.
        source: Its name in messages.

    Raises:
        UserError: An input has no declared shape or type.
    """
    specs, types = [], declared_types(model)
    for value in model.graph.inputs:
        if value.shape is None or value.dtype in (None, ir.DataType.UNDEFINED):
            raise UserError(f"{source}: input {value.name!r} has no declared shape and type, export it with both")
        shape = tuple(size if isinstance(size, int) else None for size in value.shape)
        assert value.dtype is not None
        in_file = types[value.name].numpy() if value.name in types else None
        axis = input_axes(model).get(name_of(value), 0)
        specs.append(InputSpec(name_of(value), shape, value.dtype.numpy(), in_file=in_file, axis=axis))
    return specs


def in_one_of_the_forms(model: ir.Model, source: str, use: Callable[[Sequence[InputSpec]], T]) -> tuple[T, bool]:
    """Return what comes of a model's samples, and whether they are stored one by one though they run in groups.

    What a network takes in a run, all at once, is a sample; but whoever has samples does not store them so.

    Args:
        model: The normalised model.
        source: Its name in messages.
        use: Reads samples of these specifications.

    Raises:
        UserError: They are none.
    """
    specs = input_specs(model, source=source)
    try:
        return use(specs), False
    except UserError:
        if not runs_whole(model):
            raise
        try:
            return use(_one_by_one(specs, axes_in_file(model))), True
        except UserError:
            pass
        raise


def open_samples(model: ir.Model, source: str, use: Callable[[Sequence[InputSpec]], Datasets]) -> Datasets:
    """Return the samples of a model, each what it takes in a run, see `in_one_of_the_forms`."""
    found, apart = in_one_of_the_forms(model, source, use)
    return in_groups(found, size_of_run(model), axes_in_file(model)) if apart else found


def size_of_run(model: ir.Model) -> int:
    """Return the number of samples that the file of a model takes in a run; 1 where it takes any number."""
    if not runs_whole(model):
        return fixed_batch(model) or 1
    shapes = {name_of(value): value.shape for value in model.graph.inputs if value.shape is not None}
    sizes = (shapes[name][axis + 1] for name, axis in axes_in_file(model).items() if axis is not None)
    return next((size for size in sizes if isinstance(size, int)), 1)


def in_groups(data: Datasets, size: int, axes: InputAxes) -> Datasets:
    """Return samples as a network takes them that runs on several at a time.

    Raises:
        UserError: Samples are left over.
    """
    evaluation = None if data.eval is None else grouped(data.eval, size, axes)
    return Datasets(calib=grouped(data.calib, size, axes), eval=evaluation)


def _one_by_one(specs: Sequence[InputSpec], axes: InputAxes) -> list[InputSpec]:
    found = []
    for spec in specs:
        shape = samples_first(spec.sample_shape, axes[spec.name])
        sizes = tuple(size if isinstance(size, int) else None for size in shape)
        found.append(dataclasses.replace(spec, shape=sizes, axis=axes[spec.name]))
    return found
