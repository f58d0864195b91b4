"""Texas Instruments TIDL: ranges of all layers, which its import takes in the place of its own calibration.

`tidl_quant_params.prototxt` is protobuf text (`TIDLNetQuantParams`); its path goes into the compile option
`advanced_options:quant_params_proto_path`. TIDL reads the ranges alone, and the values of the biases, and derives the
scales; it takes the file only where the whole network runs on the accelerator. It knows a layer by its type and by the
name of what it makes, behind the Relu or Clip that it is fused with. The other way is `quantized.onnx` itself, with
`advanced_options:prequantized_model=1`.

TIDL's style with scales that are powers of two takes only those; for the other set `precision.power_of_two=false`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from dipo.errors import UserError
from dipo.export.float_file import write_models
from dipo.export.forms import QDQ, Form
from dipo.export.platforms import whole
from dipo.export.ranges import Encoding, LayerRanges, layer_ranges
from dipo.export.text_files import Enum, Fields, proto_text, write_json, write_text
from dipo.graph import operators
from dipo.graph.accessors import name_of, node_name, sole_consumer
from dipo.graph.plan import QuantizedModel
from dipo.graph.rules import PlatformRules
from dipo.quant.spec import QParams

RULES = PlatformRules(
    name="ti",
    operators=whole.OPERATORS,
    fixed_ranges=whole.FIXED_RANGES,
    weight_symmetric=True,
    weight_per_channel=False,
    act_symmetric=True,
    act_signed=True,
    int32_bias=False,
    fuse_residual_add=False,
    quantize_outputs=True,
    weight_widths=(8,),
    act_widths=(8,),
    prefers_power_of_two=True,
    unsigned_where_positive=True,
)

LAYER_TYPES = {
    "Add": "EltWise", "AveragePool": "Pooling", "BatchNormalization": "BatchNorm", "Clip": "CLip", "Concat": "Concat",
    "Conv": "Convolution", "ConvTranspose": "Deconv2D", "DepthToSpace": "DepthToSpace", "Div": "Div", "Elu": "ELU",
    "Flatten": "Flatten", "Gather": "Gather", "Gemm": "InnerProduct", "GlobalAveragePool": "Pooling",
    "GlobalMaxPool": "Pooling", "HardSigmoid": "HardSigmoid", "Identity": "Identity", "LayerNormalization": "LayerNorm",
    "LeakyRelu": "LeakyRelu", "MatMul": "InnerProduct", "MaxPool": "Pooling", "Mul": "EltWise", "PRelu": "PReLU",
    "Pad": "Pad", "Pow": "Pow", "ReduceMean": "ReduceMean", "Relu": "ReLU", "Reshape": "Reshape", "Resize": "Resize",
    "Sigmoid": "Sigmoid", "Slice": "Slice", "Softmax": "SoftMax", "Split": "Split", "Sqrt": "Sqrt",
    "Squeeze": "Squeeze", "Sub": "Sub", "Tanh": "Tanh", "Transpose": "Transpose", "Upsample": "Resize",
}  # fmt: skip
"""TIDL's names of layers, `TIDL_<name>Layer`. Other operators run outside of it."""
_UNSIGNED, _SIGNED = 0, 1
"""TIDL's element types of 8 bits."""


