"""Texas Instruments TIDL: ranges of all layers, which its import takes in place of its own calibration.

`tidl_quant_params.prototxt` is protobuf text (`TIDLNetQuantParams`); its path goes into the compile option
`advanced_options:quant_params_proto_path`. TIDL reads only the ranges and the values of the biases, and derives the
scales; it takes the file only if the whole network runs on the accelerator. It identifies a layer by its type and by
the name of its output, after the Relu or Clip with which it is fused. The other way is `quantized.onnx` itself, with
`advanced_options:prequantized_model=1`.

`ti_blob_range.txt` (`<tensor> <low> <high>`) and `ti_blob_range.json` are the ranges again, for scripts.

TIDL's mode for power-of-two scales takes only those; for its other mode set `precision.power_of_two=false`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from dipo.errors import UserError
from dipo.export.protobuf_text import Schema, parse
from dipo.export.range_file import Claim, Names
from dipo.export.target import DEPLOYED, QUANTIZED, Export, Target, TargetFile, TargetOptions
from dipo.export.targets import full_integer
from dipo.export.text_files import Enum, Fields, proto_text
from dipo.graph import operators
from dipo.graph.target_spec import TargetSpec

if TYPE_CHECKING:
    import numpy as np
    import onnx
    import onnx_ir as ir
    from numpy.typing import NDArray

    from dipo.export.ranges import Encoding, LayerRanges
    from dipo.graph.plan import QuantizedModel
    from dipo.quant.spec import QParams

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
"""Names of TIDL's layers, `TIDL_<name>Layer`, by operator; other operators run outside of it."""
PARAMETERS = Schema(
    {
        "TidlTensorQuantParams": [
            ("min", 1, "FLOAT", "OPTIONAL"),
            ("max", 2, "FLOAT", "OPTIONAL"),
            ("size", 3, "UINT32", "OPTIONAL"),
            ("element_type", 4, "UINT32", "OPTIONAL"),
            ("scale", 5, "DOUBLE", "REPEATED"),
            ("zero_point", 6, "UINT32", "REPEATED"),
            ("value", 7, "DOUBLE", "REPEATED"),
        ],
        "TidlLayerQuantParams": [
            ("layer_name", 1, "STRING", "OPTIONAL"),
            ("layer_type", 2, "STRING", "OPTIONAL"),
            ("bit_depth", 3, "UINT32", "OPTIONAL"),
            ("outputs", 4, "TidlTensorQuantParams", "REPEATED"),
            ("weights", 5, "TidlTensorQuantParams", "REPEATED"),
            ("bias", 6, "TidlTensorQuantParams", "REPEATED"),
            ("slope", 7, "TidlTensorQuantParams", "REPEATED"),
        ],
        "TIDLNetQuantParams": [
            ("num_layers", 1, "INT32", "OPTIONAL"),
            ("quant_type", 2, "TidlQuantType", "OPTIONAL"),
            ("calib_type", 3, "TidlCalibType", "OPTIONAL"),
            ("layers", 4, "TidlLayerQuantParams", "REPEATED"),
        ],
    },
    enums={
        "TidlQuantType": {"SYMMETRIC": 1, "ASYMMETRIC": 2},
        "TidlCalibType": {"PERTENSOR": 1, "PERCHANNEL": 2},
    },
)
"""TIDL's definition of its parameters."""
_UNSIGNED, _SIGNED = 0, 1
"""TIDL's element types of 8 bits."""


def read_parameters(text: str, names: Names) -> Iterator[Claim]:
    """Read the parameters back: the ranges of each layer's output and weight."""
    producers = {name: node for node in names.nodes.values() for name in node.output}
    for layer in parse(text, PARAMETERS).layers:
        for tensor in layer.outputs[:1]:
            yield names.claim(layer.layer_name, low=tensor.min, high=tensor.max)
        node = layer_of(layer.layer_name, producers)
        for name in node.input[1:2] if node is not None and layer.weights else ():
            yield names.claim(name, low=layer.weights[0].min, high=layer.weights[0].max)


def layer_of(name: str, producers: Mapping[str, onnx.NodeProto]) -> onnx.NodeProto | None:
    """Return the node that computes a value, before the activation functions with which it is fused."""
    node = producers.get(name)
    while node is not None and operators.of(node).clips and node.input[0] in producers:
        node = producers[node.input[0]]
    return node


def read_blobs(text: str, names: Names) -> Iterator[Claim]:
    """Read the JSON back."""
    for name, (low, high) in json.loads(text)["blob_range"].items():
        yield names.claim(name, low=low, high=high)


