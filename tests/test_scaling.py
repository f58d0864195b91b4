"""The benchmark of scaling: its arithmetic on made-up times, its reading of reports, the networks that it builds."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from dipo.config import compose_config
from dipo.graph.units import find_units
from dipo.stages.load import load_job
from dipo.stages.parity import check_parity

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def script(name):
    """A script of `benchmarks/`, which is no package."""
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", BENCHMARKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look for the module that they are defined in.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


scaling, networks = script("scaling"), script("networks")
NO_LINK = scaling.Link(0, 0)
STEPS = {2: 3.0, 8: 9.0, 32: 33.0}
"""One second for each sample, and one for the update."""


def unit(name="u", *, constant=0.0, per_sample=0.0, per_corrected=0.0, forward=1.0, steps=STEPS, update=1.0, size=0):
    fixed = scaling.Fixed(constant, per_sample)
    return scaling.UnitTimes(
        name, forward, fixed, scaling.Fixed(constant, per_sample, per_corrected), steps, update, size
    )


def times(*units, capture=0.0, costs=0.0, kernels=0.0, link=NO_LINK):
    return scaling.NetworkTimes(units, capture, costs, kernels, link)


@pytest.mark.parametrize(
    ("durations", "workers", "expected"),
    [([5, 4, 3, 3, 3], 1, 18), ([5, 4, 3, 3, 3], 2, 10), ([5, 4, 3, 3, 3], 3, 7), ([5, 4], 9, 5), ([], 2, 0)],
)
def test_who_is_free_takes_the_next(durations, workers, expected):
    assert scaling.makespan(durations, workers) == expected


@pytest.mark.parametrize(("samples", "expected"), [(32, 33), (20, 21), (8, 9), (4, 5), (2, 3), (1, 2)])
def test_steps_lie_on_lines_through_what_was_measured(samples, expected):
    assert unit().step(samples) == pytest.approx(expected)


def test_a_line_is_bent_where_it_was_measured_bent():
    assert unit(steps={2: 5.0, 8: 5.0, 32: 29.0}).step(20) == pytest.approx(17)
    assert unit(steps={2: 5.0, 8: 5.0, 32: 29.0}).step(4) == pytest.approx(5)


@pytest.mark.parametrize(
    ("workers", "pieces", "expected"), [(1, 1, 33), (1, 4, 33), (2, 4, 17), (3, 4, 17), (4, 4, 9), (64, 4, 9)]
)
def test_a_step_lasts_as_long_as_the_worker_with_most_pieces(workers, pieces, expected):
    found = scaling.shared_step(unit(), workers=workers, pieces=pieces, batch=32, link=NO_LINK)
    assert found == pytest.approx(expected)


def test_what_every_piece_costs_anew_is_lost():
    """Two seconds a piece that do not depend on its samples."""
    costly = unit(steps={size: 3.0 + size for size in STEPS})
    assert scaling.shared_step(costly, workers=1, pieces=1, batch=32, link=NO_LINK) == pytest.approx(35)
    assert scaling.shared_step(costly, workers=1, pieces=4, batch=32, link=NO_LINK) == pytest.approx(41)


def test_an_exchange_brings_the_pieces_of_all_others():
    link = scaling.Link(latency=0.5, per_byte=0.01)
    found = scaling.shared_step(unit(size=100), workers=2, pieces=4, batch=32, link=link)
    assert found == pytest.approx(17 + 0.5 + 2 * 100 * 0.01)
    found = scaling.shared_step(unit(size=100), workers=4, pieces=4, batch=32, link=link)
    assert found == pytest.approx(9 + 3 * (0.5 + 100 * 0.01))


def test_units_alone_stand_in_the_order_of_their_forward_passes():
    """Longest first: 3 | 2 + 2; in another order 2 | 2 + 3 would take 5 steps' time."""
    setting = scaling.Setting(iters=10, first=0, polish=9, samples=16, batch=32)
    units = [
        unit(name, forward=cost, steps=dict.fromkeys(STEPS, cost), update=0)
        for name, cost in (("a", 2), ("b", 2), ("c", 3))
    ]
    assert scaling.alone_phase(times(*units), setting, 2) == pytest.approx(4)


