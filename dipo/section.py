"""The parts of the configuration: sections, their options, and the limits in an option's type."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import types
import typing
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, TypeVar

from dipo.errors import UserError

if TYPE_CHECKING:
    from pydantic import TypeAdapter


def choose(word: str, choices: Iterable[str]) -> str:
    """Return the answer to a `word` that is none of the `choices`: the nearest first, then the others."""
    names = list(choices)
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.65)
    others = [name for name in names if name not in near]
    if not near:
        return f"choose from {', '.join(others)}"
    return f"did you mean {near[0]}{', or one of ' if len(others) > 1 else ' or ' * len(others)}{', '.join(others)}?"


def show(value: object) -> str:
    """Return a value as the user would type it, text in quotes."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, dict):
        return f"{{{','.join(f'{key}:{show(item)}' for key, item in value.items())}}}"
    return f"[{','.join(map(show, value))}]" if isinstance(value, list) else repr(value)


@dataclass(frozen=True, eq=False)
class OneOf:
    """The value is one of these; of a list, every member."""

    choices: Collection[str]
    """A tuple, or a registry, whose names may grow and are looked up when they are needed."""

    def complaint(self, value: str | dict[str, Any]) -> tuple[object, str] | None:
        """Say what is wrong with `value`, a choice or `{choice: {option: value}}`.

        Returns:
            The wrong part of it and what to do; None where all is right.
        """
        if isinstance(value, str):
            return None if value in self.choices else (value, choose(value, self.choices))
        if len(value) != 1:
            return value, "give one name with its options, {NAME:{OPTION:VALUE}}"
        ((name, its_options),) = value.items()
        if isinstance(its_options, dict):
            return self.complaint(str(name))
        return value, f"give its options as {{{name}:{{OPTION:VALUE}}}}"

    def __str__(self) -> str:
        return "|".join(self.choices)


@dataclass(frozen=True)
class Between:
    """The number lies in [low, high], or in (low, high] where `above` is set; of a list, every member."""

    low: float = -math.inf
    high: float = math.inf
    above: bool = False

    def constraints(self) -> dict[str, Any]:
        """Return the limits in Pydantic's words."""
        limits = {"gt" if self.above else "ge": self.low, "le": self.high}
        return {word: limit for word, limit in limits.items() if math.isfinite(limit)}

    def __str__(self) -> str:
        if self.high == math.inf:
            return f"above {self.low:g}" if self.above else f">= {self.low:g}"
        return f"{'above' if self.above else 'from'} {self.low:g} to {self.high:.10g}"


@dataclass(frozen=True)
class Called:
    """The name of a kind of value, for messages: `a folder`."""

    noun: str


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
    nests: bool = False
    """A text may also be the key of a mapping that holds options of its own: `{qdrop: {iters: 100}}`."""
    noun: str | None = None
    """What a value is; None: what its type says."""

    def read(self, value: Any) -> Any:
        """Return `value` in the option's type; one member stands for a list of one.

        Raises:
            UserError: `value` has another type or is outside the limits.
        """
        from pydantic import ValidationError

        whole = value if isinstance(value, list) or not self.is_list or (value is None and self.optional) else [value]
        try:
            return self._adapter.validate_python(whole)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
        at, wrong = first["loc"], first["input"]
        if self.is_list and at and isinstance(at[0], int):
            wrong = whole[at[0]]  # the member, where Pydantic names a key inside it
        complaint = f"give {self.wanted()}"
        if first["type"] == _UNLIKE_CHOICES:
            wrong, complaint = first["ctx"]["wrong"], first["ctx"]["complaint"]
        elif first["type"] in _OUT_OF_LIMITS:
            wrong, complaint = self.type(wrong), f"give a number {self.limit}"
        raise UserError(f"{self.key} {show(wrong)}: {complaint}") from None

    @functools.cached_property
    def _adapter(self) -> TypeAdapter[Any]:
        """Return the option's type and limits for Pydantic, which is imported when the first value is read."""
        from pydantic import AfterValidator, Field, TypeAdapter

        member: Any = self.type
        if self.type is str:  # a name may look like a number
            member = Annotated[str, Field(strict=False, coerce_numbers_to_str=True)]
        if self.nests:
            member = member | dict[str, Any]
        if isinstance(self.limit, OneOf):
            member = Annotated[member, AfterValidator(functools.partial(_among, self.limit))]
        elif self.limit is not None:
            constraints = self.limit.constraints()
            if self.type is float:
                constraints["allow_inf_nan"] = False
            member = Annotated[member, Field(**constraints)]
        whole: Any = list[member] if self.is_list else member
        hint: Any = whole | None if self.optional else whole
        return TypeAdapter(hint, config={"strict": True})

    def wanted(self) -> str:
        """Say in words what the user should give."""
        if isinstance(self.limit, OneOf):
            words = f"{'any' if self.is_list else 'one'} of {', '.join(self.limit.choices)}"
        elif self.type is dict:
            words = self.noun or "a mapping such as {/conv1:{weight_bits:4}}"
        else:
            words = (self.noun or _NOUNS[self.type]) + (f" {self.limit}" if self.limit else "")
        if self.nests:
            words += ", with options of its own as {NAME:{OPTION:VALUE}}"
        if self.is_list:
            words += ", or several as [a,b]"
        return words + (" (or null)" if self.optional else "")


