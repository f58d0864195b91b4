import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
from exported import write_files
from networks import network, saved
from platform_networks import ALL_VALUES, check_golden, platform_case, quantize_all

from dipo.errors import UserError
from dipo.export.ranges import spread
from dipo.export.targets import qnn, snpe
from dipo.graph.accessors import array_of
from dipo.graph.load import load
from dipo.graph.plan import make_plan
from dipo.graph.target_spec import ALL_WIDTHS
from dipo.recipe import PrecisionConfig

SCHEMAS = ["0.6.1", "1.0.0", "2.0.0"]
WEIGHTS = {"w1": "conv1", "w2": "conv2", "w3": "fc"}


def read(path: Path) -> tuple[dict[str, dict], dict[str, dict]]:
    """Of each tensor: `step`, `lowest`, `highest` (what the ends of the codes stand for), `bits`; by kind."""
    content = json.loads(path.read_text())
    if content["version"] == "2.0.0":
        found = {each["name"]: of_onnx(each) for each in content["encodings"]}
        parameters = {name: each for name, each in found.items() if name[0] in "wb"}
        return {name: each for name, each in found.items() if name not in parameters}, parameters
    kinds = [content[f"{kind}_encodings"] for kind in ("activation", "param")]
    if content["version"] == "1.0.0":
        return tuple({each["name"]: of_list(each) for each in kind} for kind in kinds)
    return tuple({name: of_channels(each) for name, each in kind.items()} for kind in kinds)


def of_channels(entries: list[dict]) -> dict:
    assert all(e["dtype"] == "int" and e["is_symmetric"] in ("True", "False") for e in entries)
    for e in entries:
        assert e["min"] == pytest.approx(e["offset"] * e["scale"])
        assert e["max"] == pytest.approx((e["offset"] + 2 ** e["bitwidth"] - 1) * e["scale"])
        assert e["offset"] <= 0 and (e["is_symmetric"] == "False" or e["offset"] == -(2 ** (e["bitwidth"] - 1)))
    columns = {key: np.array([e[key] for e in entries]) for key in ("scale", "min", "max")}
    return {
        "step": columns["scale"], "lowest": columns["min"], "highest": columns["max"], "bits": entries[0]["bitwidth"],
    }  # fmt: skip


def of_list(entry: dict) -> dict:
    assert entry["dtype"] == "INT" and isinstance(entry["is_sym"], bool)
    scale, offset, bits = np.array(entry["scale"]), np.array(entry["offset"]), entry["bw"]
    assert (entry["enc_type"] == "PER_TENSOR") == (scale.size == 1) and scale.shape == offset.shape
    return {"step": scale, "lowest": offset * scale, "highest": (offset + 2**bits - 1) * scale, "bits": bits}


def of_onnx(entry: dict) -> dict:
    kind, bits = re.fullmatch(r"(u?int)(4|8|16|32)", entry["output_dtype"]).groups()
    smallest, largest = (
        (0, 2 ** int(bits) - 1) if kind == "uint" else (-(2 ** (int(bits) - 1)), 2 ** (int(bits) - 1) - 1)
    )
    scale, zero = np.array(entry["y_scale"]), np.array(entry.get("y_zero_point", 0))
    assert (scale.ndim == 1) == ("axis" in entry)
    return {
        "step": np.atleast_1d(scale),
        "lowest": np.atleast_1d((smallest - zero) * scale),
        "highest": np.atleast_1d((largest - zero) * scale),
        "bits": int(bits),
    }


@pytest.mark.parametrize("platform", [snpe, qnn], ids=["snpe", "qnn"])
@pytest.mark.parametrize("schema", SCHEMAS)
def test_golden(tmp_path, platform, schema):
    model, quantized = platform_case(platform.TARGET.spec)
    file = write_files(platform.TARGET, model, quantized, tmp_path, schema=schema)[-1]
    check_golden(platform.TARGET.spec.name, file.rename(tmp_path / f"{schema}-{file.name}"))


@pytest.mark.parametrize("platform", [snpe, qnn], ids=["snpe", "qnn"])
@pytest.mark.parametrize("schema", SCHEMAS)
@pytest.mark.parametrize("act_bits", [8, 16])
def test_round_trip(tmp_path, platform, schema, act_bits):
    model, quantized = platform_case(platform.TARGET.spec, act_bits=act_bits)
    activations, parameters = read(write_files(platform.TARGET, model, quantized, tmp_path, schema=schema)[-1])
    assert set(activations) == set(ALL_VALUES)
    known = spread(model, quantized.activations)
    for name, each in activations.items():
        qparams = known[name]
        assert each["bits"] == act_bits and each["step"] == [float(qparams.scale)]
        assert each["lowest"] == pytest.approx(float(-qparams.zero_point * np.float64(qparams.scale)))
        assert each["highest"] == pytest.approx(float((2**act_bits - 1 - qparams.zero_point) * qparams.scale))
    for weight, node in WEIGHTS.items():
        layer = quantized.layers[node]
        np.testing.assert_array_equal(parameters[weight]["step"], np.atleast_1d(layer.qparams.scale).astype(np.float64))
        assert layer.weight.max() <= parameters[weight]["highest"].max() * (1 + 1e-6)
        assert layer.weight.min() >= parameters[weight]["lowest"].min() * (1 + 1e-6)
    assert set(parameters) == set(WEIGHTS) | ({"b1", "b2", "b3"} if schema == "2.0.0" else set())


