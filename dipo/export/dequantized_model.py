"""Writing of the dequantized network in float, for consumers that read the ranges from another file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir

from dipo.export.onnx_file import has_external_data, save_model
from dipo.graph.accessors import node_name
from dipo.graph.plan import QuantizedModel


def write_float(model: ir.Model, quantized: QuantizedModel, path: Path, *, metadata: Mapping[str, str]) -> None:
    """Write the float graph with dequantized weights and the biases that belong to them.

    The weights lie on their grid, so a consumer that rounds them on the same grid gets the same codes.

    Args:
        model: The float graph that was planned and calibrated; it is not changed.
        quantized: Its integer weights, by the names of that graph.
        path: The ONNX file.
        metadata: Metadata of the file.

    Raises:
        onnx.checker.ValidationError: The result is not valid ONNX.
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
    for name, weight in quantized.recurrent.items():
        exported.graph.initializers[name].const_value = ir.tensor(weight.weight, name=name)
    exported.metadata_props.update(metadata)
    save_model(exported, path, external=has_external_data(model))
