"""The protobuf messages that two of the targets read, as their documentation defines them."""

from __future__ import annotations

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import Message

Schema = dict[str, list[tuple[str, int, str, str]]]
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
ENUMS = {
    "TidlQuantType": {"SYMMETRIC": 1, "ASYMMETRIC": 2},
    "TidlCalibType": {"PERTENSOR": 1, "PERCHANNEL": 2},
}


def message_of(schema: Schema, name: str) -> Message:
    """An empty message."""
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="schema.proto", package="schema", syntax="proto2")
    for enum, values in ENUMS.items():
        kept = file.enum_type.add(name=enum)
        for value, number in values.items():
            kept.value.add(name=value, number=number)
    for message, fields in schema.items():
        kind = file.message_type.add(name=message)
        for field_name, number, type_, label in fields:
            added = kind.field.add(name=field_name, number=number, label=getattr(field, f"LABEL_{label}"))
            if hasattr(field, f"TYPE_{type_}"):
                added.type = getattr(field, f"TYPE_{type_}")
            else:
                added.type = field.TYPE_ENUM if type_ in ENUMS else field.TYPE_MESSAGE
                added.type_name = f".schema.{type_}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"schema.{name}"))()
