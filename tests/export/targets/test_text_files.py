import math

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format

from dipo.export.text_files import Enum, proto_text, write_json, write_text


def test_scalars_parse_back():
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="scalars.proto", package="scalars", syntax="proto2")
    message = file.message_type.add(name="All")
    kinds = {"text": "STRING", "number": "DOUBLE", "count": "INT64", "flag": "BOOL"}
    for number, (name, kind) in enumerate(kinds.items(), 1):
        label = field.LABEL_REPEATED if name in {"text", "number"} else field.LABEL_OPTIONAL
        message.field.add(name=name, number=number, type=getattr(field, f"TYPE_{kind}"), label=label)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    kind = message_factory.GetMessageClass(pool.FindMessageTypeByName("scalars.All"))
    texts = ["plain", 'a "quoted" \\ path', "line\nbreak\ttab", "größe/汉字"]
    numbers = [0.1, -1e-30, 3e38, 127.0, math.pi]
    fields = [*(("text", text) for text in texts), *(("number", n) for n in numbers), ("count", -7), ("flag", True)]
    read = text_format.Parse(proto_text(fields), kind())
    assert list(read.text) == texts
    assert list(read.number) == numbers
    assert (read.count, read.flag) == (-7, True)


def test_messages_and_enums():
    assert proto_text([("a", [("b", Enum("SOME")), ("c", 1)]), ("d", "x")]) == 'a {\n  b: SOME\n  c: 1\n}\nd: "x"\n'


def test_what_has_no_text_is_refused():
    with pytest.raises(TypeError, match="no protobuf text for"):
        proto_text([("a", object())])


def test_files_appear_complete_or_not_at_all(tmp_path):
    assert write_text(tmp_path / "a.txt", "hello\n").read_text() == "hello\n"
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "b.json", {"bad": math.nan})
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
