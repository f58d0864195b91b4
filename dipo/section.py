"""What the configuration is made of: sections, their options, and the limits that stand in an option's type."""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from dipo.errors import UserError


def choose(word: str, choices: Iterable[str]) -> str:
    """What to answer to a `word` that is none of the `choices`: the nearest first, then the others."""
    names = list(choices)
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.65)
    others = [name for name in names if name not in near]
    if not near:
        return f"choose from {', '.join(others)}"
    return f"did you mean {near[0]}{', or one of ' if len(others) > 1 else ' or ' * len(others)}{', '.join(others)}?"


def show(value: object) -> str:
    """A value as the user would type it, text in quotes."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float):
        return f"{value:g}"
    return f"[{','.join(map(show, value))}]" if isinstance(value, list) else repr(value)


@dataclass(frozen=True)
class OneOf:
    """The value is one of these; of a list, every member."""

    choices: Collection[str]
    """A tuple, or a registry, whose names may grow."""

    def complaint(self, value: Any) -> str | None:
        """What is wrong with `value`; None where nothing is."""
        return None if value in self.choices else choose(str(value), self.choices)

    def __str__(self) -> str:
        return "|".join(self.choices)


@dataclass(frozen=True)
class Between:
    """The number lies in [low, high], or in (low, high] where `above` is set; of a list, every member."""

    low: float = -math.inf
    high: float = math.inf
    above: bool = False

    def complaint(self, value: Any) -> str | None:
        """What is wrong with `value`; None where nothing is."""
        enough = value > self.low if self.above else value >= self.low
        return None if enough and value <= self.high and math.isfinite(value) else f"give a number {self}"

    def __str__(self) -> str:
        if self.high == math.inf:
            return f"above {self.low:g}" if self.above else f">= {self.low:g}"
        return f"{'above' if self.above else 'from'} {self.low:g} to {self.high:.10g}"


_NOUNS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}


@dataclass(frozen=True)
class Option:
    """One thing that the user can set: a field of a section."""

    key: str
    """What the user types: `calib.method`."""
    name: str
    """Name of the field: `method`."""
    type: type
    """bool, int, float, str or dict; of a list, its members' type."""
    is_list: bool
    optional: bool
    """None is a value, too."""
    limit: OneOf | Between | None
    default: Any

    def read(self, value: Any) -> Any:
        """`value` in the option's type; one member stands for a list of one.

        Raises:
            UserError: `value` has another type or is outside the limits.
        """
        if value is None and self.optional:
            return None
        if not self.is_list:
            return self._read_one(value)
        return [self._read_one(item) for item in (value if isinstance(value, list) else [value])]

    def _read_one(self, value: Any) -> Any:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if self.type is float and number:
            value = float(value)
        if self.type is str and number:
            value = str(value)
        if type(value) is not self.type:
            raise UserError(f"{self.key} {show(value)}: give {self.wanted()}")
        complaint = self.limit.complaint(value) if self.limit else None
        if complaint:
            raise UserError(f"{self.key} {show(value)}: {complaint}")
        return value

    def wanted(self) -> str:
        """What the user should give, in words."""
        if isinstance(self.limit, OneOf):
            words = f"{'any' if self.is_list else 'one'} of {', '.join(self.limit.choices)}"
        elif self.type is dict:
            words = "a mapping such as {/conv1:{weight_bits:4}}"
        else:
            words = _NOUNS[self.type] + (f" {self.limit}" if self.limit else "")
        if self.is_list:
            words += ", or several as [a,b]"
        return words + (" (or null)" if self.optional else "")


@dataclass(frozen=True)
class Section:
    """A part of the configuration; refuses values that its options do not allow."""

    def __post_init__(self) -> None:
        """Check the type and the limits of every option.

        Raises:
            UserError: A value has a wrong type or is outside its limits.
        """
        for option in options(type(self)):
            option.read(getattr(self, option.name))

    @classmethod
    def prefix(cls) -> str:
        """What stands before the names of the section's options: `calib.`; nothing for the top one."""
        name = cls.__name__.removesuffix("Config").lower()
        return f"{name}." if name else ""


SectionT = TypeVar("SectionT", bound=Section)


def options(section: type[Section]) -> tuple[Option, ...]:
    """The section's own options, in their order."""
    hints = typing.get_type_hints(section, include_extras=True)
    fields = {field.name: field for field in dataclasses.fields(section)}
    return tuple(_option(section, fields[name], hint) for name, hint in hints.items() if not _is_section(hint))


def parts(section: type[Section]) -> dict[str, type[Section]]:
    """The sections inside a section, by name of the field."""
    return {name: hint for name, hint in typing.get_type_hints(section).items() if _is_section(hint)}


def all_options(section: type[Section]) -> Iterator[Option]:
    """The options of a section and of the sections inside it."""
    yield from options(section)
    for part in parts(section).values():
        yield from all_options(part)


def from_plain(section: type[SectionT], values: Mapping[str, Any]) -> SectionT:
    """Make a section of nested plain values; what they leave out takes its default.

    Raises:
        UserError: A key is unknown, or a value is wrong.
    """
    own, inner = {option.name: option for option in options(section)}, parts(section)
    arguments: dict[str, Any] = {}
    for name, value in values.items():
        key = f"{section.prefix()}{name}"
        if name in own:
            arguments[name] = own[name].read(value)
        elif name not in inner:
            raise UserError(f"unknown option '{key}': {choose(str(name), [*inner, *own])}")
        elif isinstance(value, Mapping):
            arguments[name] = from_plain(inner[name], value)
        else:
            names = ", ".join(option.name for option in options(inner[name]))
            raise UserError(f"{key} {show(value)}: give its options, {names}")
    return section(**arguments)


def choose_option(top: type[Section], key: str, *, groups: Sequence[str]) -> str:
    """What to answer to a `key` that is no option: the nearest one, else what there is.

    Args:
        top: The section that holds all others.
        key: What the user typed.
        groups: The groups of presets, which a key may name, too.
    """
    prefix, _, name = key.rpartition(".")
    known, inner = {option.key: option.name for option in all_options(top)}, parts(top)
    above = [other for other in known if key.startswith(f"{other}.")]
    namesakes = [other for other, its_name in known.items() if its_name == name]
    if above or namesakes:
        return f"did you mean {' or '.join(above or difflib.get_close_matches(key, namesakes, cutoff=0))}?"
    if prefix in inner:
        return choose(key, [option.key for option in options(inner[prefix])])
    if key in inner:
        return f"choose from {', '.join(option.key for option in options(inner[key]))}"
    near = difflib.get_close_matches(name, [*groups, *known.values()], n=1, cutoff=0.7)
    if near and near[0] not in groups:
        return choose_option(top, near[0], groups=groups)
    return choose(prefix or key, [*groups, *(other for other in known if other.partition(".")[0] not in groups)])


def _is_section(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, Section)


def _option(section: type[Section], field: dataclasses.Field[Any], hint: Any) -> Option:
    limit = hint.__metadata__[0] if hasattr(hint, "__metadata__") else None
    bare = hint.__origin__ if limit else hint
    optional = isinstance(bare, types.UnionType)
    if optional:
        (bare,) = (member for member in typing.get_args(bare) if member is not types.NoneType)
    is_list = typing.get_origin(bare) is list
    if is_list:
        (bare,) = typing.get_args(bare)
    factory = field.default_factory
    return Option(
        key=section.prefix() + field.name,
        name=field.name,
        type=typing.get_origin(bare) or bare,
        is_list=is_list,
        optional=optional,
        limit=limit,
        default=field.default if factory is dataclasses.MISSING else factory(),
    )
