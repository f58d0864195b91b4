"""The protobuf messages of two targets, as their documentation defines them, and protobuf's own parser on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from google.protobuf import (  # type: ignore[import-untyped]
    descriptor_pb2,
    descriptor_pool,
    message_factory,
    text_format,
)

from dipo.verify.verdict import Refused

Schema = Mapping[str, Sequence[tuple[str, int, str, str]]]
"""Of each message its fields: name, number, type and label."""

ATLAS: Schema = {
    "SingleLayerRecord": [
        ("scale_d", 1, "FLOAT", "OPTIONAL"),
        ("offset_d", 2, "INT32", "OPTIONAL"),
        ("scale_w", 3, "FLOAT", "REPEATED"),
        ("offset_w", 4, "INT32", "REPEATED"),
        ("shift_bit", 5, "UINT32", "REPEATED"),
        ("skip_fusion", 6, "BOOL", "OPTIONAL"),
    ],
    "MapFiledEntry": [("key", 1, "STRING", "OPTIONAL"), ("value", 2, "SingleLayerRecord", "OPTIONAL")],
    "ScaleOffsetRecord": [("record", 1, "MapFiledEntry", "REPEATED")],
}
TIDL: Schema = {
    "TidlTensorQuantParams": [
        ("min", 1, "FLOAT", "OPTIONAL"),
        ("max", 2, "FLOAT", "OPTIONAL"),
        ("size", 3, "UINT32", "OPTIONAL"),
        ("element_type", 4, "UINT32", "OPTIONAL"),
        ("scale", 5, "DOUBLE", "REPEATED"),
        ("zero_point", 6, "UINT32", "REPEATED"),
        ("value", 7, "DOUBLE", "REPEATED"),
    ],
    "TidlLayerQuantParams": [
        ("layer_name", 1, "STRING", "OPTIONAL"),
        ("layer_type", 2, "STRING", "OPTIONAL"),
        ("bit_depth", 3, "UINT32", "OPTIONAL"),
        ("outputs", 4, "TidlTensorQuantParams", "REPEATED"),
        ("weights", 5, "TidlTensorQuantParams", "REPEATED"),
        ("bias", 6, "TidlTensorQuantParams", "REPEATED"),
        ("slope", 7, "TidlTensorQuantParams", "REPEATED"),
    ],
    "TIDLNetQuantParams": [
        ("num_layers", 1, "INT32", "OPTIONAL"),
        ("quant_type", 2, "TidlQuantType", "OPTIONAL"),
        ("calib_type", 3, "TidlCalibType", "OPTIONAL"),
        ("layers", 4, "TidlLayerQuantParams", "REPEATED"),
    ],
}
_ENUMS = {
    "TidlQuantType": {"SYMMETRIC": 1, "ASYMMETRIC": 2},
    "TidlCalibType": {"PERTENSOR": 1, "PERCHANNEL": 2},
}


def read_text(file: Path, schema: Schema) -> Any:
    """The message in a text file: the last of the schema.

    Raises:
        Refused: Protobuf's parser does not take it.
    """
    message = _message(schema)
    try:
        return text_format.Parse(file.read_text(encoding="utf-8"), message)
    except (OSError, UnicodeError, text_format.ParseError) as error:
        raise Refused(f"no {message.DESCRIPTOR.name}: {error}") from error


def _message(schema: Schema) -> Any:
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="target.proto", package="target", syntax="proto2")
    for enum, values in _ENUMS.items():
        kept = file.enum_type.add(name=enum)
        for value, number in values.items():
            kept.value.add(name=value, number=number)
    for name, fields in schema.items():
        kind = file.message_type.add(name=name)
        for field_name, number, type_, label in fields:
            added = kind.field.add(name=field_name, number=number, label=field.Label.Value(f"LABEL_{label}"))
            if f"TYPE_{type_}" in field.Type.keys():  # noqa: SIM118 - no mapping
                added.type = field.Type.Value(f"TYPE_{type_}")
            else:
                added.type = field.TYPE_ENUM if type_ in _ENUMS else field.TYPE_MESSAGE
                added.type_name = f".target.{type_}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"target.{[*schema][-1]}"))()
