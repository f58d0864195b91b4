"""Range files that dipo reads itself."""

import json
import re

import pytest

from dipo.cli.verify import main
from dipo.export.platforms import OPTIONS
from dipo.verify import ranges
from dipo.verify.verdict import Refused, State

FILES = {
    "calibration.cache": "trt",
    "trt_clip_val.json": "trt",
    "magicmind_quant_param.json": "magicmind",
    "imx_scale.json": "imx",
    "stpu_minmax.json": "stpu",
    "ti_blob_range.json": "ti",
    "ti_blob_range.txt": "ti",
    "atlas_quant_param.json": "atlas",
    "rk_quantized_param.yaml": "rk",
    "rk_quantized_param.json": "rk",
    "rv_quantized_param.yaml": "rv",
    "rv_quantized_param.json": "rv",
    "snpe_encodings.json": "snpe",
    "qnn_encodings.json": "qnn",
}
NUMBER = r"(?<=[ \[\n])-?\d+\.\d+(e-\d+)?"


@pytest.mark.parametrize("name", FILES)
def test_what_was_written_agrees(write, name):
    verdict = ranges.check(write(FILES[name]) / name, None)
    assert verdict.count(State.ACCEPTED) == len(verdict.tensors) > 2 and not verdict.failed


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("text", ["garbage", "{", "", "{}", "[1, 2]"])
def test_another_form_is_refused(write, capsys, name, text):
    run = write(FILES[name])
    (run / name).write_text(text)
    with pytest.raises(Refused, match=name):
        ranges.check(run / name, None)
    assert main([f"file={run / name}"]) == 1


@pytest.mark.parametrize("name", FILES)
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
    verdict = ranges.check(file, None)
    if verdict.refused is not None:
        assert f"{file.name} contradicts quantized.onnx: '" in verdict.refused
        raise Refused(verdict.refused)


@pytest.mark.parametrize("platform", ["snpe", "qnn"])
@pytest.mark.parametrize("schema", ["0.6.1", "1.0.0", "2.0.0"])
def test_encodings_of_all_schemas(write, platform, schema):
    assert "schema" in OPTIONS[platform]
    file = write(platform, schema=schema) / f"{platform}_encodings.json"
    assert not ranges.check(file, None).failed
    content = json.loads(file.read_text())
    if schema == "2.0.0":
        content["encodings"][0]["y_zero_point"] = 7
    else:
        entries = content["activation_encodings"]
        entry = entries[0] if schema == "1.0.0" else entries["x"][0]
        entry["offset"] = [-7] if schema == "1.0.0" else -7
    file.write_text(json.dumps(content))
    assert "'x' has " in ranges.check(file, None).refused


def test_a_transformed_weight_says_nothing_of_the_grid(write):
    assert not ranges.check(write("stpu", winograd=True) / "stpu_minmax.json", None).failed


def test_an_unknown_name_is_ignored(write, capsys):
    run = write("trt")
    cache = run / "calibration.cache"
    cache.write_text(cache.read_text().replace("r1:", "r9:"))
    assert main([f"run={run}"]) == 1
    assert "ignored r9: nothing in deploy.onnx has this name" in capsys.readouterr().out


@pytest.mark.parametrize("form", ["qdq", "qop"])
def test_integer_operators_have_the_grids_too(write, form):
    from dipo.export.forms import Form

    verdict = ranges.check(write("qnn", form=Form(form)) / "qnn_encodings.json", None)
    assert not verdict.failed and sum(not fate.why for fate in verdict.tensors) > 8
