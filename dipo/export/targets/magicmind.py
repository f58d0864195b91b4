"""Cambricon MagicMind: ranges for a script that gives each to `set_dynamic_range` as `mm.Range(min, max)`.

`magicmind_quant_param.json` is `{"blob_range": {tensor: {"min", "max"}}}`. MagicMind finds the ranges of the weights
itself; a script asks for the range of every node's outputs, so values that stay float are included.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from dipo.export.range_file import Claim, Names
from dipo.export.target import DEPLOYED, QUANTIZED, Export, Target, TargetFile, TargetOptions
from dipo.graph.target_spec import TargetSpec


def read_ranges(text: str, names: Names) -> Iterator[Claim]:
    """Read the ranges back."""
    for name, ends in json.loads(text)["blob_range"].items():
        yield names.claim(name, low=ends["min"], high=ends["max"])


class MagicMind(Target[TargetOptions]):
    """Cambricon MagicMind."""

    spec = TargetSpec(
        name="magicmind",
        operators=frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"}),
        weight_symmetric=False,
        weight_per_channel=True,
        act_symmetric=False,
        act_signed=False,
        int32_bias=False,
        fuse_residual_add=False,
        weight_widths=(8,),
        act_widths=(8,),
        ranges_beside=True,
    )
    files = (
        QUANTIZED,
        DEPLOYED,
        TargetFile(
            "magicmind_quant_param.json",
            read=read_ranges,
            elsewhere="the user's script for MagicMind reads it, which comes with its SDK alone",
        ),
    )

    def write(self, export: Export, options: TargetOptions) -> list[Path]:
        """Write the models and the ranges.

        Raises:
            UserError: A quantized layer's input has no range, or not 8 bits; nothing is written.
        """
        from dipo.export.ranges import Encoding, all_ranges, check_coverage, check_widths
        from dipo.graph.accessors import name_of
        from dipo.graph.layers import layers_of

        del options
        check_widths(self.spec, export.quantized)
        known = all_ranges(export.model, export.quantized.activations, export.beside)
        layers = [layer for layer in layers_of(export.model) if layer.name in export.quantized.layers]
        check_coverage(self.name, [name_of(layer.input) for layer in layers if layer.input is not None], known)
        grids = {name: Encoding(qparams) for name, qparams in known.items()}
        ranges = {name: {"min": float(grid.min), "max": float(grid.max)} for name, grid in grids.items()}
        return [
            *export.write_models(self.spec),
            export.write_json("magicmind_quant_param.json", {"blob_range": ranges}),
        ]


TARGET = MagicMind()
