"""The samples fed to every consumer: some of the run's, or noise within the range of the input's grid."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from dipo.data.samples import InputSpec
from dipo.errors import UserError
from dipo.graph.input_axes import samples_first
from dipo.graph.passes.single_precision import OTHER_FLOATS
from dipo.verify.onnx_network import Network, declared_shape
from dipo.verify.sessions import options, outputs_of, session_of
from dipo.verify.verdict import Probe, Refused

THREADS = 1
SEED = 0
UNKNOWN = 4
"""Size of a dimension that the model leaves open, other than the batch."""


@dataclass(frozen=True)
class Feed:
    """Samples, and a phrase that says where they are from."""

    inputs: Mapping[str, NDArray[Any]]
    kind: str


def make_probe(feed: Feed, quantized: Path | None) -> Probe:
    """Run the quantized model without optimizations on the samples, and return these with its outputs.

    Raises:
        Refused: ONNX Runtime does not run the quantized model.
    """
    if quantized is None:
        return Probe(feed.inputs, {})
    try:
        session = session_of(quantized, options(threads=THREADS, optimized=False))
        outputs = outputs_of(session, feed.inputs, rows=Network.read(quantized).batch())
    except Exception as error:
        raise Refused(f"ONNX Runtime does not run {quantized}: {next(iter(str(error).splitlines()), '')}") from error
    return Probe(feed.inputs, outputs)


def feed_of(model: Path, *, data: Mapping[str, Any] | None, samples: int) -> Feed:
    """Return samples for a model: from a run's data where they still exist, else noise.

    Args:
        model: The file whose inputs are fed.
        data: The `data` section of the run's configuration; None: noise.
        samples: How many, at most.
    """
    network = Network.read(model)
    if data is not None and (data.get("path") or data.get("source")) is not None:
        try:
            return Feed(_samples(network, data, samples), "of the run's samples")
        except UserError:
            # Files that have moved since the run: the comparison needs numbers, not these.
            return Feed(_noise(network, samples), "of noise (the run's samples are not there any more)")
    return Feed(_noise(network, samples), "of noise")


def _samples(network: Network, data: Mapping[str, Any], samples: int) -> dict[str, NDArray[Any]]:
    from dipo.config import DataConfig
    from dipo.section import from_plain

    found = from_plain(DataConfig, data).opened([_spec(value, axis) for value, axis in _with_axes(network)])
    dataset = found.eval or found.calib
    return dict(dataset.read(0, min(samples, len(dataset))).inputs)


def _noise(network: Network, samples: int) -> dict[str, NDArray[Any]]:
    """Draw samples uniformly over the range of the input's grid where it has one, else normally."""
    rng = np.random.default_rng(SEED)
    grids = {grid.name: grid for grid in network.grids() if grid.scale.ndim == 0}
    made: dict[str, NDArray[Any]] = {}
    for value, axis in _with_axes(network):
        spec = _spec(value, axis)
        shape = (samples, *(UNKNOWN if size is None else size for size in spec.sample_shape))
        grid = grids.get(value.name)
        if grid is None:
            made[value.name] = spec.as_taken(rng.normal(size=shape))
        else:
            low, high = ((code - int(grid.zero_point)) * float(grid.scale) for code in grid.limits)
            made[value.name] = spec.as_taken(rng.uniform(low, high, size=shape))
    return made


def _with_axes(network: Network) -> list[tuple[onnx.ValueInfoProto, int | None]]:
    """Return the inputs with the axes of their samples."""
    axes = network.input_axes()
    return [(value, axes[value.name]) for value in network.inputs()]


def _spec(value: onnx.ValueInfoProto, axis: int | None) -> InputSpec:
    """Return the specification of an input; floats are given as float32, rounded to the input's type."""
    kind = value.type.tensor_type.elem_type
    own = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind))
    sizes = samples_first(declared_shape(value), axis)[1:]
    shape = (None, *(size if isinstance(size, int) else None for size in sizes))
    if kind in OTHER_FLOATS:
        return InputSpec(value.name, shape, np.dtype(np.float32), in_file=own, axis=axis)
    return InputSpec(value.name, shape, own, axis=axis)
