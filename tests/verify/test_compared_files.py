"""Range files that dipo reads itself."""

import json
import re

import pytest

from dipo.cli.verify import main
from dipo.export.targets import TARGETS
from dipo.verify import ranges
from dipo.verify.consumers import declared_as
from dipo.verify.verdict import Refused, State

FILES = {each.name: name for name, target in TARGETS.items() for each in target.files if each.read is not None}
NUMBER = r"(?<=[ \[\n])-?\d+\.\d+(e-\d+)?"


def check(file):
    return ranges.check(file, declared_as(FILES[file.name], file.name))


@pytest.mark.parametrize("name", FILES)
def test_what_was_written_agrees(write, name):
    verdict = check(write(FILES[name]) / name)
    assert verdict.count(State.ACCEPTED) == len(verdict.tensors) > 2 and not verdict.failed


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("text", ["garbage", "{", "", "{}", "[1, 2]"])
def test_another_form_is_refused(write, capsys, name, text):
    run = write(FILES[name])
    (run / name).write_text(text)
    with pytest.raises(Refused, match=name):
        check(run / name)
    assert main([f"file={run / name}"]) == 1


@pytest.mark.parametrize("name", sorted(FILES.keys() - {"tidl_quant_params.prototxt"}))
def test_each_wrong_number_is_refused(write, name):
    run = write(FILES[name])
    text = (run / name).read_text()
    pattern = r"(?<=: )[0-9a-f]{8}" if name == "calibration.cache" else NUMBER
    found = list(re.finditer(pattern, text))
    assert len(found) > 2
    for number in found:
        wrong = "42c60000" if name == "calibration.cache" else "99.0"
        (run / name).write_text(text[: number.start()] + wrong + text[number.end() :])
        with pytest.raises(Refused):
            _checked(run / name)


def _checked(file):
    verdict = check(file)
    if verdict.refused is not None:
        assert f"{file.name} contradicts quantized.onnx: '" in verdict.refused
        raise Refused(verdict.refused)


@pytest.mark.parametrize("platform", ["snpe", "qnn"])
@pytest.mark.parametrize("schema", ["0.6.1", "1.0.0", "2.0.0"])
def test_encodings_of_all_schemas(write, platform, schema):
    file = write(platform, schema=schema) / f"{platform}_encodings.json"
    assert not check(file).failed
    content = json.loads(file.read_text())
    if schema == "2.0.0":
        content["encodings"][0]["y_zero_point"] = 7
    else:
        entries = content["activation_encodings"]
        entry = entries[0] if schema == "1.0.0" else entries["x"][0]
        entry["offset"] = [-7] if schema == "1.0.0" else -7
    file.write_text(json.dumps(content))
    assert "'x' has " in check(file).refused


def test_a_transformed_weight_says_nothing_of_the_grid(write):
    assert not check(write("stpu", winograd=True) / "stpu_minmax.json").failed


def test_an_unknown_name_is_ignored(write, capsys):
    run = write("trt")
    cache = run / "calibration.cache"
    cache.write_text(cache.read_text().replace("r1:", "r9:"))
    assert main([f"run={run}"]) == 1
    assert "ignored r9: nothing in deploy.onnx has this name" in capsys.readouterr().out


@pytest.mark.parametrize("form", ["qdq", "qop"])
def test_integer_operators_have_the_grids_too(write, form):
    from dipo.export.formats import OnnxFormat

    verdict = check(write("qnn", form=OnnxFormat(form)) / "qnn_encodings.json")
    assert not verdict.failed and sum(not fate.why for fate in verdict.tensors) > 8
