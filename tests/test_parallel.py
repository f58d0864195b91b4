"""The parallel schedule: waves, phases, and that nothing depends on how they fall."""

import json

import pytest

from dipo.config import AlgoConfig
from dipo.launch import main
from dipo.stages.parallel import polish_iters, rounds

HOW = ("algo=qdrop", "precision=w4a4", "algo.iters=8", "cluster.schedule=parallel")


def run(tiny_job, folder, *more):
    assert main(tiny_job.arguments(*HOW, f"run.dir={folder}", *more)) == 0
    return (folder / "quantized.onnx").read_bytes(), json.loads((folder / "report.json").read_text())


@pytest.mark.parametrize(
    ("iters", "asked", "expected"), [(320, None, 48), (10, None, 2), (1, None, 1), (100, 0, 0), (100, 7, 7), (5, 90, 5)]
)
def test_the_polish_takes_its_share_of_the_steps(iters, asked, expected):
    assert polish_iters(AlgoConfig(iters=iters, polish_iters=asked)) == expected


@pytest.mark.parametrize(
    ("iters", "polish", "expected"),
    [(320, None, [(0, 128), (128, 272)]), (8, 8, []), (10, 7, [(0, 3)]), (1, 0, [(0, 1)]), (10, 0, [(0, 4), (4, 10)])],
)
def test_there_are_two_rounds_where_there_are_steps_for_them(iters, polish, expected):
    assert [(p.first, p.stop) for p in rounds(AlgoConfig(iters=iters, polish_iters=polish))] == expected


def test_units_are_solved_alone_and_then_polished(tiny_job, tmp_path):
    _, report = run(tiny_job, tmp_path / "run")
    steps = [(unit["step"], unit["name"], unit["steps"]) for unit in report["units"]]
    names = ["stem", "left", "head"]
    expected = {"alone-1": 3, "alone-2": 3, "qdrop": 2}
    assert steps == [(step, name, number) for step, number in expected.items() for name in names]
    assert report["workers"]["schedule"] == "parallel"
    assert report["workers"]["grad_shards"] == 4


def test_waves_do_not_change_the_result(tiny_job, tmp_path, capsys):
    """With room for one value at a time each unit has a pass of the float network to itself."""
    expected, _ = run(tiny_job, tmp_path / "one")
    found, _ = run(tiny_job, tmp_path / "many", "cluster.captures_gb=1e-6")
    assert found == expected


def test_without_a_polish_the_units_stay_as_they_are(tiny_job, tmp_path):
    _, report = run(tiny_job, tmp_path / "run", "algo.polish_iters=0")
    assert [(unit["step"], unit["steps"]) for unit in report["units"]] == [
        ("alone-1", 3), ("alone-1", 3), ("alone-1", 3), ("alone-2", 5), ("alone-2", 5), ("alone-2", 5)
    ]  # fmt: skip
    assert not list((tmp_path / "run" / "units").glob("qdrop-*"))


def test_with_nothing_but_a_polish_it_is_the_sequential_schedule(tiny_job, tmp_path):
    _, report = run(tiny_job, tmp_path / "run", "algo.polish_iters=8")
    assert [(unit["step"], unit["steps"]) for unit in report["units"]] == [("qdrop", 8)] * 3


def test_values_that_went_away_with_a_node_are_captured_again(tiny_job, tmp_path, monkeypatch):
    from dipo.cluster.pool import InlinePool, StoredLostError

    expected, _ = run(tiny_job, tmp_path / "whole")
    real, calls = InlinePool.map, []

    def lossy(self, tasks, **how):
        """The second unit finds its inputs gone, once."""
        calls.append(tasks[0].name)
        results = real(self, tasks, **how)
        if calls[-1] == "solve_alone" and calls.count("solve_alone") == 1:
            yield next(results)
            raise StoredLostError
        yield from results

    monkeypatch.setattr(InlinePool, "map", lossy)
    found, report = run(tiny_job, tmp_path / "lossy")
    assert calls.count("capture") == 3
    assert found == expected
    assert len(report["units"]) == 9


def test_values_that_always_go_away_end_the_run_with_a_sentence(tiny_job, tmp_path, monkeypatch, capsys):
    from dipo.cluster.pool import InlinePool, StoredLostError

    real = InlinePool.map

    def lossy(self, tasks, **how):
        if tasks[0].name == "solve_alone":
            raise StoredLostError
        yield from real(self, tasks, **how)

    monkeypatch.setattr(InlinePool, "map", lossy)
    assert main(tiny_job.arguments(*HOW, f"run.dir={tmp_path / 'run'}")) == 1
    error = capsys.readouterr().err
    assert "captured values went away with their nodes 4 times" in error
    assert f"run.resume={tmp_path / 'run'}" in error
    assert error.count("\n") == 1
