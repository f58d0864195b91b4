"""Scales of activations by what the layers behind them lose."""

import numpy as np
import pytest
from lockstep import Net
from networks import images, network, saved
from test_gptq import CALIB, solved, work_of

from dipo.algo.gptq import solve_unit
from dipo.algo.held_out import held_out_samples
from dipo.algo.output_grids import FACTORS, POWERS
from dipo.algo.pair_statistics import held_out_rows, output_errors
from dipo.algo.steps.gptq import GptqOptions

CHAIN = """(float[N,3,8,8] image) => (float[N,4,8,8] y) {
  [one] a = Conv<pads=[1,1,1,1]>(image, w1, b1)
  b = Relu(a)
  [two] c = Conv<pads=[1,1,1,1]>(b, w2, b2)
  d = Relu(c)
  [three] y = Conv(d, w3, b3)
}"""


def chain(tmp_path, *, text=CHAIN, num=48, **precision):
    """Three convolutions; calibration keeps the whole range, which is too much for few codes."""
    shapes = {"w1": (8, 3, 3, 3), "b1": (8,), "w2": (8, 8, 3, 3), "b2": (8,), "w3": (4, 8, 1, 1), "b3": (4,)}
    model = network(text, **shapes)
    return Net.of(saved(model, tmp_path), images(num), **{"weight_bits": 4, "act_bits": 3, **precision})


def changed(net, *, workers=1, **options):
    """The grids that are not what they were, by name; of each worker."""
    walked, results = solved(net, workers=workers, held_out=held_out_samples(len(net.samples)), **options)
    assert len(walked) == workers
    return {name: grid for result in results for name, grid in result.activations.items()}


@pytest.mark.parametrize("power_of_two", [False, True])
def test_coarse_grids_move_by_a_factor_that_is_tried(tmp_path, power_of_two):
    net = chain(tmp_path, power_of_two=power_of_two)
    found = changed(net)
    assert found
    assert set(found) <= {"b", "d"}
    for name, grid in found.items():
        before = net.quantized.activations[name]
        assert grid.zero_point == before.zero_point and grid.scale.dtype == np.float32
        ratios = [np.isclose(grid.scale, before.scale * factor) for factor in (POWERS if power_of_two else FACTORS)]
        assert sum(ratios) == 1 and not ratios[0]
        assert not power_of_two or np.frexp(grid.scale)[0] == 0.5


def error_of(net, **options):
    """Sum of the squared errors of the network's output on held-out samples, all units solved."""
    errors, held_out = [], held_out_samples(len(net.samples))

    def step(pair, unit):
        work = work_of(pair, unit, held_out)
        result = solve_unit(work, cfg=GptqOptions(**options), calib=CALIB, num_samples=len(net.samples), seed=0)
        pair.adopt(result.layers, result.activations)
        if "y" in unit.outputs:
            errors.append(output_errors(pair, unit, work.targets, held_out_rows(pair, held_out))["y"])

    net.walk(step, with_float=True)
    return errors[0]


def test_the_network_loses_less(tmp_path):
    net = chain(tmp_path, num=96)
    assert error_of(net) < 0.95 * error_of(net, gptq_act_grids="calibrated")


def test_fine_grids_stay(tmp_path):
    assert changed(chain(tmp_path, act_bits=8)) == {}


def test_they_stay_where_calibrated_ones_are_asked_for(tmp_path):
    assert changed(chain(tmp_path), gptq_act_grids="calibrated") == {}


@pytest.mark.parametrize(
    "text",
    [
        CHAIN.replace("d = Relu(c)", "e = Add(b, c)\n  d = Relu(e)"),
        CHAIN.replace("(float[N,4,8,8] y)", "(float[N,4,8,8] y, float[N,8,8,8] b)"),
    ],
    ids=["added", "output"],
)
def test_what_others_read_too_stays(tmp_path, text):
    assert "b" in changed(chain(tmp_path))
    assert "b" not in changed(chain(tmp_path, text=text))


def test_one_worker_or_several(tmp_path):
    net = chain(tmp_path, num=47)
    alone = changed(net)
    assert alone
    for workers in (2, 3):
        other = changed(net, workers=workers)
        assert alone.keys() == other.keys()
        assert all(grid.same(other[name]) for name, grid in alone.items())


def test_values_that_are_no_numbers_move_nothing(tmp_path):
    net = chain(tmp_path)
    net.samples[5, 0, 2, 2] = np.nan
    assert changed(net) == {}
