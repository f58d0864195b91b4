"""The class of deploy targets: each is an object that declares everything about itself, in one file.

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

A target's module is imported to list its options, so heavy modules (numpy, onnx, onnx_ir, and modules that import them)
are imported inside its functions.
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
    """A file that a target writes, and its readers, of which at least one of the three kinds is given."""

    name: str
    read: Callable[[str, Names], Iterable[Claim]] | None = None
    """Function that reads the file's text back, so that `dipo.verify` can compare it with `quantized.onnx`; it raises
    ValueError, KeyError, TypeError, AttributeError or IndexError if the text has another form."""
    readers: tuple[str, ...] = ()
    """Names of the consumers in `dipo.verify` that read it."""
    elsewhere: str | None = None
    """Reader that `dipo.verify` does not have, in a sentence."""

    def __post_init__(self) -> None:
        """Check that the file has a reader."""
        assert self.read or self.readers or self.elsewhere, f"nobody is said to read {self.name}"


QUANTIZED = TargetFile("quantized.onnx", readers=("ONNX Runtime",))
"""File of the quantized network, which every target writes first."""
DEPLOYED = TargetFile("deploy.onnx", readers=("ONNX Runtime",))
"""File of the float network with dequantized weights, to which a target's range files belong."""


@dataclass(frozen=True)
class Export:
    """A network on a target's grids, with the folder and the form of the files to write."""

    model: ir.Model
    """The float graph."""
    quantized: QuantizedModel
    """Integer weights and activation scales."""
    folder: Path
    """Existing folder for the files."""
    metadata: Mapping[str, str]
    """Metadata of the ONNX files."""
    form: OnnxFormat = QDQ
    """Format of `quantized.onnx`."""
    beside: Mapping[str, QParams] = dataclasses.field(default_factory=dict)
    """Grids of values that the target leaves float, if its specification has `ranges_beside`."""

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
    """Specification of what the target quantizes, and on which grids."""
    options_class: type[OptionsT] = cast(Any, TargetOptions)
    """Class of its own options."""
    files: tuple[TargetFile, ...]
    """All files that it may write."""

    @property
    def name(self) -> str:
        """Name that the user types."""
        return self.spec.name

    @property
    def option_names(self) -> tuple[str, ...]:
        """Names of its own options."""
        return tuple(field.name for field in dataclasses.fields(self.options_class))

    def options_of(self, given: Mapping[str, Any]) -> OptionsT:
        """Return its own options among those given for one or more targets; others are ignored.

        Raises:
            UserError: One has a wrong value.
        """
        return from_plain(self.options_class, {name: given[name] for name in self.option_names if name in given})

    def check_options(self, options: OptionsT) -> None:
        """Check that options fit together, beyond their types and limits.

        Raises:
            UserError: They do not.
        """

    def remarks(self, options: OptionsT) -> list[str]:
        """Return notes, in sentences, for the user on the files written with these options."""
        del options
        return []

    def form_remarks(self, form: OnnxFormat) -> list[str]:
        """Return notes, in sentences, for the user on the form of the files."""
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

        # Grids of values that are not quantized themselves count too: a Concat may end in a Relu or a pooling.
        unified = unify_concats(model, spread(model, quantized.activations))
        activations = {name: unified.get(name, own) for name, own in quantized.activations.items()}
        return dataclasses.replace(quantized, activations=activations)

    @abstractmethod
    def write(self, export: Export, options: OptionsT) -> list[Path]:
        """Write the target's files and return them, `quantized.onnx` first.

        Args:
            export: The network to write, and the folder.
            options: The target's own options.

        Raises:
            UserError: A tensor that needs a range has none, or has one that the target does not take; nothing is
                written.
        """


def write_target(target: Target[Any], export: Export, given: Mapping[str, Any]) -> list[Path]:
    """Write a target's files into a folder, which is created if it is missing.

    Args:
        target: The target.
        export: The network to write, and the folder.
        given: The options of `platform` that the user gave, of which the target's own are used.

    Returns:
        The files, including external tensors of ONNX files; `quantized.onnx` is the first.

    Raises:
        UserError: A tensor that needs a range has none, or has one that the target does not take; nothing is written.
    """
    from dipo.graph.passes import as_in_file
    from dipo.graph.passes.batch_first import values_in_file
    from dipo.graph.passes.interface import names_in_file
    from dipo.graph.sharing import with_shared_parameters

    export.folder.mkdir(parents=True, exist_ok=True)
    activations, beside = export.quantized.activations, export.beside
    # The file's input is the value that stands for it.
    inputs = {value: name for name, value in values_in_file(export.model).items()}
    for names in (inputs, names_in_file(export.model)):
        activations, beside = _renamed(activations, names), _renamed(beside, names)
    export = dataclasses.replace(
        export,
        model=as_in_file(export.model),
        quantized=dataclasses.replace(export.quantized, activations=activations),
        beside=beside,
    )
    if target.spec.int32_bias:
        from dipo.export.storage import with_room_for_biases

        # Range files, not only the ONNX file, need the scales with which the biases fit.
        export = dataclasses.replace(export, quantized=with_room_for_biases(export.model, export.quantized))
    shared = with_shared_parameters(export.model, export.quantized, int32_bias=target.spec.int32_bias)
    export = dataclasses.replace(export, model=shared)
    files = target.write(export, target.options_of(given))
    undeclared = {file.name for file in files} - {file.name for file in target.files}
    assert not undeclared, f"target {target.name} writes {undeclared}, which it does not declare in `files`"
    tensors = [file.with_name(f"{file.name}.data") for file in files]
    return [*files, *(file for file in tensors if file.exists())]


def _renamed(grids: Mapping[str, QParams], names: Mapping[str, str]) -> dict[str, QParams]:
    return {names.get(name, name): grid for name, grid in grids.items()}