_UNLIKE_CHOICES = "unlike_choices"
_OUT_OF_LIMITS = frozenset({"greater_than", "greater_than_equal", "less_than_equal", "finite_number"})


def _among(limit: OneOf, value: Any) -> Any:
    """Return the validator of a choice."""
    from pydantic_core import PydanticCustomError

    complaint = limit.complaint(value)
    if complaint is not None:
        raise PydanticCustomError(_UNLIKE_CHOICES, "{complaint}", {"wrong": complaint[0], "complaint": complaint[1]})
    return value


@dataclass(frozen=True)
class Section:
    """A part of the configuration; refuses values that its options do not allow.

    `class TuneOptions(Section, prefix="algo")` says what stands before the names of the options where that is not the
    name of the class; `prefix=""` is nothing.
    """

    _prefix: ClassVar[str | None] = None

    def __init_subclass__(cls, *, prefix: str | None = None, **more: Any) -> None:
        """Take the prefix from the class statement."""
        super().__init_subclass__(**more)
        if prefix is not None:
            cls._prefix = f"{prefix}." if prefix else ""

    def __post_init__(self) -> None:
        """Check the type and the limits of every option, and give whole numbers, texts and lists their option's type.

        Raises:
            UserError: A value has a wrong type or is outside its limits.
        """
        for option in options(type(self)):
            object.__setattr__(self, option.name, option.read(getattr(self, option.name)))

    @classmethod
    def prefix(cls) -> str:
        """Return the prefix of the section's options: `calib.`; empty for the top one."""
        if cls._prefix is not None:
            return cls._prefix
        name = cls.__name__.removesuffix("Config").lower()
        return f"{name}." if name else ""


SectionT = TypeVar("SectionT", bound=Section)


def options(section: type[Section]) -> tuple[Option, ...]:
    """Return the section's own options, in their order; those that it inherits come first."""
    return _fields(section).options


def parts(section: type[Section]) -> Mapping[str, type[Section]]:
    """Return the sections inside a section, by name of the field."""
    return _fields(section).parts


@dataclass(frozen=True)
class _Fields:
    """A section's fields."""

    options: tuple[Option, ...]
    parts: Mapping[str, type[Section]]


_KNOWN: dict[type[Section], _Fields] = {}


def _fields(section: type[Section]) -> _Fields:
    if section not in _KNOWN:
        hints = typing.get_type_hints(section, include_extras=True)
        fields = dataclasses.fields(section)
        inner = {field.name: hints[field.name] for field in fields if _is_section(hints[field.name])}
        own = (_option(section, field, hints[field.name]) for field in fields if field.name not in inner)
        _KNOWN[section] = _Fields(tuple(own), types.MappingProxyType(inner))
    return _KNOWN[section]


def all_options(section: type[Section]) -> Iterator[Option]:
    """Return the options of a section and of the sections inside it."""
    yield from options(section)
    for part in parts(section).values():
        yield from all_options(part)


def from_plain(section: type[SectionT], values: Mapping[str, Any]) -> SectionT:
    """Make a section of nested plain values; what they leave out takes its default.

    Raises:
        UserError: A key is unknown, or a value is wrong.
    """
    own, inner = [option.name for option in options(section)], parts(section)
    arguments: dict[str, Any] = {}
    for name, value in values.items():
        key = f"{section.prefix()}{name}"
        if name in own:
            arguments[name] = value
        elif name not in inner:
            raise UserError(f"unknown option '{key}': {choose(str(name), [*inner, *own])}")
        elif isinstance(value, Mapping):
            arguments[name] = from_plain(inner[name], value)
        else:
            names = ", ".join(option.name for option in options(inner[name]))
            raise UserError(f"{key} {show(value)}: give its options, {names}")
    return section(**arguments)


def choose_option(top: type[Section], key: str, *, groups: Sequence[str]) -> str:
    """Return the answer to a `key` that is no option: the nearest one, else all there are.

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
    notes = getattr(hint, "__metadata__", ())
    limit = next((note for note in notes if isinstance(note, OneOf | Between)), None)
    members = _members(hint.__origin__ if notes else hint)
    optional = types.NoneType in members
    (whole,) = (member for member in members if member is not types.NoneType)
    is_list = typing.get_origin(whole) is list
    first, *others = _members(*typing.get_args(whole)) if is_list else [whole]
    assert not others or (first is str and isinstance(limit, OneOf)), "of two types the first is a choice"
    factory = field.default_factory
    return Option(
        key=section.prefix() + field.name,
        name=field.name,
        type=typing.get_origin(first) or first,
        is_list=is_list,
        optional=optional,
        limit=limit,
        default=field.default if factory is dataclasses.MISSING else factory(),
        nests=bool(others),
        noun=next((note.noun for note in notes if isinstance(note, Called)), None),
    )


def _members(hint: Any) -> list[Any]:
    """Return the types of a union; of another type, itself."""
    return list(typing.get_args(hint)) if isinstance(hint, types.UnionType) else [hint]
