"""What every target's declaration has to have."""

import dataclasses
import subprocess
import sys

import pytest
from exported import write_files
from platform_networks import platform_case

from dipo.config import PlatformConfig
from dipo.export.formats import OnnxFormat
from dipo.export.target import TargetFile
from dipo.export.targets import OWN_OPTIONS, TARGETS
from dipo.verify.consumers import CONSUMERS, declared_as

HEAVY = ("numpy", "onnx", "onnx_ir", "onnxruntime", "torch", "ray")


@pytest.mark.parametrize("name", TARGETS)
def test_every_file_that_is_written_is_declared_with_a_reader(tmp_path, name):
    target = TARGETS[name]
    written = [file.name for file in write_files(target, *platform_case(target.spec), tmp_path)]
    declared = [each.name for each in target.files]
    assert written[0] == "quantized.onnx" and written == declared
    for file in target.files:
        assert declared_as(name, file.name) is file
        assert set(file.readers) <= CONSUMERS.keys()
        assert file.read or file.readers or file.elsewhere


def test_every_consumer_has_a_file():
    assert {reader for target in TARGETS.values() for file in target.files for reader in file.readers} == {*CONSUMERS}


def test_a_file_without_a_reader_is_no_declaration():
    with pytest.raises(AssertionError, match=r"nobody is said to read lost\.txt"):
        TargetFile("lost.txt")


def test_every_option_of_a_target_is_one_of_the_configuration():
    fields = {field.name for field in dataclasses.fields(PlatformConfig)}
    own = {option for target in TARGETS.values() for option in target.option_names}
    assert own == OWN_OPTIONS and fields == {"name", "options", *own}
    for target in TARGETS.values():
        assert target.options_of(PlatformConfig().given) == target.options_class()


def test_a_model_of_an_unknown_target_is_for_those_who_read_everybodys():
    assert declared_as(None, "quantized.onnx").readers == ("ONNX Runtime",)
    assert declared_as("gone", "snpe_encodings.json").readers == ("AIMET",)
    assert declared_as("qnn", "other.onnx").readers == ("ONNX Runtime",)
    assert declared_as("ort", "other.txt") is None


@pytest.mark.parametrize("name", TARGETS)
def test_integer_operators_are_for_targets_with_integer_biases(name):
    target, form = TARGETS[name], OnnxFormat("qop")
    assert bool(target.form_remarks(form)) is not target.spec.int32_bias
    assert not target.form_remarks(OnnxFormat())


def test_listing_them_imports_nothing_heavy():
    code = f"import sys, dipo.config; print(*(set({HEAVY}) & sys.modules.keys()))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "\n"
