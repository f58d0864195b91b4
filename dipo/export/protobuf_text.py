"""Reading of protobuf text, with protobuf's own parser, by message definitions of a target's documentation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Schema:
    """Message definitions, as in a `.proto` file."""

    messages: Mapping[str, Sequence[tuple[str, int, str, str]]]
    """Fields of each message: name, number, type and label. A text holds the last message."""
    enums: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Values of each enum."""


def parse(text: str, schema: Schema) -> Any:
    """Return the message that a text holds.

    Raises:
        ValueError: Protobuf's parser refuses it.
    """
    from google.protobuf import text_format  # type: ignore[import-untyped]

    message = _message(schema)
    try:
        return text_format.Parse(text, message)
    except text_format.ParseError as error:
        raise ValueError(f"no {message.DESCRIPTOR.name}: {error}") from error


def _message(schema: Schema) -> Any:
    """Return an empty message of the schema."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="target.proto", package="target", syntax="proto2")
    for enum, values in schema.enums.items():
        kept = file.enum_type.add(name=enum)
        for value, number in values.items():
            kept.value.add(name=value, number=number)
    for name, fields in schema.messages.items():
        kind = file.message_type.add(name=name)
        for field_name, number, type_, label in fields:
            added = kind.field.add(name=field_name, number=number, label=field.Label.Value(f"LABEL_{label}"))
            if f"TYPE_{type_}" in field.Type.keys():  # noqa: SIM118 - no mapping
                added.type = field.Type.Value(f"TYPE_{type_}")
            else:
                added.type = field.TYPE_ENUM if type_ in schema.enums else field.TYPE_MESSAGE
                added.type_name = f".target.{type_}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"target.{[*schema.messages][-1]}"))()
