"""A deploy target as another package brings it: this file, and its entry point in the group `dipo.targets`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from dipo.errors import UserError
from dipo.export.range_file import Claim, Names
from dipo.export.target import DEPLOYED, QUANTIZED, Export, Target, TargetFile, TargetOptions
from dipo.graph.target_spec import TargetSpec
from dipo.section import Between


@dataclass(frozen=True)
class ToyOptions(TargetOptions):
    """Options of the toy device."""

    strength: Annotated[int, Between(1, 7)] = 3
    """How strongly the device is to compute."""


def read_ranges(text: str, names: Names) -> Iterator[Claim]:
    """Read `<tensor> <low> <high>` behind a first line back."""
    first, *lines = text.splitlines()
    if not first.startswith("strength "):
        raise ValueError(f"{first!r} says no strength")
    for line in lines:
        name, low, high = line.rsplit(" ", 2)
        yield names.claim(name, low=low, high=high)


class Toy(Target[ToyOptions]):
    """The toy device."""

    spec = TargetSpec(
        name="toy",
        operators=frozenset({"Conv", "Gemm"}),
        weight_symmetric=True,
        weight_per_channel=False,
        act_symmetric=False,
        act_signed=False,
        int32_bias=True,
        fuse_residual_add=False,
        weight_widths=(4, 8),
        act_widths=(8,),
    )
    options_class = ToyOptions
    files = (
        QUANTIZED,
        DEPLOYED,
        TargetFile("ranges.toy", read=read_ranges, elsewhere="the toy device reads it, which nobody has"),
    )

    def check_options(self, options: ToyOptions) -> None:
        """Refuse a strength of 6."""
        if options.strength == 6:
            raise UserError("platform.options.strength 6: the device has none, set it to 5 or 7")

    def remarks(self, options: ToyOptions) -> list[str]:
        """Return whether the device gets warm."""
        return ["the device gets warm"] if options.strength == 7 else []

    def write(self, export: Export, options: ToyOptions) -> list[Path]:
        """Write the models and the ranges."""
        from dipo.export.ranges import Encoding

        grids = {name: Encoding(qparams) for name, qparams in export.quantized.activations.items()}
        lines = [f"{name} {float(grid.min)!r} {float(grid.max)!r}" for name, grid in grids.items()]
        text = "\n".join([f"strength {options.strength}", *lines]) + "\n"
        return [*export.write_models(self.spec), export.write_text("ranges.toy", text)]


TARGET = Toy()