@pytest.mark.parametrize("schema", SCHEMAS)
def test_consumer_finds_the_codes_again(tmp_path, schema):
    model, quantized = platform_case(qnn.TARGET.spec)
    files = write_files(qnn.TARGET, model, quantized, tmp_path, schema=schema)
    _, parameters = read(files[-1])
    for weight, node in WEIGHTS.items():
        layer = quantized.layers[node]
        step, lowest = (
            parameters[weight][key].reshape(-1, *[1] * (layer.codes.ndim - 1)) for key in ("step", "lowest")
        )
        np.testing.assert_array_equal(np.rint((layer.weight - lowest) / step) - 128, layer.codes)


def test_biases_have_the_step_of_the_accumulator(tmp_path):
    model, quantized = platform_case(qnn.TARGET.spec)
    _, parameters = read(write_files(qnn.TARGET, model, quantized, tmp_path, schema="2.0.0")[-1])
    expected = np.float64(quantized.activations["x"].scale) * quantized.layers["conv1"].qparams.scale
    np.testing.assert_allclose(parameters["b1"]["step"], expected, rtol=1e-12)
    assert parameters["b1"]["bits"] == 32


@pytest.mark.parametrize(("bits", "stored"), [(3, 4), (4, 4), (6, 8)])
@pytest.mark.parametrize("platform", [snpe, qnn], ids=["snpe", "qnn"])
@pytest.mark.parametrize("schema", SCHEMAS)
def test_narrow_weights_are_part_of_a_wider_grid(tmp_path, bits, stored, platform, schema):
    model, quantized = platform_case(platform.TARGET.spec, weight_bits=bits, first_last_bits=None)
    _, parameters = read(write_files(platform.TARGET, model, quantized, tmp_path, schema=schema)[-1])
    weight = array_of({node.name: node for node in model.graph}["conv2"].inputs[1])
    assert weight.size and parameters["w2"]["bits"] == stored
    levels = (parameters["w2"]["highest"] - parameters["w2"]["lowest"]) / parameters["w2"]["step"]
    np.testing.assert_allclose(levels, 2**stored - 1)


def test_names_and_keys_that_scripts_read(tmp_path):
    model, quantized = platform_case(snpe.TARGET.spec)
    file = write_files(snpe.TARGET, model, quantized, tmp_path)[-1]
    content = json.loads(file.read_text())
    assert file.name == "snpe_encodings.json" and content["version"] == "0.6.1"
    for name in ALL_VALUES:
        (entry,) = content["activation_encodings"][name]
        assert entry["bitwidth"] == 8 and entry["min"] <= 0 < entry["max"]


@pytest.mark.parametrize("platform", [snpe, qnn], ids=["snpe", "qnn"])
def test_unknown_schemas_and_widths(tmp_path, platform):
    model, quantized = platform_case(platform.TARGET.spec)
    with pytest.raises(UserError, match=r"schema '3': choose from 0.6.1, 1.0.0, 2.0.0"):
        write_files(platform.TARGET, model, quantized, tmp_path, schema="3")
    lenient = dataclasses.replace(platform.TARGET.spec, act_widths=ALL_WIDTHS)
    model, quantized = platform_case(lenient, act_bits=10)
    with pytest.raises(UserError, match="has 10 bits and the target takes 8 or 16"):
        write_files(platform.TARGET, model, quantized, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("schema", SCHEMAS)
@pytest.mark.parametrize(("platform", "symmetric"), [(snpe, False), (qnn, True)])
def test_constants_have_encodings_too(tmp_path, platform, symmetric, schema):
    """What has none, the converter would calibrate itself."""
    model = network(
        """(float[N,3,8,8] x) => (float[N,3,8,8] y) {
          [conv] a = Conv(x, w, b)
          [slopes] s = PRelu(a, slope)
          [cut] c = Clip(s, lo, hi)
          [shift] d = Add(c, offset)
          [size] y = Reshape(d, shape)
        }""",
        w=(3, 3, 1, 1), b=(3,), slope=np.float32([[[0.25]], [[-0.5]], [[1.0]]]), lo=np.float32(-1), hi=np.float32(6),
        offset=np.float32([2.5]), shape=np.int64([-1, 3, 8, 8]),
    )  # fmt: skip
    loaded = load(saved(model, tmp_path))
    plan = make_plan(loaded, platform.TARGET.spec, PrecisionConfig(weight_bits=8, act_bits=8))
    write_files(platform.TARGET, loaded, quantize_all(loaded, plan, {}), tmp_path, schema=schema)
    content = json.loads((tmp_path / f"{platform.TARGET.spec.name}_encodings.json").read_text())
    if schema == "2.0.0":
        found = {each["name"]: np.asarray(each["y_scale"]) for each in content["encodings"]}
    elif schema == "1.0.0":
        found = {each["name"]: each["scale"][0] for each in content["param_encodings"]}
    else:
        found = {name: each[0]["scale"] for name, each in content["param_encodings"].items()}
    assert {"w", "slope", "lo", "hi", "offset"} <= found.keys() and "shape" not in found
    assert found["slope"] == pytest.approx(1 / 127 if symmetric else 1.5 / 255)
    assert found["offset"] == pytest.approx(2.5 / 127 if symmetric else 2.5 / 255)
