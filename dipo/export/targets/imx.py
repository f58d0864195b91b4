"""NXP i.MX: scales that are powers of two, of activations and, channel by channel, of weights.

`imx_scale.json` is `{"blob_range": {tensor: [scale, ...]}}`: one scale for an activation, one for each channel of a
weight. Biases are left out: their scale is the product of the other two.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from dipo.errors import UserError
from dipo.export.range_file import Claim, Names
from dipo.export.target import DEPLOYED, QUANTIZED, Export, Target, TargetFile, TargetOptions
from dipo.export.targets import full_integer
from dipo.graph.target_spec import TargetSpec


def read_scales(text: str, names: Names) -> Iterator[Claim]:
    """Read the scales back."""
    for name, scales in json.loads(text)["blob_range"].items():
        yield names.claim(name, scale=scales)


class Imx(Target[TargetOptions]):
    """NXP i.MX."""

    spec = TargetSpec(
        name="imx",
        operators=full_integer.OPERATORS,
        fixed_ranges=full_integer.FIXED_RANGES,
        weight_symmetric=True,
        weight_per_channel=True,
        act_symmetric=True,
        act_signed=True,
        int32_bias=True,
        fuse_residual_add=False,
        quantize_outputs=True,
        power_of_two=True,
        weight_widths=(8,),
        act_widths=(8,),
    )
    files = (
        QUANTIZED,
        DEPLOYED,
        TargetFile(
            "imx_scale.json", read=read_scales, elsewhere="the tools of NXP read it, which come with their SDK alone"
        ),
    )

    def write(self, export: Export, options: TargetOptions) -> list[Path]:
        """Write the models and the scales.

        Raises:
            UserError: A tensor has no range, not 8 bits, or a scale that is no power of two; nothing is written.
        """
        import numpy as np

        from dipo.export.ranges import Encoding, layer_ranges

        del options
        known = full_integer.ranges_of_all(self.spec, export.model, export.quantized)
        grids = {name: Encoding(each) for name, each in known.items()}
        grids |= {layer.weight_name: layer.weight for layer in layer_ranges(export.model, export.quantized, known)}
        for name, grid in grids.items():
            if np.any(np.frexp(grid.scale)[0] != 0.5) or not grid.symmetric:
                raise UserError(
                    f"platform=imx: {name!r} has a scale that is no power of two or a zero point other than 0, leave "
                    "precision.power_of_two and precision.act_symmetric to the platform"
                )
        scales = {name: grid.scale.reshape(-1).tolist() for name, grid in grids.items()}
        return [*export.write_models(self.spec), export.write_json("imx_scale.json", {"blob_range": scales})]


TARGET = Imx()
