"""Writing of small text files, which get their final names only when complete."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

Fields = Sequence[tuple[str, Any]]
"""A protobuf message as names and values of its fields, with repeated fields once for each element."""


def write_text(path: Path, text: str) -> Path:
    """Write the text and return the path."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)
    return path


def write_json(path: Path, content: Mapping[str, Any]) -> Path:
    """Write JSON and return the path.

    Raises:
        ValueError: A number is NaN or infinite, which JSON does not know.
    """
    return write_text(path, json.dumps(content, indent=4, allow_nan=False) + "\n")


def proto_text(fields: Fields) -> str:
    """Return a protobuf message in text form.

    Args:
        fields: Fields in the order of the text. A string is a string (the value of an enum is `Enum(name)`), and a
            sequence of pairs is a message.
    """
    return "".join(f"{line}\n" for line in _lines(fields))


class Enum(str):
    """A value of an enum, written without quotes."""

    __slots__ = ()


def _lines(fields: Fields) -> Iterator[str]:
    for name, value in fields:
        if isinstance(value, Sequence) and not isinstance(value, str):
            yield f"{name} {{"
            yield from (f"  {line}" for line in _lines(value))
            yield "}"
        else:
            yield f"{name}: {_scalar(value)}"


def _scalar(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Enum):
        return str(value)
    if isinstance(value, str):
        return '"' + "".join(_escaped(byte) for byte in value.encode()) + '"'
    if isinstance(value, int | float):
        return repr(value)
    raise TypeError(f"no protobuf text for {value!r}")


def _escaped(byte: int) -> str:
    if chr(byte) in '"\\':
        return f"\\{chr(byte)}"
    return chr(byte) if 32 <= byte < 127 else f"\\{byte:03o}"
