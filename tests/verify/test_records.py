"""Wrong numbers in the records of Atlas and TIDL."""

import re

import pytest
from rich.console import Console

from dipo.cli.verify import main
from dipo.report.measures import OutputError
from dipo.verify import atlas, compare, ranges, tidl
from dipo.verify.consumers import declared_as
from dipo.verify.probe import feed_of, make_probe
from dipo.verify.terminal import show
from dipo.verify.verdict import Refused, State, TensorOutcome, Verdict

RECORDS = {"atlas": (atlas, "scale_offset_record.txt"), "ti": (tidl, "tidl_quant_params.prototxt")}


def check(folder, platform):
    module, name = RECORDS[platform]
    quantized = folder / "quantized.onnx"
    verdict = module.check(folder / name, make_probe(feed_of(quantized, data=None, samples=8), quantized))
    compared = ranges.check(folder / name, declared_as(platform, name))
    if compared.refused is not None:
        raise Refused(compared.refused)
    return verdict


def change(folder, platform, old, new):
    file = folder / RECORDS[platform][1]
    text = file.read_text()
    changed = re.sub(old, new, text, count=1)
    assert changed != text
    file.write_text(changed)


@pytest.mark.parametrize(
    ("platform", "old", "new", "reason"),
    [
        ("ti", r"max: \S+", "max: 99.0", "'x' has scale 32, and 1.28283 by its range"),
        ("ti", r"max: \S+\n(.*\n.*\n.*)scale: \S+", r"max: 99.0\n\1scale: 1.2828282828", "'x' has a range from -3.96"),
        ("ti", r"scale: 512.0", "scale: 511.0", "'w1' has scale 511, and 512 by its range"),
        ("ti", r"value: \S+", "value: 99.0", "bias 'b1' has value 99"),
        ("ti", r"element_type: 1", "element_type: 0", "'x' has element_type 0"),
        ("ti", r"max: \S+", "max: nan", "'x' has a range from -3.96875 to nan"),
        ("atlas", r"scale_d: \S+", "scale_d: 0.5", r"'conv1 (scale_d, offset_d)' has a step of 0.5, and 0.0166667"),
        ("atlas", r"offset_d: \S+", "offset_d: -9", "'conv1 (scale_d, offset_d)' has a range from"),
        ("atlas", r"scale_w: \S+", "scale_w: 0.5", "'conv1 (scale_w)' has a step of 0.5"),
    ],
)
def test_a_wrong_number_is_refused_by_name(write, capsys, monkeypatch, platform, old, new, reason):
    monkeypatch.setenv("COLUMNS", "200")
    run = write(platform)
    change(run, platform, old, new)
    with pytest.raises(Refused, match=re.escape(reason)):
        check(run, platform)
    assert main([f"run={run}"]) == 1
    assert reason in " ".join(capsys.readouterr().out.split())


def test_tidl_computes_with_the_ranges(write, monkeypatch):
    """Where `quantized.onnx` has no grid for a tensor, the outputs show that its range is another one."""
    run = write("ti")
    good = check(run, "ti")
    monkeypatch.setattr(compare, "reference_grids", lambda deployed, quantized: {})
    change(run, "ti", r"max: 3.96875\n(.*\n.*\n.*)scale: 32.0", r"max: 99.0\n\1scale: 1.2828282828")
    assert good.error.sqnr_db > 60 > check(run, "ti").error.sqnr_db


@pytest.mark.parametrize(
    ("file", "sqnr_db", "fails"), [("net.txt", 14.0, True), ("net.txt", 16.0, False), ("deploy.onnx", 9.0, False)]
)
def test_outputs_of_another_network_fail_the_check(tmp_path, capsys, file, sqnr_db, fails):
    error = OutputError(agreement=90.0, cosine=0.98, sqnr_db=sqnr_db)
    verdict = Verdict("TIDL", tmp_path / file, [TensorOutcome("x", State.ACCEPTED)], error)
    assert verdict.failed is fails
    show([verdict], Console(width=100), root=tmp_path, every=False)
    assert ("it computes something else" in capsys.readouterr().out) is fails