def read_lines(text: str, names: Names) -> Iterator[Claim]:
    """Read the lines of text back."""
    for line in text.splitlines():
        name, low, high = line.rsplit(" ", 2)
        yield names.claim(name, low=low, high=high)


class Ti(Target[TargetOptions]):
    """Texas Instruments TIDL."""

    spec = TargetSpec(
        name="ti",
        operators=full_integer.OPERATORS,
        fixed_ranges=full_integer.FIXED_RANGES,
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
    files = (
        QUANTIZED,
        DEPLOYED,
        TargetFile("tidl_quant_params.prototxt", read=read_parameters, readers=("protobuf, for TIDL",)),
        TargetFile("ti_blob_range.txt", read=read_lines, elsewhere="the user's scripts read it"),
        TargetFile("ti_blob_range.json", read=read_blobs, elsewhere="the user's scripts read it"),
    )

    def write(self, export: Export, options: TargetOptions) -> list[Path]:
        """Write the models, the parameters, and the ranges for scripts.

        Raises:
            UserError: A tensor has no range, not 8 bits, or comes from an operator without a TIDL layer; nothing is
                written.
        """
        from dipo.export.ranges import Encoding

        del options
        known = full_integer.ranges_of_all(self.spec, export.model, export.quantized)
        ranges = {name: _ends(Encoding(qparams)) for name, qparams in known.items()}
        lines = "".join(f"{name} {low!r} {high!r}\n" for name, (low, high) in ranges.items())
        layers = list(_layers(export.model, export.quantized, known))
        network = [
            ("num_layers", len(layers)),
            ("quant_type", Enum("SYMMETRIC")),
            ("calib_type", Enum("PERTENSOR")),
            *(("layers", layer) for layer in layers),
        ]
        blobs = {"blob_range": {name: list(ends) for name, ends in ranges.items()}}
        return [
            *export.write_models(self.spec),
            export.write_text("tidl_quant_params.prototxt", proto_text(network)),
            export.write_text("ti_blob_range.txt", lines),
            export.write_json("ti_blob_range.json", blobs),
        ]


TARGET = Ti()


def _ends(grid: Encoding) -> tuple[float, float]:
    """Return a symmetric range in TIDL's sense: from 0 for unsigned codes, else without the smallest code."""
    return (-float(grid.amax), float(grid.amax)) if grid.signed else (0.0, float(grid.max))


def _layers(model: ir.Model, quantized: QuantizedModel, known: Mapping[str, QParams]) -> Iterator[Fields]:
    from dipo.export.ranges import Encoding, layer_ranges
    from dipo.graph.accessors import name_of, node_name
    from dipo.graph.passes.interface import entering

    weights = {layer.node: layer for layer in layer_ranges(model, quantized, known)}
    inputs = entering(model)
    for value in inputs:
        if name_of(value) in known:
            yield _layer(name_of(value), "TIDL_DataLayer", Encoding(known[name_of(value)]), None)
    for node in model.graph:
        names = (
            []
            if _is_fused(node) or node.outputs[0] in inputs
            else [name_of(_made(value)) for value in node.outputs if value.name]
        )
        for name in (name for name in names if name in known):
            if node.op_type not in LAYER_TYPES:
                raise UserError(
                    f"platform=ti: TIDL has no layer for node '{node_name(node)}' ({node.op_type}), whose output "
                    f"'{name}' would have no range: end the model before it, or take this target out"
                )
            kind = f"TIDL_{LAYER_TYPES[node.op_type]}Layer"
            yield _layer(name, kind, Encoding(known[name]), weights.get(node))


def _made(value: ir.Value) -> ir.Value:
    """Return the value that a layer writes in place of this one, after the activation functions fused with it."""
    from dipo.graph.accessors import sole_consumer

    while (reader := sole_consumer(value)) is not None and operators.of(reader).clips:
        value = reader.outputs[0]
    return value


def _is_fused(node: ir.Node) -> bool:
    """Return whether the node is an activation function fused with the layer before it."""
    from dipo.graph.accessors import sole_consumer

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
    """Return a tensor's parameters; TIDL's scale is a factor, codes per unit."""
    return [
        ("min", low),
        ("max", high),
        ("size", 1),
        ("element_type", _SIGNED if signed else _UNSIGNED),
        ("scale", (127 if signed else 255) / high),
        ("zero_point", 0),
    ]


def _bias(bias: NDArray[np.float32]) -> Fields:
    """Return a bias's parameters, without a scale, which TIDL chooses itself."""
    values = [float(value) for value in bias]
    return [
        ("min", min(values)),
        ("max", max(values)),
        ("size", len(values)),
        ("element_type", _SIGNED),
        *(("value", value) for value in values),
    ]
