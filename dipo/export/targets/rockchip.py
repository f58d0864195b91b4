"""Shared parts of Rockchip's two targets: ranges of all values, as YAML and as JSON.

The toolkits choose the range of a Sigmoid's input themselves, so it is left out, and quantize the inputs of a Concat
like its output.
"""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from dipo.export.target import Export, Target, TargetOptions
from dipo.export.targets import full_integer
from dipo.graph.target_spec import TargetSpec

if TYPE_CHECKING:
    import onnx_ir as ir

    from dipo.graph.plan import QuantizedModel
    from dipo.quant.spec import QParams

SPEC = TargetSpec(
    name="rv",
    operators=full_integer.OPERATORS,
    fixed_ranges=full_integer.FIXED_RANGES,
    weight_symmetric=False,
    weight_per_channel=False,
    act_symmetric=False,
    act_signed=False,
    int32_bias=True,
    fuse_residual_add=False,
    quantize_outputs=True,
    weight_widths=(8,),
    act_widths=(8,),
    unify_concats=True,
)
PARAMETERS = "quantize_parameters"
"""Section of the file with the ranges."""


class Rockchip(Target[TargetOptions]):
    """A target with ranges in the form of a toolkit's `.quantization.cfg`."""

    layers_section: str
    """Section of the file, left empty, for the toolkit's own choices for layers."""

    def write(self, export: Export, options: TargetOptions) -> list[Path]:
        """Write the models, and the ranges as `<name>_quantized_param.yaml` and `.json`.

        Raises:
            UserError: A tensor has no range, or not 8 bits; nothing is written.
        """
        from dipo.export.ranges import unify_concats

        del options
        model, quantized = export.model, export.quantized
        known = unify_concats(model, full_integer.ranges_of_all(self.spec, model, quantized))
        content = {self.layers_section: {}, PARAMETERS: self.parameters(model, quantized, known)}
        # All files have the same content.
        unified = dataclasses.replace(quantized, activations={name: known[name] for name in quantized.activations})
        text = yaml.safe_dump(content, sort_keys=False, default_flow_style=False)
        return [
            *dataclasses.replace(export, quantized=unified).write_models(self.spec),
            export.write_text(f"{self.name}_quantized_param.yaml", text),
            export.write_json(f"{self.name}_quantized_param.json", content),
        ]

    @abstractmethod
    def parameters(self, model: ir.Model, quantized: QuantizedModel, known: Mapping[str, QParams]) -> dict[str, Any]:
        """Return the entries of the file, by the toolkit's names.

        Args:
            model: The float graph.
            quantized: Its integer weights and activation scales.
            known: The grids of all values that hold floats, by name.
        """


def feeds_sigmoid(value: ir.Value) -> bool:
    """Return whether a Sigmoid alone reads the value."""
    return [use.node.op_type for use in value.uses()] == ["Sigmoid"]
