import json

import pytest
from exported import write_files
from platform_networks import check_golden, platform_case, without

from dipo.export.ranges import float_values, spread
from dipo.export.targets import magicmind
from dipo.quant.spec import QuantSpec, Range, qparams_of


@pytest.fixture
def case():
    return platform_case(magicmind.TARGET.spec)


def test_golden(tmp_path, case):
    check_golden("magicmind", write_files(magicmind.TARGET, *case, tmp_path)[2])


def test_round_trip(tmp_path, case):
    model, quantized = case
    content = json.loads(write_files(magicmind.TARGET, model, quantized, tmp_path)[2].read_text())
    assert list(content) == ["blob_range"]
    assert set(content["blob_range"]) == {"x", "c1", "r1", "g", "f"}, "what layers read, and what has the same range"
    for name, qparams in spread(model, quantized.activations).items():
        entry = content["blob_range"][name]
        assert set(entry) == {"min", "max"}
        scale = (entry["max"] - entry["min"]) / 255
        assert scale == pytest.approx(float(qparams.scale)) and round(-entry["min"] / scale) == qparams.zero_point


def test_a_script_finds_the_range_of_what_every_node_makes(tmp_path, case):
    model, quantized = case
    spec = QuantSpec(8, signed=False, symmetric=False)
    beside = {name: qparams_of(Range(-1.0, 2.0), spec) for name in float_values(model)}
    content = json.loads(write_files(magicmind.TARGET, model, quantized, tmp_path, beside=beside)[2].read_text())
    assert list(content["blob_range"]) == float_values(model)
    assert content["blob_range"]["y"] == {"min": pytest.approx(-1), "max": pytest.approx(2)}
    grid = quantized.activations["f"]
    assert content["blob_range"]["f"]["max"] == pytest.approx(float((255 - grid.zero_point) * grid.scale)), "its own"


def test_skipped_layers_need_no_range(tmp_path):
    model, quantized = platform_case(magicmind.TARGET.spec, skip=["fc"])
    content = json.loads(write_files(magicmind.TARGET, model, without(quantized, "f"), tmp_path)[2].read_text())
    assert set(content["blob_range"]) == {"x", "c1", "r1"}