def write(
    model: ir.Model, quantized: QuantizedModel, folder: Path, *, metadata: Mapping[str, str], form: Form = QDQ
) -> list[Path]:
    """Write `quantized.onnx`, `deploy.onnx`, `tidl_quant_params.prototxt`, and the ranges for scripts.

    Those are `ti_blob_range.txt`, a line `name min max` for each activation, and `ti_blob_range.json`,
    `{"blob_range": {name: [min, max]}}`.

    Args:
        model: The float graph.
        quantized: Its integer weights and activation scales.
        folder: Where the files go; exists.
        metadata: Goes into the ONNX files.
        form: How `quantized.onnx` is written.

    Returns:
        The files written.

    Raises:
        UserError: A tensor has no range, or not 8 bits; nothing is written.
    """
    known = whole.ranges_of_all("ti", model, quantized, weights=[8], activations=[8])
    ranges = {name: _ends(Encoding(qparams)) for name, qparams in known.items()}
    lines = "".join(f"{name} {low!r} {high!r}\n" for name, (low, high) in ranges.items())
    layers = list(_layers(model, quantized, known))
    network = [
        ("num_layers", len(layers)),
        ("quant_type", Enum("SYMMETRIC")),
        ("calib_type", Enum("PERTENSOR")),
        *(("layers", layer) for layer in layers),
    ]
    paths = write_models(model, quantized, folder, rules=RULES, metadata=metadata, form=form)
    return [
        *paths,
        write_text(folder / "tidl_quant_params.prototxt", proto_text(network)),
        write_text(folder / "ti_blob_range.txt", lines),
        write_json(folder / "ti_blob_range.json", {"blob_range": {name: list(ends) for name, ends in ranges.items()}}),
    ]


def _ends(grid: Encoding) -> tuple[float, float]:
    """A symmetric range as TIDL means it: from 0 where the codes are unsigned, else without the smallest code."""
    return (-float(grid.amax), float(grid.amax)) if grid.signed else (0.0, float(grid.max))


def _layers(model: ir.Model, quantized: QuantizedModel, known: Mapping[str, QParams]) -> Iterator[Fields]:
    weights = {layer.node: layer for layer in layer_ranges(model, quantized, known)}
    for value in model.graph.inputs:
        if name_of(value) in known:
            yield _layer(name_of(value), "TIDL_DataLayer", Encoding(known[name_of(value)]), None)
    for node in model.graph:
        names = [] if _is_fused(node) else [name_of(_made(value)) for value in node.outputs if value.name]
        for name in (name for name in names if name in known):
            if node.op_type not in LAYER_TYPES:
                raise UserError(
                    f"platform=ti: TIDL has no layer for node '{node_name(node)}' ({node.op_type}), whose output "
                    f"'{name}' would have no range: end the model before it, or take this target out"
                )
            kind = f"TIDL_{LAYER_TYPES[node.op_type]}Layer"
            yield _layer(name, kind, Encoding(known[name]), weights.get(node))


def _made(value: ir.Value) -> ir.Value:
    """What a layer makes in the place of a value, behind the activation functions that it is fused with."""
    while (reader := sole_consumer(value)) is not None and operators.of(reader).clips:
        value = reader.outputs[0]
    return value


def _is_fused(node: ir.Node) -> bool:
    """Whether an activation function belongs to the layer before it."""
    data = node.inputs[0] if node.inputs else None
    if not operators.of(node).clips or data is None or data.producer() is None:
        return False
    return sole_consumer(data) is not None


def _layer(name: str, kind: str, output: Encoding, layer: LayerRanges | None) -> Fields:
    fields: list[tuple[str, object]] = [
        ("layer_name", name),
        ("layer_type", kind),
        ("bit_depth", 8),
        ("outputs", _tensor(*_ends(output), signed=output.signed)),
    ]
    if layer is not None:
        fields.append(("weights", _tensor(*_ends(layer.weight), signed=True)))
        if layer.bias is not None:
            fields.append(("bias", _bias(layer.bias)))
    return fields


def _tensor(low: float, high: float, *, signed: bool) -> Fields:
    """TIDL's scale is a factor: codes to a unit."""
    return [
        ("min", low),
        ("max", high),
        ("size", 1),
        ("element_type", _SIGNED if signed else _UNSIGNED),
        ("scale", (127 if signed else 255) / high),
        ("zero_point", 0),
    ]


def _bias(bias: NDArray[np.float32]) -> Fields:
    """TIDL chooses the scale of a bias itself."""
    values = [float(value) for value in bias]
    return [
        ("min", min(values)),
        ("max", max(values)),
        ("size", len(values)),
        ("element_type", _SIGNED),
        *(("value", value) for value in values),
    ]
