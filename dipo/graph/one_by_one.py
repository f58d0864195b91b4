"""Networks that take one sample at a time, run on several: each node runs once for each sample.

Some networks cannot take a batch: their exporter has written sizes into them that hold for one sample alone, or dropped
the axis of the samples. A value of several samples is then what their values are one by one, joined along the first
axis; so everything that keeps values by sample can work with it (`SampleAxis`: some rows of each sample, together).
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import torch

from dipo.graph.ops.reader import TorchOp

_KEY = "dipo.rows"
"""Entry of a model's metadata, which goes to workers with it; no written file has it."""
NUMBER, RAGGED = 0, -1
"""In place of a number of rows: a single number for each sample; sizes that differ between samples."""


def rows_of(model: ir.Model) -> Mapping[str, int] | None:
    """Return the rows of one sample of each value that depends on the sample, by name.

    Returns:
        The rows, `NUMBER` or `RAGGED`; None for a network that takes batches.
    """
    text = model.metadata_props.get(_KEY)
    return None if text is None else _parsed(text)


@functools.lru_cache(maxsize=8)
def _parsed(text: str) -> Mapping[str, int]:
    rows: dict[str, int] = json.loads(text)
    return rows


def set_rows(model: ir.Model, rows: Mapping[str, int] | None) -> None:
    """Let a network run one sample at a time, or, with None, as it is; in place."""
    model.metadata_props.pop(_KEY, None)
    if rows is not None:
        model.metadata_props[_KEY] = json.dumps(rows)


def rows_between(first: Any, second: Any) -> int:
    """Return the rows of one sample of a value, which was computed for two of them."""
    if not isinstance(first, torch.Tensor) or first.shape != second.shape:
        return RAGGED
    return first.shape[0] if first.ndim else NUMBER


@dataclass(frozen=True, eq=False)
class OneByOne:
    """A node's function of the values of several samples."""

    function: TorchOp
    """Function of the values of one."""
    inputs: tuple[str | None, ...]
    outputs: tuple[str, ...]
    rows: Mapping[str, int]
    """See `rows_of`."""

    def __call__(self, *values: Any) -> Any:
        """Run the node for each sample; once where it reads no values of samples."""
        counts = [self._count(name, value) for name, value in zip(self.inputs, values, strict=True)]
        num = next((count for count in counts if count is not None), None)
        if num is None:
            return self.function(*values)
        made = []
        for index in range(num):
            own = [self._of(name, value, index) for name, value in zip(self.inputs, values, strict=True)]
            result = self.function(*own)
            made.append(result if isinstance(result, tuple) else (result,))
        names = (*self.outputs, *[""] * len(made[0]))
        return tuple(self._joined(name, parts) for name, parts in zip(names, zip(*made, strict=True), strict=False))

    def _count(self, name: str | None, value: Any) -> int | None:
        rows = None if name is None else self.rows.get(name)
        return None if rows is None else len(value) // max(1, rows)

    def _of(self, name: str | None, value: Any, index: int) -> Any:
        rows = None if name is None else self.rows.get(name)
        if rows is None:
            return value
        return value[index] if rows in {NUMBER, RAGGED} else value[index * rows : (index + 1) * rows]

    def _joined(self, name: str, parts: Sequence[Any]) -> Any:
        rows = self.rows.get(name, RAGGED)
        if rows == RAGGED:
            return list(parts)
        return torch.stack(list(parts)) if rows == NUMBER else torch.cat(list(parts))


def one_by_one(model: ir.Model, function: TorchOp, inputs: tuple[str | None, ...], outputs: tuple[str, ...]) -> TorchOp:
    """Return a node's function as its model runs it."""
    rows = rows_of(model)
    return function if rows is None else OneByOne(function, inputs, outputs, rows)


def of_one(function: TorchOp) -> TorchOp:
    """Return the function of the values of one sample."""
    return function.function if isinstance(function, OneByOne) else function


def with_function(function: TorchOp, other: TorchOp) -> TorchOp:
    """Return `other` in the place of a node's function, run as that is."""
    return dataclasses.replace(function, function=other) if isinstance(function, OneByOne) else other
