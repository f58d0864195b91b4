"""Qualcomm AI Engine Direct (QNN): a float model, and encodings for its converter.

`qnn-onnx-converter --input_network deploy.onnx --quantization_overrides qnn_encodings.json --bias_bitwidth 32`. The HTP
takes symmetric weights with a scale for each channel, and as AIMET one for a transposed convolution with groups: ONNX
Runtime's provider refuses scales along either of its axes. Schema 2.0.0 has the biases too.
"""

from __future__ import annotations

import dataclasses

from dipo.export.target import DEPLOYED, QUANTIZED
from dipo.export.targets.qualcomm import SPEC, Qualcomm, encodings_file
from dipo.graph.target_spec import WeightForm


class Qnn(Qualcomm):
    """Qualcomm AI Engine Direct."""

    spec = dataclasses.replace(
        SPEC,
        name="qnn",
        weight_symmetric=True,
        weight_per_channel=True,
        one_scale=frozenset({WeightForm.STACK, WeightForm.TRANSPOSED_GROUPS}),
    )
    files = (
        dataclasses.replace(QUANTIZED, readers=(*QUANTIZED.readers, "ONNX Runtime's QNN provider")),
        DEPLOYED,
        encodings_file("qnn_encodings.json"),
    )
    default_schema = "1.0.0"


TARGET = Qnn()