def test_the_alone_phase_captures_in_whole_batches():
    setting = scaling.Setting(iters=2, first=0, polish=1, samples=64)
    network = times(unit(steps=dict.fromkeys(STEPS, 0.0), update=0.0), capture=1.0, costs=3.0, kernels=2.0)
    assert [scaling.alone_phase(network, setting, n) for n in (1, 2, 4, 64)] == pytest.approx([69, 37, 21, 21])


def test_no_more_samples_are_corrected_than_a_job_looks_at():
    fixed = scaling.Fixed(constant=1, per_sample=0.5, per_corrected=0.25)
    assert fixed.at(100) == pytest.approx(1 + 50 + 25)
    assert fixed.at(1024, holders=4) == pytest.approx(1 + (512 + 64) / 4)


def test_no_number_of_workers_beats_the_bounds():
    setting = scaling.Setting(samples=0)
    network = times(*(unit(str(index), forward=index, steps={2: index, 8: index, 32: index}) for index in range(1, 9)))
    longest = 272 * 8
    assert scaling.alone_phase(network, setting, 64) == pytest.approx(longest)
    found = scaling.parallel(network, setting, 1) / scaling.parallel(network, setting, 64)
    polish = scaling.polish_phase(network, setting, 4)
    assert found == pytest.approx(scaling.parallel(network, setting, 1) / (polish + longest))
    assert any("longest of 8 units: 8," in line for line in scaling.bounds(network, setting))


def test_more_workers_than_enough_save_next_to_nothing():
    setting = scaling.Setting(samples=0)
    network = times(*(unit(str(index)) for index in range(12)))
    enough = scaling.enough_workers(network, setting)
    assert enough == 12
    assert scaling.parallel(network, setting, 11) > 1.01 * scaling.parallel(network, setting, 12)


def test_the_table_begins_with_one_worker_and_its_own_time():
    setting = scaling.Setting(samples=0)
    lines = scaling.table(times(unit()), setting)
    assert lines[1].split() == ["1", f"{320 * 33:.1f}", "1.00", f"{272 * 33:.1f}", "1.00", f"{48 * 33:.1f}", "1.00",
                                f"{320 * 33:.1f}", "1.00"]  # fmt: skip
    assert [int(line.split()[0]) for line in lines[1:8]] == list(scaling.WORKERS)


def report(stage, alone, polish):
    units = [{"step": step, "seconds": alone} for step in ("alone-1", "alone-2")]
    units += [{"step": "qdrop", "seconds": polish}] * 2
    return {"seconds": {"qdrop": stage, "verify": 1.0}, "units": units}


def test_ratios_are_medians_over_pairs_and_are_found_again():
    one = [scaling.Run.of(report(stage, 20, 5)) for stage in (50, 60, 90)]
    two = [scaling.Run.of(report(stage, 20, 2.5)) for stage in (25, 20, 30)]
    assert one[0] == scaling.Run(50, 40, 10)
    assert one[0].alone == 40
    line = scaling.ratios(one, two)
    assert line.endswith("median of 3 pairs: stage 3.00, alone 3.20, polish 2.00")
    assert "whole computed 1.00, measured 3.00" in scaling.check(
        times(unit(steps=dict.fromkeys(STEPS, 1.0))), scaling.Setting(samples=0), f"head\n{line}\n"
    )


def test_a_file_without_ratios_is_refused():
    with pytest.raises(SystemExit, match="run `measured` again"):
        scaling.check(times(unit()), scaling.Setting(), "nothing\n")


