"""What a deploy target is: an object that declares all of itself, in one file.

    @dataclass(frozen=True)
    class MyOptions(TargetOptions):
        strength: Annotated[int, Between(1, 7)] = 3
        \"\"\"How strongly.\"\"\"

    class MyDevice(Target[MyOptions]):
        spec = TargetSpec(name="mydevice", ...)
        options_class = MyOptions
        files = (QUANTIZED, TargetFile("ranges.json", read=read_ranges, elsewhere="the device reads it"))

        def write(self, export, options):
            from dipo.export.ranges import spread
            ...
            return [*export.write_quantized(self.spec), export.write_json("ranges.json", content)]

    TARGET = MyDevice()

A target's module is imported to list its options, so what is heavy (numpy, onnx, onnx_ir, and what imports them) is
imported inside its functions.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from dipo.export.formats import QDQ, OnnxFormat, write_quantized
from dipo.export.range_file import Claim, Names
from dipo.export.text_files import write_json, write_text
from dipo.graph.target_spec import TargetSpec
from dipo.section import Section, from_plain

if TYPE_CHECKING:
    import onnx_ir as ir

    from dipo.graph.plan import QuantizedModel
    from dipo.quant.spec import QParams


@dataclass(frozen=True)
class TargetOptions(Section, prefix="platform.options"):
    """The options of a target, which the user gives as `platform.options={name:value}`; by itself, none."""


@dataclass(frozen=True)
class PlatformOptions(TargetOptions, prefix="platform"):
    """The options of one of dipo's own targets, which the user gives as `platform.name=value`."""


OptionsT = TypeVar("OptionsT", bound=TargetOptions)


@dataclass(frozen=True)
class TargetFile:
    """A file that a target writes, and who reads it: one of the three is said at least."""

    name: str
    read: Callable[[str, Names], Iterable[Claim]] | None = None
    """Reads the file's text back, so that `dipo.verify` can compare it with `quantized.onnx`; raises ValueError,
    KeyError, TypeError, AttributeError or IndexError where the text has another form."""
    readers: tuple[str, ...] = ()
    """Of the consumers that `dipo.verify` can ask, those that read it, by their names there."""
    elsewhere: str | None = None
    """Who else reads it and cannot be asked, in a sentence."""

    def __post_init__(self) -> None:
        """See to it that somebody reads the file."""
        assert self.read or self.readers or self.elsewhere, f"nobody is said to read {self.name}"


QUANTIZED = TargetFile("quantized.onnx", readers=("ONNX Runtime",))
"""The quantized network, which every target writes first."""
DEPLOYED = TargetFile("deploy.onnx", readers=("ONNX Runtime",))
"""The float network with the weights that the codes stand for, to which a target's range files belong."""


@dataclass(frozen=True)
class Export:
    """What a target is to write: a network on its grids, where its files go, and in which form."""

    model: ir.Model
    """The float graph."""
    quantized: QuantizedModel
    """Its integer weights and activation scales."""
    folder: Path
    """Exists."""
    metadata: Mapping[str, str]
    """Goes into the ONNX files."""
    form: OnnxFormat = QDQ
    """How `quantized.onnx` is written."""
    beside: Mapping[str, QParams] = dataclasses.field(default_factory=dict)
    """Grids of values that the target leaves float, where its specification has `ranges_beside`."""

    def write_quantized(self, spec: TargetSpec) -> list[Path]:
        """Write `quantized.onnx` and return it, in a list.

        Args:
            spec: What the target reads.

        Raises:
            UserError: Integer operators are asked for, and the target's biases are float.
        """
        path = self.folder / QUANTIZED.name
        write_quantized(self.model, self.quantized, path, spec=spec, metadata=self.metadata, form=self.form)
        return [path]

    def write_models(self, spec: TargetSpec) -> list[Path]:
        """Write `quantized.onnx`, which runs anywhere, and `deploy.onnx`, and return both in this order.

        Args:
            spec: What the target reads.

        Raises:
            UserError: As `write_quantized`.
        """
        from dipo.export.dequantized_model import write_float

        paths = self.write_quantized(spec)
        path = self.folder / DEPLOYED.name
        write_float(self.model, self.quantized, path, metadata=self.metadata)
        return [*paths, path]

    def write_text(self, name: str, text: str) -> Path:
        """Write a text into the folder, and return the file."""
        return write_text(self.folder / name, text)

    def write_json(self, name: str, content: Mapping[str, Any]) -> Path:
        """Write JSON into the folder, and return the file.

        Raises:
            ValueError: A number is NaN or infinite, which JSON does not know.
        """
        return write_json(self.folder / name, content)


