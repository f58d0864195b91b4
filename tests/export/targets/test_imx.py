import json
from dataclasses import replace

import numpy as np
import pytest
from exported import write_files
from platform_networks import ALL_VALUES, check_golden, platform_case

from dipo.errors import UserError
from dipo.export.ranges import spread
from dipo.export.targets import imx


@pytest.fixture
def case():
    return platform_case(imx.TARGET.spec)


def scales_in(folder, case):
    content = json.loads(write_files(imx.TARGET, *case, folder)[2].read_text())
    assert list(content) == ["blob_range"]
    return content["blob_range"]


def test_golden(tmp_path, case):
    check_golden("imx", write_files(imx.TARGET, *case, tmp_path)[2])


def test_round_trip(tmp_path, case):
    model, quantized = case
    scales = scales_in(tmp_path, case)
    assert list(scales) == [*ALL_VALUES, "w1", "w2", "w3"], "no biases"
    for name, qparams in spread(model, quantized.activations).items():
        assert scales[name] == [float(qparams.scale)]
    for name, node in {"w1": "conv1", "w2": "conv2", "w3": "fc"}.items():
        layer = quantized.layers[node]
        steps = np.array(scales[name]).reshape(-1, *[1] * (layer.codes.ndim - 1))
        np.testing.assert_array_equal(np.rint(layer.weight / steps), layer.codes)


def test_powers_of_two(tmp_path, case):
    for steps in scales_in(tmp_path, case).values():
        exponents = np.log2(steps)
        np.testing.assert_array_equal(exponents, np.rint(exponents))


@pytest.mark.parametrize("bad", [{"scale": np.float32(0.3)}, {"zero_point": np.int32(3)}], ids=["scale", "zero point"])
def test_other_grids_are_refused(tmp_path, case, bad):
    model, quantized = case
    quantized.activations["j"] = replace(quantized.activations["j"], **bad)
    with pytest.raises(UserError, match="platform=imx: 'j' has a scale that is no power of two or a zero point"):
        write_files(imx.TARGET, model, quantized, tmp_path)
    assert not list(tmp_path.iterdir())