def test_a_measured_network_has_times_of_all_units(tiny_job, monkeypatch):
    # A busy machine may hide so small a network's steps for a while.
    monkeypatch.setattr(scaling, "REPEATS", 100)
    words = [f"model.path={tiny_job.model}", f"data.path={tiny_job.data}", "data.num=16", "cluster.compile=false"]
    config = compose_config([*scaling.COMMON, *words])
    found = scaling.measure(config, scaling.Effort(16, 1, 9, 1), NO_LINK, 0.0)
    assert [one.name for one in found.units] == ["stem", "left", "head"]
    for one in found.units:
        assert sorted(one.steps) == [2, 8, 32]
        assert min(one.steps.values()) > 0
        assert 0 <= one.update <= one.steps[8]
        assert one.forward > 0
    weights_and_biases = [8 * 3 * 9 + 8, 2 * (8 * 8 * 9 + 8), 8 * 10 + 10]
    others = [one.gradient_bytes // 4 - count for one, count in zip(found.units, weights_and_biases, strict=True)]
    assert min(others) >= 1, "the loss, and scales of activations"
    assert max(others) <= 4


@pytest.fixture
def loaded(tmp_path):
    def load(model, *more):
        words = networks.write(model, tmp_path, "net", num_samples=4)
        return load_job(compose_config([*words, "cluster=inline", *more]))

    return load


def test_the_encoder_has_two_units_a_block(loaded):
    job = loaded(networks.encoder(networks.EncoderShape(blocks=3, width=32, heads=4, length=16)))
    units = find_units(job.model, granularity="block")
    assert [unit.name for unit in units] == [
        *(f"/block{index}/{part}" for index in range(3) for part in ("attention/query", "mlp/up")), "/head",
    ]  # fmt: skip
    assert [len(unit.layers) for unit in units] == [4, 2, 4, 2, 4, 2, 1]
    assert check_parity(job, threads=1) < 1e-4


def test_mobilenet_has_the_units_of_its_paper(loaded):
    job = loaded(networks.mobilenet_v2(size=32))
    units = find_units(job.model, granularity="block")
    assert len(units) == 20
    assert sum(len(unit.layers) for unit in units) == 53
    assert check_parity(job, threads=1) < 1e-4


@pytest.mark.parametrize(
    "build",
    [
        lambda seed: networks.mobilenet_v2(size=32, seed=seed),
        lambda seed: networks.encoder(networks.EncoderShape(2, 32, 4, 8), seed=seed),
    ],
    ids=["mobilenet_v2", "encoder"],
)
def test_weights_come_from_the_seed(build):
    first, again, other = build(0), build(0), build(1)
    assert first.SerializeToString() == again.SerializeToString()
    assert first.SerializeToString() != other.SerializeToString()


def test_activations_keep_their_size_through_the_depth(loaded):
    import torch

    from dipo.graph.torch_module import GraphModule

    for model in (networks.mobilenet_v2(size=64), networks.encoder(networks.EncoderShape(blocks=24, width=32))):
        job = loaded(model)
        units = find_units(job.model, granularity="block")
        module = GraphModule(job.model, outputs=[unit.outputs[0] for unit in units]).eval()
        values = module({"input": torch.from_numpy(job.data.calib.read(0, 4).inputs["input"])})
        sizes = np.array([float(value.detach().std()) for value in values.values()])
        assert sizes.min() > 0.1
        assert sizes.max() < 4


def test_a_round_ends_with_its_last_unit():
    setting = scaling.Setting(iters=10, first=4, polish=2, samples=0)
    units = [unit(steps=dict.fromkeys(STEPS, seconds), update=0.0) for seconds in (3.0, 2.0, 2.0)]
    assert setting.rounds == [4, 4]
    assert scaling.alone_phase(times(*units), setting, 1) == pytest.approx(2 * 4 * 7)
    assert scaling.alone_phase(times(*units), setting, 2) == pytest.approx(2 * 4 * 4)


def test_biases_are_corrected_in_each_round_by_as_many_workers_as_there_are_pieces():
    setting = scaling.Setting(iters=10, first=4, polish=2, samples=128)
    network = scaling.NetworkTimes([], 0.0, 0.0, 0.0, NO_LINK, correct=1.0)
    assert [scaling.alone_phase(network, setting, n) for n in (1, 2, 4, 64)] == pytest.approx([256, 128, 64, 64])
