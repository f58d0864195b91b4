import json

import numpy as np
import pytest
import yaml
from exported import write_files
from platform_networks import ALL_VALUES, check_golden, codes_from_range, platform_case

from dipo.export.ranges import spread
from dipo.export.targets import rk
from dipo.graph.accessors import array_of

WEIGHTS = {"conv1": "w1", "conv2": "w2", "fc": "w3"}


@pytest.fixture
def case():
    return platform_case(rk.TARGET.spec)


@pytest.fixture
def content(tmp_path, case):
    files = write_files(rk.TARGET, *case, tmp_path)
    read = yaml.safe_load(files[2].read_text())
    assert read == json.loads(files[3].read_text())
    assert list(read) == ["custom_quantize_layers", "quantize_parameters"]
    return read["quantize_parameters"]


def test_golden(tmp_path, case):
    check_golden("rk", *write_files(rk.TARGET, *case, tmp_path)[2:])


def test_keys(content):
    parameters = {f"{name}_{part}" for name in ("conv1", "conv2", "fc") for part in "Wb"}
    assert set(content) == set(ALL_VALUES) - {"z"} | {"w1", "w2", "w3"} | parameters
    assert all(set(entry) == {"max", "min"} for entry in content.values())


def test_round_trip(case, content):
    model, quantized = case
    for name, qparams in spread(model, quantized.activations).items():
        if name in {"p1", "p2", "r2", "s", "z"}:
            continue
        low, high = content[name]["min"][0], content[name]["max"][0]
        scale = (high - low) / 255
        assert scale == pytest.approx(float(qparams.scale)) and round(-low / scale) == qparams.zero_point
    assert content["p1"] == content["p2"] == content["r2"] == content["s"] == content["j"], (
        "a Concat reads what it writes"
    )


def test_parameters(case, content):
    model, quantized = case
    for name, layer in quantized.layers.items():
        entry = content[f"{name}_W"]
        assert entry == content[WEIGHTS[name]]
        codes = codes_from_range(layer.weight, entry["min"][0], entry["max"][0], levels=255)
        np.testing.assert_array_equal(codes, layer.codes)
    bias = array_of({node.name: node for node in model.graph}["fc"].inputs[2])
    largest = float(np.abs(bias).max())
    assert content["fc_b"] == {"max": [largest], "min": [-largest]}
