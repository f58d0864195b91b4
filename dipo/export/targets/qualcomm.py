"""Shared parts of Qualcomm's two targets: a float model, and encodings of all its tensors for a converter."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from dipo.export.range_file import Claim, Names
from dipo.export.target import Export, PlatformOptions, Target, TargetFile
from dipo.export.targets import full_integer
from dipo.graph.target_spec import TargetSpec
from dipo.section import OneOf

SCHEMAS = ("0.6.1", "1.0.0", "2.0.0")

SPEC = TargetSpec(
    name="snpe",
    operators=full_integer.OPERATORS,
    fixed_ranges=full_integer.FIXED_RANGES,
    weight_symmetric=False,
    weight_per_channel=False,
    act_symmetric=False,
    act_signed=False,
    int32_bias=True,
    fuse_residual_add=False,
    quantize_outputs=True,
    weight_widths=(2, 3, 4, 5, 6, 7, 8, 16),  # narrower weights are stored in the next wider of 4, 8 and 16 bits
    act_widths=(8, 16),
)
"""Specification of both; the converters silently calibrate tensors without encodings again, so all have one."""


@dataclass(frozen=True)
class EncodingsOptions(PlatformOptions):
    """Options of the encodings file."""

    schema: Annotated[str | None, OneOf(SCHEMAS)] = None
    """Schema of the encodings file (snpe, qnn); null: 0.6.1 for snpe, 1.0.0 for qnn."""


def read_encodings(text: str, names: Names) -> Iterator[Claim]:
    """Read encodings of any schema back; of a bias only its step, since no range extends over 32 bits."""
    from dipo.export.encodings import BIAS_BITS, entries_of
    from dipo.export.range_file import numbers

    content = json.loads(text)
    legacy = content["version"] not in {"1.0.0", "2.0.0"}
    for name, grid in entries_of(content):
        claim = names.claim(name, scale=grid.scale, offset=grid.offset)
        low, high = grid.offset * grid.scale, (grid.offset + (1 << grid.bits) - 1) * grid.scale
        if legacy:
            channels = {**content["activation_encodings"], **content["param_encodings"]}[name]
            low, high = (numbers([each[end] for each in channels]) for end in ("min", "max"))
        yield claim if grid.bits >= BIAS_BITS else replace(claim, low=low, high=high)


def encodings_file(name: str) -> TargetFile:
    """Return the description of a target's encodings file."""
    return TargetFile(name, read=read_encodings, readers=("AIMET",))


class Qualcomm(Target[EncodingsOptions]):
    """A target whose converter reads `deploy.onnx` and encodings, the file after it in `files`."""

    options_class = EncodingsOptions
    default_schema: str

    def write(self, export: Export, options: EncodingsOptions) -> list[Path]:
        """Write the models and the encodings.

        Raises:
            UserError: A tensor has no range or a width that the target does not take; nothing is written.
        """
        from dipo.export.encodings import encodings
        from dipo.export.ranges import Encoding, layer_ranges

        model, quantized = export.model, export.quantized
        known = full_integer.ranges_of_all(self.spec, model, quantized)
        constants = full_integer.constants_of_all(model, quantized, symmetric=bool(self.spec.weight_symmetric))
        content = encodings(
            {name: Encoding(each) for name, each in known.items()},
            list(layer_ranges(model, quantized, known)),
            {name: Encoding(each) for name, each in constants.items()},
            schema=options.schema or self.default_schema,
        )
        return [*export.write_models(self.spec), export.write_json(self.files[-1].name, content)]
