"""Constant tables that a network reads rows of: embeddings of words, places, categories."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import onnx_ir as ir
import torch

from dipo.algo.calibrate import Calibration
from dipo.graph.accessors import array_of, name_of
from dipo.quant.observers import Observer, Statistics


def with_tables(calibration: Calibration, model: ir.Model) -> Calibration:
    """Return the statistics; what is read from a constant table, an embedding, has those of the whole table besides.

    Calibration reads few of a vocabulary's rows; later inputs read others, which would be cut off.
    """
    wider = {
        name: calibration.statistics[name].merge(_statistics_of(table))
        for name, table in _tables_read(model)
        if name in calibration.statistics
    }
    return replace(calibration, statistics=calibration.statistics | wider)


def _tables_read(model: ir.Model) -> Iterator[tuple[str, ir.Value]]:
    """Yield each value that a Gather reads from a constant float tensor, by name, and that tensor."""
    for node in model.graph:
        if node.op_type == "Gather":
            table = node.inputs[0]
            if table is not None and table.is_initializer() and table.dtype == ir.DataType.FLOAT:
                yield name_of(node.outputs[0]), table


def _statistics_of(table: ir.Value) -> Statistics:
    observer = Observer(name_of(table))
    observer.update(torch.tensor(array_of(table)))
    return observer.result()
