"""A step, a target and a range method of another package, from Python."""

from __future__ import annotations

import pytest
from networks import images, tiny_cnn

import dipo

OPTIONS = {"cluster.compile": False, "algo.iters": 2}


@pytest.fixture(autouse=True)
def toys(announce):
    announce("dipo.steps", fit_scales="toy_step:FitScales")
    announce("dipo.targets", toy="toy_target:TARGET")
    announce("dipo.range_methods", most="toy_range:MOST")


def test_in_one_call():
    algo = {"steps": [{"fit_scales": {"strength": 0.5}}, "brecq"]}
    options = {**OPTIONS, "platform.options": {"strength": 7}}
    result = dipo.quantize(tiny_cnn(), images(24), algo=algo, calib={"method": "most"}, target="toy", options=options)
    assert {unit.step for unit in result.report.units} == {"fit_scales", "brecq"}
    assert (result.folder / "ranges.toy").read_text().startswith("strength 7\n")
    assert result.export("trt")


def test_one_by_one(tmp_path):
    with dipo.load(tiny_cnn(), images(24), precision="w4a8", calib={"method": "most"}, options=OPTIONS) as network:
        rounded = dipo.calibrate(network)
        fitted = dipo.apply(rounded, "fit_scales", strength=1.0)
        before, after = (dipo.evaluate(each).error["simulated_vs_fp32"].sqnr_db for each in (rounded, fitted))
        assert after > before
        files = dipo.export_to(fitted, tmp_path / "toy", target="toy", options={"platform.options": {"strength": 3}})
    assert "strength 3" in (tmp_path / "toy" / "ranges.toy").read_text()
    assert tmp_path / "toy" / "ranges.toy" in files