class Target(ABC, Generic[OptionsT]):
    """A deploy target."""

    spec: TargetSpec
    """What it quantizes, and on which grids."""
    options_class: type[OptionsT] = cast(Any, TargetOptions)
    """Its own options."""
    files: tuple[TargetFile, ...]
    """All that it may write."""

    @property
    def name(self) -> str:
        """What the user calls it."""
        return self.spec.name

    @property
    def option_names(self) -> tuple[str, ...]:
        """Names of its own options."""
        return tuple(field.name for field in dataclasses.fields(self.options_class))

    def options_of(self, given: Mapping[str, Any]) -> OptionsT:
        """Return its own options among those that were given for one or more targets; others are not looked at.

        Raises:
            UserError: One has a wrong value.
        """
        return from_plain(self.options_class, {name: given[name] for name in self.option_names if name in given})

    def check_options(self, options: OptionsT) -> None:
        """Look for options that do not fit together, beyond what their types and limits say.

        Raises:
            UserError: There are some.
        """

    def remarks(self, options: OptionsT) -> list[str]:
        """Return what the user should know of the files that are written with these options, in sentences."""
        del options
        return []

    def form_remarks(self, form: OnnxFormat) -> list[str]:
        """Return what the user should know of the form of the files, in sentences."""
        taken = form.for_spec(self.spec)
        if taken == form:
            return []
        return [
            f"its biases stay float, which integer operators do not take: {QUANTIZED.name} is written with "
            f"export.format={taken.format}, not {form.format}"
        ]

    def on_grids(self, model: ir.Model, quantized: QuantizedModel) -> QuantizedModel:
        """Return the network with the grids that the target forces on values that meet in one operator."""
        if not self.spec.unify_concats:
            return quantized
        from dipo.export.ranges import spread, unify_concats

        # Those of values that are not quantized themselves count too: a Concat may end in a Relu or a pooling.
        unified = unify_concats(model, spread(model, quantized.activations))
        activations = {name: unified.get(name, own) for name, own in quantized.activations.items()}
        return dataclasses.replace(quantized, activations=activations)

    @abstractmethod
    def write(self, export: Export, options: OptionsT) -> list[Path]:
        """Write the target's files and return them, `quantized.onnx` first.

        Args:
            export: What is written, and where.
            options: The target's own.

        Raises:
            UserError: A tensor that the target looks for has no range, or something that it does not take; nothing is
                written.
        """


def write_target(target: Target[Any], export: Export, given: Mapping[str, Any]) -> list[Path]:
    """Write a target's files into a folder, which is made where it is missing.

    Args:
        target: The target.
        export: What is written, and where.
        given: The options of `platform` that the user gave; those that the target has are taken.

    Returns:
        The files, tensors that lie beside an ONNX file included; `quantized.onnx` is the first.

    Raises:
        UserError: A tensor that the target looks for has no range, or one that it does not take; nothing is written.
    """
    export.folder.mkdir(parents=True, exist_ok=True)
    if target.spec.int32_bias:
        from dipo.export.storage import with_room_for_biases

        # A range file has to say the scales with which the biases fit, not only the ONNX file.
        export = dataclasses.replace(export, quantized=with_room_for_biases(export.model, export.quantized))
    files = target.write(export, target.options_of(given))
    undeclared = {file.name for file in files} - {file.name for file in target.files}
    assert not undeclared, f"target {target.name} writes {undeclared}, which it does not declare in `files`"
    tensors = [file.with_name(f"{file.name}.data") for file in files]
    return [*files, *(file for file in tensors if file.exists())]
