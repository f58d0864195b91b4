"""The words of a command line: flags, names, and `option=value`, read alike for all commands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from dipo.errors import UserError
from dipo.section import Option, choose


@dataclass(frozen=True)
class Flag:
    """A word that begins with a dash."""

    name: str
    """Such as `--help`."""
    text: str
    """What it does."""
    short: str | None = None
    """Such as `-h`."""
    value: str | None = None
    """What the help calls its value; None where it has none."""
    wanted: str = ""
    """What to give as its value."""
    refusal: str | None = None
    """Why it is not to be had, where others have such a flag; no help names it."""

    def __str__(self) -> str:
        return f"{self.short}, " * (self.short is not None) + self.name + f" {self.value}" * (self.value is not None)


HELP = Flag("--help", "Print this page.", short="-h")
VERSION = Flag("--version", "Print the version.")


def texts(flags: Sequence[Flag]) -> dict[str, str]:
    """Return what each flag does, as the help has it."""
    return {str(flag): flag.text for flag in flags if flag.refusal is None}


@dataclass(frozen=True)
class Line:
    """A command line, sorted into flags and words."""

    flags: frozenset[str]
    """Names of those without a value."""
    values: Mapping[str, str]
    """Values of the other flags, by name."""
    words: tuple[str, ...]
    """All that has no leading dash, as typed."""


def sort_words(argv: Sequence[str], flags: Sequence[Flag]) -> Line:
    """Tell flags from words.

    Args:
        argv: The command line.
        flags: The flags that the command knows.

    Raises:
        UserError: A flag is unknown, or lacks its value.
    """
    known = {name: flag for flag in flags for name in (flag.name, flag.short) if name is not None}
    given: set[str] = set()
    values, words = dict[str, str](), list[str]()
    rest = iter(argv)
    for word in rest:
        name, equals, value = word.partition("=")
        flag = known.get(name)
        if not word.startswith("-"):
            words.append(word)
        elif flag is None or (equals and flag.value is None):
            choices = [flag.name for flag in flags if flag.refusal is None]
            raise UserError(f"unknown flag '{word}': {choose(name, choices)}")
        elif flag.refusal is not None:
            raise UserError(f"{word}: {flag.refusal}")
        elif flag.value is None:
            given.add(flag.name)
        else:
            values[flag.name] = value if equals else next(rest, "")
            if not values[flag.name]:
                raise UserError(f"{flag.name} has no value: give {flag.wanted}")
    return Line(frozenset(given), values, tuple(words))


def read_values(words: Sequence[str], known: Mapping[str, Option]) -> dict[str, Any]:
    """Return the values of `option=value` words by option; of two with one option the last counts.

    Args:
        words: As typed, a leading + allowed.
        known: The options of the command.

    Raises:
        UserError: A word names no option, or has no value that the option takes.
    """
    values = {}
    for word in words:
        key, equals, text = word.lstrip("+").partition("=")
        if key not in known:
            raise UserError(f"unknown option '{key}': {choose(key, known)}")
        if not equals or not text:
            raise UserError(f"{key} has no value: give {known[key].wanted()}")
        values[key] = known[key].read(_value(known[key], text))
    return values


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values by dotted option as mappings in mappings: `{"gate": {"min_cosine": 1}}` for gate.min_cosine."""
    whole: dict[str, Any] = {}
    for key, value in values.items():
        *above, name = key.split(".")
        inner = whole
        for part in above:
            inner = inner.setdefault(part, {})
        inner[name] = value
    return whole


def _value(option: Option, text: str) -> object:
    """Return the value that a text stands for: 10.10 is a version where a text is wanted, else a number."""
    if text == "null" and option.optional:
        return None
    if option.is_list or option.type is dict:
        try:
            return yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise UserError(f"{option.key}={text}: cannot be read, check its brackets and quotes") from error
    if option.type is bool:
        return {"true": True, "false": False}.get(text, text)
    if option.type is str:
        return text.strip("'\"")
    try:
        return option.type(text)
    except ValueError:
        return text
