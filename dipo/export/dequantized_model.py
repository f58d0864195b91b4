"""Writes the float network that a quantized one stands for, for consumers that read the ranges from another file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir

from dipo.export.onnx_file import has_external_data, save_model
from dipo.graph.accessors import node_name
from dipo.graph.plan import QuantizedModel


def write_float(model: ir.Model, quantized: QuantizedModel, path: Path, *, metadata: Mapping[str, str]) -> None:
    """Write the float graph with the weights that the codes stand for, and the biases that belong to them.

    A consumer that rounds these weights on the same grid finds the codes again: they lie on it.

    Args:
        model: The float graph that was planned and calibrated; it is left as it is.
        quantized: Its integer weights, by the names of that graph.
        path: The ONNX file.
        metadata: Goes into the file.

    Raises:
        onnx.checker.ValidationError: What came out is not valid ONNX.
    """
    exported = model.clone()
    for node in exported.graph:
        layer = quantized.layers.get(node_name(node))
        if layer is None:
            continue
        arrays = {1: layer.weight} if layer.bias is None else {1: layer.weight, 2: layer.bias}
        for index, array in arrays.items():
            value = node.inputs[index]
            assert value is not None
            value.const_value = ir.tensor(array, name=value.name)
    exported.metadata_props.update(metadata)
    save_model(exported, path, external=has_external_data(model))
